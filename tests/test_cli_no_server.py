"""Batch commands without a server, with a wrong one, and with one that goes away."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
from batch_lines import ids_in
from cli_process import start
from cluster_fixtures import ManualEngine, cluster_of, eventually
from typer.testing import CliRunner

from tokenyard.cli import app
from tokenyard.embedded_server import EmbeddedServer

EXAMPLE = str(Path(__file__).parent.parent / "examples" / "questions.jsonl")
COMMANDS = [
    ["submit", EXAMPLE],
    ["follow", "b"],
    ["collect", "b", "-o", "out.jsonl"],
    ["cancel", "b"],
    ["status"],
    ["top"],
]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.delenv("TOKENYARD_REDIS_URL", raising=False)
    monkeypatch.delenv("TOKENYARD_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


def refused(words: list[str]) -> tuple[int, str]:
    """The exit code and the one line of a command that cannot run."""
    result = CliRunner().invoke(app, words)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.exit_code, result.stderr


@pytest.mark.parametrize("words", COMMANDS)
def test_no_address(words: list[str]) -> None:
    code, said = refused(words)
    assert code == 2
    assert "no Redis: set TOKENYARD_REDIS_URL or give --redis-url" in said


@pytest.mark.parametrize("words", COMMANDS)
def test_nobody_there(words: list[str], tmp_path: Path) -> None:
    code, said = refused([*words, "--redis-url", f"unix://{tmp_path}/none.sock"])
    assert code == 4
    assert f"cannot reach Redis at unix://{tmp_path}/none.sock" in said


@pytest.fixture
async def guarded_port(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[int]:
    """The port of a server with a password."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    async with EmbeddedServer(tmp_path_factory.mktemp("guarded"), port=port, password="right"):
        yield port


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize("user", ["", "default:wrong@"])
def test_a_password_is_needed(guarded_port: int, words: list[str], user: str) -> None:
    code, said = refused([*words, "--redis-url", f"redis://{user}127.0.0.1:{guarded_port}/0"])
    assert code == 4
    assert f"Redis at redis://127.0.0.1:{guarded_port}/0 needs a password" in said
    assert "wrong" not in said


@pytest.mark.parametrize("batch", ["input_1", "a b", "../x", "", "x" * 101, "{a}"])
def test_ids_that_no_batch_can_have(batch: str) -> None:
    code, said = refused(["submit", EXAMPLE, "--batch", batch, "--redis-url", "unix:///none"])
    assert code == 2
    assert "--batch" in said


@pytest.mark.parametrize(("source", "problem"), [("none.jsonl", "cannot read none.jsonl"), (".", ". is a folder")])
def test_a_file_that_cannot_be_read(source: str, problem: str) -> None:
    code, said = refused(["submit", source, "--redis-url", "unix:///none"])
    assert code == 2
    assert problem in said


def test_an_error_file_that_cannot_be_written() -> None:
    code, said = refused(["submit", EXAMPLE, "--errors", "no/bad.jsonl", "--redis-url", "unix:///none"])
    assert code == 2
    assert "cannot write no/bad.jsonl" in said


async def test_collecting_outlives_the_server(tmp_path_factory: pytest.TempPathFactory, pool: str) -> None:
    folder = tmp_path_factory.mktemp("run")
    engine = ManualEngine()
    async with (
        EmbeddedServer(folder / "redis") as server,
        cluster_of(server.url, pool) as cluster,
    ):
        cluster.schedule()
        await cluster.join("w", engine)
        batch = await cluster.submit(4)
        await eventually(lambda: len(engine.running) == 4, "4 jobs run")
        engine.finish(1)
        collecting = await start(server.url, "collect", batch, "-o", folder / "out.jsonl")
        await collecting.says("1/4 jobs")
        await server.stop()
        await collecting.says("lost Redis")
        await server.start()
        engine.finish()
        collected = await collecting.end()
        assert collected.code == 0
        assert sorted(map(str, ids_in(folder / "out.jsonl"))) == ["r0", "r1", "r2", "r3"]

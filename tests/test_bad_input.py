"""What a person may get wrong: each time one clear line, an exit code, no traceback; what can run, runs."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_lines import ids_in
from cli_process import Ended
from run_process import Place, is_one_line, last_line, line, lines
from typer.testing import CliRunner

from tokenyard.cli import app
from tokenyard.embedded_server import EmbeddedServer

INSTANT = "--engine simulated"
RUN = ["run", "in.jsonl", "-o", "out.jsonl", "--model", "m", "--worker", f"a: {INSTANT}"]
#: Of the worker in these tests, tokens; a token of the simulated engine has four bytes.
CONTEXT = 4096


@pytest.fixture
def place(tmp_path: Path) -> Generator[Place]:
    place = Place(tmp_path)
    yield place
    place.clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a batch file; nothing of ours in the environment."""
    for name in ("REDIS_URL", "POOL", "CONFIG", "POLICY", "STATE_DIR"):
        monkeypatch.delenv(f"TOKENYARD_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_bytes(line("r0") + b"\n")
    return tmp_path


def invoke(*words: str, **settings: str) -> tuple[int, str]:
    """The exit code of a command that cannot run, and its one line."""
    result = CliRunner().invoke(app, words, env={f"TOKENYARD_{name}": value for name, value in settings.items()})
    assert isinstance(result.exception, SystemExit), repr(result.exception)  # else a traceback
    assert result.stdout == ""
    assert is_one_line(result.stderr)
    return result.exit_code, result.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- lines


def chat(custom_id: str, content: str = "Hi.", **body: Any) -> bytes:
    return line(custom_id, messages=[{"role": "user", "content": content}], **body)


def changed(name: str, **fields: Any) -> bytes:
    """A request with some of its fields replaced; None takes one out."""
    fields = json.loads(line(name)) | fields
    return json.dumps({key: value for key, value in fields.items() if value is not None}).encode()


#: What is wrong with a line -> the line, and what is said about it.
BAD_LINES: dict[str, tuple[bytes, str]] = {
    "no json": (b'{"custom_id": "no json", ', "not a valid JSON object"),
    "no object": (b'["no object"]', "not a valid JSON object"),
    "not utf-8": (b'{"custom_id": "\xff"}', "not a valid JSON object"),
    "no id": (changed("no id", custom_id=None), "custom_id is missing"),
    "doubled id": (line("good"), "custom_id 'good' was used on line 1 already"),
    "url": (changed("url", url="/v1/images"), "url '/v1/images' is unknown"),
    "body a list": (changed("body a list", body=[]), "body must be an object"),
    "no messages": (changed("no messages", body={"model": "m"}), "body.messages is missing"),
    "messages a text": (line("messages a text", messages="Hi."), "body.messages must be a list"),
    "other model": (line("other model", model="x"), "no worker serves model 'x'; this run serves m"),
    "20 MB": (chat("20 MB", "x" * 20_000_000), "the line is longer than 16777216 bytes"),
    "huge number": (line("huge number", max_tokens=10**30), "body.max_tokens is above"),
}
#: Lines that the engine refuses, and its words.
REFUSED_LINES: dict[str, tuple[bytes, str]] = {
    "long prompt": (chat("long prompt", "x" * 4 * CONTEXT), "maximum context length"),
    "15 MB": (chat("15 MB", "x" * 15_000_000), "maximum context length"),
    "max_tokens 0": (line("max_tokens 0", max_tokens=0), "max_tokens"),
    "max_tokens 10^9": (line("max_tokens 10^9", max_tokens=10**9), "max_tokens"),
    "message no object": (line("message no object", messages=["Hi."]), "each message has to be an object"),
}


async def test_bad_lines_go_to_the_error_file_and_the_rest_runs(place: Place) -> None:
    bad = [text for text, _ in BAD_LINES.values()]
    refused = [text for text, _ in REFUSED_LINES.values()]
    place.write([line("good"), *bad, b"", *refused, line("last")])
    ended = await place.run(f"a: {INSTANT} --context {CONTEXT} --kv-tokens {CONTEXT}")
    assert ended.code == 0
    assert sorted(map(str, ids_in(place.out))) == ["good", "last"]
    errors = [json.loads(text) for text in place.errors.read_text().splitlines()]
    by_line = {error["error"]["message"].partition(": ")[0]: error for error in errors if error["error"]}
    for number, (name, (_, said)) in enumerate(BAD_LINES.items(), 2):
        error = by_line[f"{place.source}:{number}"]
        assert said in error["error"]["message"], name
        assert error["response"] is None
        if number <= 11:  # the first ten are shown, too
            assert f"{place.source}:{number}: " in ended.err
    answers = {error["custom_id"]: error["response"] for error in errors if error["response"]}
    assert {name: answer["status_code"] for name, answer in answers.items()} == dict.fromkeys(REFUSED_LINES, 400)
    for name, (_, said) in REFUSED_LINES.items():
        assert said in answers[name]["body"]["error"]["message"]
    assert len(errors) == len(BAD_LINES) + len(REFUSED_LINES)
    assert f"{len(errors)} requests without a response; the reasons are in {place.errors}" in ended.err


async def test_no_line_can_run(place: Place) -> None:
    place.write([BAD_LINES["no json"][0], BAD_LINES["url"][0]])
    ended = await place.run(f"a: {INSTANT}")
    assert ended.code == 2
    assert ended.err.startswith(f"{place.source}:1: not a valid JSON object")
    assert last_line(ended) == f"error: {place.source}: no line can run; the reasons are above"
    assert len(ended.err.splitlines()) == 3
    assert ids_in(place.errors) == [None, "url"]


# --- files


@pytest.mark.parametrize("command", [RUN, ["submit", "in.jsonl", "--redis-url", "unix:///none"]], ids=["run", "submit"])
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("none.jsonl", "cannot read none.jsonl"),
        (".", ". is a folder: give a batch file"),
        ("in.jsonl/x", "cannot read in.jsonl/x"),
    ],
)
def test_a_source_that_cannot_be_read(folder: Path, command: list[str], source: str, said: str) -> None:
    code, text = invoke(*[source if word == "in.jsonl" else word for word in command])
    assert code == 2
    assert said in text
    assert [path.name for path in folder.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("content", [b"", b"\n \n"])
@pytest.mark.parametrize("command", ["run", "submit"])
def test_an_empty_source(folder: Path, redis_url: str, command: str, content: bytes) -> None:
    (folder / "in.jsonl").write_bytes(content)
    words = RUN if command == "run" else ["submit", "in.jsonl", "--redis-url", redis_url]
    code, said = invoke(*words)
    assert code == 2
    assert "in.jsonl is empty: give a file with one request a line" in said


def test_a_damaged_source(folder: Path) -> None:
    (folder / "in.jsonl").write_bytes(b"\x1f\x8b\x08 not what it seems")
    code, said = invoke(*RUN)
    assert code == 2
    assert "in.jsonl is damaged after line 0" in said


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("no/out.jsonl", "cannot write no/out.jsonl: No such file or directory: create the folder no"),
        (".", "cannot write .: Is a directory"),
        ("in.jsonl/out.jsonl", "cannot write in.jsonl/out.jsonl: Not a directory"),
        ("in.jsonl", "in.jsonl:1: not a line of a batch output"),
        ("/dev/null", "/dev/null is no regular file"),
    ],
)
@pytest.mark.parametrize("option", ["-o", "--errors"])
def test_an_output_that_cannot_be_written(folder: Path, option: str, output: str, said: str) -> None:
    before = (folder / "in.jsonl").read_bytes()
    words = ["run", "in.jsonl", "-o", "out.jsonl", "--model", "m", "--worker", INSTANT, option, output]
    code, text = invoke(*words)
    assert code == 2
    assert said in text
    assert (folder / "in.jsonl").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["in.jsonl"]


def test_a_state_directory_that_cannot_be_made(folder: Path, redis_url: str, pool: str) -> None:
    code, said = invoke(*RUN, STATE_DIR="in.jsonl")
    assert code == 4
    assert f"The data directory {folder}/in.jsonl/redis cannot be used (Not a directory)" in said
    (folder / "in.jsonl").write_bytes(line("r0", model=pool) + b"\n")
    words = ["run", "in.jsonl", "-o", "out.jsonl", "--model", pool, "--worker", INSTANT]
    code, said = invoke(*words, STATE_DIR="in.jsonl", REDIS_URL=redis_url)
    assert code == 2
    assert "cannot make in.jsonl/logs (Not a directory): set TOKENYARD_STATE_DIR" in said


# --- Redis

WORKER = ["worker", "--model", "m", *INSTANT.split()]
NEED_REDIS = [
    RUN,
    ["scheduler"],
    WORKER,
    ["submit", "in.jsonl"],
    ["status"],
    ["follow", "b"],
    ["collect", "b", "-o", "out.jsonl"],
    ["cancel", "b"],
    ["top"],
]


@pytest.mark.parametrize("words", NEED_REDIS, ids=lambda words: words[0])
def test_no_redis(folder: Path, words: list[str]) -> None:
    port = free_port()
    code, said = invoke(*words, REDIS_URL=f"redis://user:secret@127.0.0.1:{port}/0")
    assert code == 4
    assert f"cannot reach Redis at redis://127.0.0.1:{port}/0" in said
    assert "is it running, is TOKENYARD_REDIS_URL right?" in said
    assert "secret" not in said


@pytest.fixture(scope="module")
def guarded_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server with a password."""
    port = free_port()
    server = EmbeddedServer(tmp_path_factory.mktemp("guarded"), port=port, password="right")
    asyncio.run(server.start())
    yield port
    asyncio.run(server.stop())


@pytest.mark.parametrize("words", NEED_REDIS, ids=lambda words: words[0])
@pytest.mark.parametrize("user", ["", ":wrong@", "stranger:right@"], ids=["no password", "wrong one", "wrong user"])
def test_redis_that_needs_a_password(folder: Path, guarded_port: int, words: list[str], user: str) -> None:
    code, said = invoke(*words, REDIS_URL=f"redis://{user}127.0.0.1:{guarded_port}/0")
    assert code == 4
    assert f"Redis at redis://127.0.0.1:{guarded_port}/0 needs a password, or refused the one it got" in said
    assert not any(secret in said for secret in ("wrong", "stranger:right"))


@pytest.mark.parametrize("url", ["nonsense", "http://here", "redis://here:99999", "redis://here:port/0"])
@pytest.mark.parametrize("words", [RUN, ["scheduler"], WORKER, ["status"]], ids=lambda words: words[0])
def test_what_is_no_address(folder: Path, words: list[str], url: str) -> None:
    code, said = invoke(*words, REDIS_URL=url)
    assert code == 4
    assert "TOKENYARD_REDIS_URL is not an address" in said


def test_a_port_in_use(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = invoke("redis", "--port", str(port), "--data-dir", "data")
    assert code == 4
    assert f"Port {port} on 127.0.0.1 is in use by another program: choose another port" in said


@pytest.mark.parametrize("words", [["follow", "nope"], ["collect", "nope", "-o", "out.jsonl"], ["cancel", "nope"]])
def test_a_batch_that_is_not_there(folder: Path, redis_url: str, words: list[str]) -> None:
    code, said = invoke(*words, REDIS_URL=redis_url)
    assert code == 1
    assert "no batch nope: `tokenyard status` lists" in said
    assert [path.name for path in folder.iterdir()] == ["in.jsonl"]


# --- models, engines, options


async def test_no_worker_can_start(place: Place) -> None:
    place.write(lines(3))
    words = ["--worker", "a: --model /no/such/dir --served-name m", "--worker", f"b: {INSTANT} --seatz 3"]
    ended = await place.run(words=words)
    assert ended.code == 1
    told = {text.split(" ended: ")[0]: text for text in ended.err.splitlines() if " ended: " in text}
    first, last = sorted(told, key=lambda name: name.startswith("error: "))
    assert {first, last} in ({"worker a", "error: worker b"}, {"worker b", "error: worker a"})
    assert last_line(ended) == told[last]
    assert last_line(ended).endswith("; once that is mended, the same command goes on with what is left")
    assert "going on with" in told[first]
    assert " ended: model /no/such/dir: no such directory (log: " in ended.err
    assert " ended: No such option: --seatz" in ended.err
    assert "0/0 jobs" not in ended.err


@pytest.fixture
def start_worker(place: Place, redis_url: str, pool: str) -> Callable[..., Any]:
    """Start a worker of a pool and a model of its own, and wait for its end."""

    async def start(*words: str) -> Ended:
        running = await place.start("worker", "--pool", pool, "--model", pool, *words, url=redis_url)
        ended = await place.end(running)
        assert ended.out == ""
        assert ended.err.count("error: ") == 1  # its log may say more above
        return ended

    return start


async def test_a_model_that_is_not_there(start_worker: Callable[..., Any]) -> None:
    ended = await start_worker("--model", "/no/such/dir")
    assert ended.code == 1
    assert ended.err == "error: model /no/such/dir: no such directory\n"


async def test_a_server_that_is_not_there(start_worker: Callable[..., Any]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    ended = await start_worker("--engine", "openai", "--url", url)
    assert ended.code == 1
    assert last_line(ended).startswith(f"error: the server at {url} does not answer: start it or correct its URL")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--engine", "openai"], 2, "--engine openai needs --url, the address of the server to attach to"),
        ([*INSTANT.split(), "--profile", "none.json"], 2, "cannot read the profile none.json"),
        ([*INSTANT.split(), "--profile", "in.jsonl"], 2, "not a valid profile"),
        (["--task", "sing"], 2, "--task sing: give generate or embed"),
        (["--engine-arg", "x"], 2, "--engine-arg x: write it as name=value"),
    ],
)
def test_options_that_no_engine_takes(folder: Path, redis_url: str, words: list[str], code: int, said: str) -> None:
    found, text = invoke("worker", "--model", str(folder), *words, REDIS_URL=redis_url)
    assert found == code
    assert said in text


@pytest.mark.parametrize("words", [["scheduler"], RUN], ids=["scheduler", "run"])
def test_an_unknown_policy(folder: Path, redis_url: str, words: list[str]) -> None:
    code, said = invoke(*words, "--policy", "nope", REDIS_URL=redis_url)
    assert code == 2
    assert "no placement policy 'nope'; there are capacity, least_outstanding, power_of_two, round_robin" in said


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        (["a/b: --seats 2"], "--worker 'a/b: --seats 2': name it with letters"),
        (["scheduler: --seats 2"], "name it with letters, digits, '.', '_' and '-', not 'scheduler'"),
        (["a: --served-name 'm"], "No closing quotation"),
        (["a: --seats 2", "a: --seats 3"], "two workers have the same name"),
    ],
)
def test_workers_that_cannot_be(folder: Path, workers: list[str], said: str) -> None:
    code, text = invoke("run", "in.jsonl", "-o", "out.jsonl", *(w for worker in workers for w in ("--worker", worker)))
    assert code == 2
    assert said in text


# --- settings


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DEAD_AFTER_S", "soon", "setting dead_after_s (TOKENYARD_DEAD_AFTER_S): "),
        ("MAX_ATTEMPTS", "0", "setting max_attempts (TOKENYARD_MAX_ATTEMPTS): "),
        ("POOL", "a b", "setting pool (TOKENYARD_POOL): "),
        ("LOG_LEVEL", "loud", "setting log_level (TOKENYARD_LOG_LEVEL): "),
        ("CONFIG", "none.toml", "TOKENYARD_CONFIG names none.toml, which is not a file"),
        ("CONFIG", "in.jsonl", "in.jsonl"),
    ],
)
def test_settings_that_make_no_sense(folder: Path, name: str, value: str, said: str) -> None:
    code, text = invoke(*WORKER, REDIS_URL="unix:///none", **{name: value})
    assert code == 2
    assert said in text

"""What docs/gateway.md shows runs as it stands."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from child_processes import start_process
from cli_process import ROOT, environment
from cluster_fixtures import PATIENCE_S, instant_engine
from gateway_fixtures import scheduled_cluster, serving
from test_compose import parse_command

from tokenyard.embedded_server import EmbeddedServer
from tokenyard.gateway.api_keys import read_keys

TEXT = (ROOT / "docs" / "gateway.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [code for language, code in BLOCKS if language == "sh"]


@pytest.fixture
async def base_url(tmp_path: Path, pool: str) -> AsyncIterator[str]:
    """On a server of its own: the snippets take the first model there is."""
    server = EmbeddedServer(tmp_path / "valkey")
    await server.start()
    async with scheduled_cluster(server.url, pool) as cluster:
        await cluster.join("w", instant_engine(cluster.model))
        async with serving(cluster, tmp_path / "shelves") as url:
            yield url
    await server.stop()


async def test_the_snippets_run(base_url: str, tmp_path: Path) -> None:
    said: list[str] = []
    for code in PYTHON:
        process = await start_process(
            *(sys.executable, "-c", code),
            cwd=tmp_path,
            env=environment("") | {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "any"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(PATIENCE_S):
            out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        said.append(out.decode())
    chat, batch = said
    assert chat.count("sim") > 1
    assert batch.startswith("completed")
    assert "completed=10" in batch


@pytest.mark.parametrize("code", SHELL)
def test_the_commands_are_ours(code: str) -> None:
    parse_command(shlex.split(code))


def test_the_keys_can_be_read(tmp_path: Path) -> None:
    [keys] = [code for language, code in BLOCKS if not language]
    path = tmp_path / "keys"
    path.write_text(keys)
    assert len(read_keys(path)) == 3

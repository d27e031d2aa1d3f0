"""``tokenyard redis`` as a process: the line that it prints is one for a shell."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from child_processes import start_process
from cli_process import start
from redis_servers import free_ports

from broker.connection import connected


@pytest.mark.parametrize("by_port", [False, True])
async def test_the_address_that_it_prints_is_one(by_port: bool, tmp_path: Path) -> None:
    words = ["--port", str(free_ports(1)[0])] if by_port else []
    running = await start("", "redis", "--data-dir", tmp_path / "data", *words)
    try:
        await running.says("export TOKENYARD_REDIS_URL")
        shell = await start_process(
            *("bash", "-c", f'{running.said[-1]}\nprintf %s "$TOKENYARD_REDIS_URL"'), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await shell.communicate()
        async with connected(out.decode()) as redis:
            assert await redis.ping()
        assert not by_port or (tmp_path / "data" / "password").read_text().strip() not in "".join(running.said)
    finally:
        running.interrupt()
        assert (await running.end()).code == 0

"""The command line as a process of its own, beside a cluster that runs in the test."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

from child_processes import start_process
from cluster_fixtures import PATIENCE_S
from typer.testing import CliRunner

from tokenyard.cli import app

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(slots=True)
class Running:
    """A command that runs."""

    process: asyncio.subprocess.Process
    said: list[str] = field(default_factory=list[str])

    async def says(self, text: str) -> None:
        """Wait for a line on standard error with this text."""
        assert self.process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            while not self.said or text not in self.said[-1]:
                line = await self.process.stderr.readline()
                assert line, f"ended without saying {text!r}: {self.said}"
                self.said.append(line.decode())

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    async def end(self) -> Ended:
        """Wait until it ends."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                out, err = await self.process.communicate()
        except TimeoutError:
            self.process.kill()
            raise
        assert self.process.returncode is not None
        return Ended(self.process.returncode, out.decode(), "".join(self.said) + err.decode())


async def start(url: str, *words: str | Path) -> Running:
    """Start ``tokenyard`` with these words."""
    process = await start_process(
        sys.executable,
        "-m",
        "tokenyard",
        *map(str, words),
        cwd=ROOT,
        env=environment(url),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    return Running(process)


async def in_process(url: str, *words: str) -> Ended:
    """As ``tokenyard``, in a thread of this process: for commands that read no signals and no keyboard."""
    clean = {name: None for name in os.environ if name.startswith("TOKENYARD_")}
    ended = await asyncio.to_thread(CliRunner().invoke, app, words, env={**clean, **environment(url)})
    return Ended(ended.exit_code, ended.stdout, ended.stderr)


async def tokenyard(url: str, *words: str | Path) -> Ended:
    """Run ``tokenyard`` with these words to its end; it never shows a traceback."""
    ended = await (await start(url, *words)).end()
    assert "Traceback" not in ended.err
    return ended


def environment(url: str) -> dict[str, str]:
    """The environment of a command: this server, nothing else of ours, a wide log."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TOKENYARD_")}
    return {**clean, "TOKENYARD_REDIS_URL": url, "COLUMNS": "120", "TERM": "xterm", "PYTHONUNBUFFERED": "1"}

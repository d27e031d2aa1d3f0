"""A process of the one-machine cluster: its log in a file, its life bound to ours."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenyard.embedded_server import GUARD

#: A process that does not end within this long after SIGTERM is killed (seconds).
_STOP_TIMEOUT_S = 20.0


class ChildProcess:
    """One ``tokenyard`` process. It does not see the terminal's Ctrl-C; when we die, however we die, it gets SIGTERM."""

    def __init__(self, name: str, arguments: Sequence[str], *, log_dir: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log_path = log_dir / f"{name}.log"
        self._command = ["sh", "-c", GUARD, "sh", sys.executable, "-m", "tokenyard", *arguments]
        self._environment = {**os.environ, **environment}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; its log begins anew."""
        with self.log_path.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.returncode if self._process else None

    async def wait(self) -> int:
        """Wait for its end."""
        assert self._process is not None, "start() comes first"
        return await self._process.wait()

    def terminate(self) -> None:
        """Ask it to end: a worker drains."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    async def stop(self) -> None:
        """Make it end."""
        if self._process is None:
            return
        self.terminate()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def last_error(self) -> str:
        """The last line of its log that says something, for a message."""
        try:
            text = self.log_path.read_bytes()[-8192:].decode("utf-8", "replace")
        except OSError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error:")]
        return (errors or lines or [""])[-1].removeprefix("error: ")

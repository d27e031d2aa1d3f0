"""A process of the one-machine cluster: its log in a file, its life bound to ours."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

#: A process that does not end within this long after SIGTERM is killed (seconds).
_STOP_TIMEOUT_S = 20.0

# Runs a program under its own process id and ends it when standard input ends without a word: that is when we died,
# however we died. It is asked first. Then it is killed: the Redis that it would hand its jobs back to may have been
# ours, too, and it would wait for that for ever.
_GUARD = (
    "exec 3<&0; (read -r _ <&3 || { kill -TERM $$; sleep 2; kill -KILL $$; }) >/dev/null 2>&1 &"
    ' exec "$@" 3<&- </dev/null'
)


class ChildProcess:
    """One ``tokenyard`` process. It does not see the terminal's Ctrl-C, and does not outlive us, however we die."""

    def __init__(self, name: str, arguments: Sequence[str], *, log_dir: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log_path = log_dir / f"{name}.log"
        self._command = ["sh", "-c", _GUARD, "sh", sys.executable, "-m", "tokenyard", *arguments]
        self._environment = {**os.environ, **environment}
        self._process: asyncio.subprocess.Process | None = None
        self._lifeline: int | None = None

    async def start(self) -> None:
        """Start it; its log begins anew."""
        # Not asyncio's own pipe: that is closed, without a word, as soon as the process has ended.
        theirs, self._lifeline = os.pipe()
        try:
            with self.log_path.open("wb") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command, stdin=theirs, stdout=log, stderr=log, env=self._environment, start_new_session=True
                )
        finally:
            os.close(theirs)

    @property
    def pid(self) -> int:
        """Its process id: the shell that starts it becomes it."""
        assert self._process is not None, "start() comes first"
        return self._process.pid

    async def wait(self) -> int:
        """Wait for its end; returns its exit code."""
        assert self._process is not None, "start() comes first"
        return await self._process.wait()

    def terminate(self) -> None:
        """Ask it to end: a worker drains."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    async def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        """Ask it to end, and after ``timeout_s`` seconds make it."""
        if self._process is None:
            return
        self.terminate()
        try:
            async with asyncio.timeout(timeout_s):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        if self._lifeline is not None:
            # A word tells the guard that all is well: it must not signal a process id that may be another's by now.
            with suppress(BrokenPipeError):  # somebody ended the guard
                os.write(self._lifeline, b"ended\n")
            os.close(self._lifeline)
            self._lifeline = None

    def how_it_ended(self) -> str:
        """Why, in its own words, and where it says more."""
        return f"{self._reason()} (log: {self.log_path})"

    def _reason(self) -> str:
        code = self._process.returncode if self._process else None
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        try:
            text = self.log_path.read_bytes()[-8192:].decode("utf-8", "replace")
        except OSError:
            text = ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error:")]
        return (errors or lines or [f"exit code {code}"])[-1].removeprefix("error: ").removeprefix("Error: ")

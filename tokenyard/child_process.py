"""A process of the one-machine cluster: its log in a file, its life bound to ours."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

#: To a worker a second SIGTERM means to stop what runs; it comes this long after the first (seconds), not to fall into
#: one with it.
_ASK_AGAIN_S = 1.0
#: A process that does not end within this long after that is killed (seconds).
_STOP_TIMEOUT_S = 20.0

# Runs a program under its own process id. When that has ended, or we have, however we died, standard input ends. Then
# the program is asked to end; soon it is killed, as it may be waiting for a Redis that died with us; and then what is
# left of its process group, after some time in which Python's resource tracker removes shared memory. The guard, this
# shell's child, belongs to the group: as long as it lives, the id can be nobody else's.
_GUARD = (
    "exec 3<&0; (read -r _ <&3; kill -TERM $$; sleep 2; kill -KILL $$; sleep 2; kill -KILL -$$) >/dev/null 2>&1 &"
    ' exec "$@" 3<&- </dev/null'
)


class ChildProcess:
    """One ``tokenyard`` process. It does not see the terminal's Ctrl-C, and does not outlive us, however we die."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        log_dir: Path,
        environment: Mapping[str, str],
        keep_open: Sequence[int] = (),
    ) -> None:
        """Say what to start.

        Args:
            name: of the process and its log.
            arguments: words for ``tokenyard``.
            log_dir: where its log is.
            environment: what it has beside ours.
            keep_open: file descriptors of ours that it, and what it leaves behind, has open as long as it lives.
        """
        self.name = name
        self._keep_open = tuple(keep_open)
        self.log_path = log_dir / f"{name}.log"
        self._command = ["sh", "-c", _GUARD, "sh", sys.executable, "-m", "tokenyard", *arguments]
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
                pass_fds=self._keep_open,
            )

    @property
    def pid(self) -> int:
        """Its process id: the shell that starts it becomes it."""
        assert self._process is not None, "start() comes first"
        return self._process.pid

    @property
    def log_at(self) -> str:
        """Where its log is."""
        return str(self.log_path)

    @property
    def waits_for_room(self) -> bool:
        """It never waits: it starts at once."""
        return False

    async def wait(self) -> int:
        """Wait for its end; returns its exit code."""
        assert self._process is not None, "start() comes first"
        return await self._process.wait()

    def terminate(self) -> None:
        """Ask it to end: a worker drains."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    async def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        """Ask it to end, ask again, and after ``timeout_s`` more seconds make it.

        What it started is gone some seconds later.
        """
        if self._process is None:
            return
        for patience_s in (_ASK_AGAIN_S, timeout_s):
            self.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self._process.wait()
                    return
        self._process.kill()
        await self._process.wait()

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

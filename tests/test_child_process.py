"""The life of a child process: bound to ours, and its own children's bound to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import psutil
import pytest
from cluster_fixtures import eventually

from tokenyard.child_process import ChildProcess


class Shell(ChildProcess):
    """A shell script in the place of ``tokenyard``."""

    def __init__(self, folder: Path, script: str) -> None:
        super().__init__("shell", [], log_dir=folder, environment={})
        guard = self._command[: self._command.index("sh", 1) + 1]
        self._command = [*guard, "sh", "-c", script]

    def said(self) -> list[str]:
        return self.log_path.read_text().split()


def alive(pid: str) -> bool:
    try:
        return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
async def stubborn(tmp_path: Path) -> AsyncGenerator[Shell]:
    """Ignores SIGTERM, as its child does, and says both process ids."""
    shell = Shell(tmp_path, "trap '' TERM; sleep 600 & echo $$ $!; wait; wait")
    await shell.start()
    await eventually(lambda: len(shell.said()) == 2, "it runs")
    yield shell
    await shell.stop(0)


async def test_what_does_not_end_is_killed_with_its_children(stubborn: Shell) -> None:
    pids = stubborn.said()
    assert pids[0] == str(stubborn.pid)
    assert all(alive(pid) for pid in pids)
    await stubborn.stop(0.1)
    assert not alive(pids[0])
    await eventually(lambda: not any(alive(pid) for pid in pids), "both have ended")
    assert stubborn.how_it_ended().startswith("killed by SIGKILL (log: ")
    await stubborn.stop()  # twice is no error


async def test_its_children_do_not_outlive_it(stubborn: Shell) -> None:
    process, child = stubborn.said()
    psutil.Process(int(process)).kill()
    await stubborn.wait()
    await eventually(lambda: not alive(child), "its child has ended")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo first; echo 'error: no such thing' >&2; echo last", "no such thing"),
        ("echo 'Error: No such option: --x'; exit 2", "No such option: --x"),
        ("echo first; echo; echo last; exit 3", "last"),
        ("exit 3", "exit code 3"),
        ("echo 'error: old'; kill -SEGV $$; sleep 600", "killed by SIGSEGV"),
    ],
)
async def test_why_it_ended(tmp_path: Path, script: str, said: str) -> None:
    shell = Shell(tmp_path, script)
    await shell.start()
    async with asyncio.timeout(30):
        await shell.wait()
    assert shell.how_it_ended() == f"{said} (log: {tmp_path}/shell.log)"
    await shell.stop()

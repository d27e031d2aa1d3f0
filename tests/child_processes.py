"""Processes that tests start: none of them outlives its test, nor the test run.

What a test left running, because it failed, is killed when it ends (by a fixture in conftest.py). Where the test run
itself is killed, Linux kills them (PR_SET_PDEATHSIG, which util-linux' setpriv sets before it becomes the program).
"""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

SETPRIV = shutil.which("setpriv")
_started: list[psutil.Process] = []


def bound(*command: str | Path) -> list[str]:
    """The command of a process that dies with us, where this machine can see to that."""
    words = [str(word) for word in command]
    return [SETPRIV, "--pdeathsig", "KILL", "--", *words] if SETPRIV else words


async def start_process(*command: str | Path, **options: Any) -> asyncio.subprocess.Process:
    """As ``asyncio.create_subprocess_exec``, for the length of a test at most."""
    process = await asyncio.create_subprocess_exec(*bound(*command), **options)
    with suppress(psutil.NoSuchProcess):  # it has ended already
        _started.append(psutil.Process(process.pid))
    return process


def kill_left_over() -> None:
    """Kill what still runs of all that was started."""
    while _started:
        with suppress(psutil.NoSuchProcess):
            _started.pop().kill()

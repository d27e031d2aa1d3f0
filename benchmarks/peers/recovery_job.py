"""The job of the recovery benchmark, the same for every system. Needs nothing installed."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

#: Name of the environment's variable that says where the ledger is.
LEDGER = "RECOVERY_LEDGER"
KILLER = "killer"


async def job(name: str, seconds: float) -> None:
    """Sleep, and say so in the ledger; one of them kills the process that runs it."""
    write("began", name)
    if name == KILLER:
        os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(seconds)
    write("ended", name)


def write(what: str, name: str) -> None:
    """Add a line to the ledger, in one write."""
    file = os.open(Path(os.environ[LEDGER]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, f"{what} {name}\n".encode())
    finally:
        os.close(file)

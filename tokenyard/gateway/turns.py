"""Locks between gateways that share a folder. They are let go of when a process ends, however it does."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

#: Whoever waits for its turn looks again after this long (seconds).
_LOOK_S = 0.5


@asynccontextmanager
async def turn(path: Path) -> AsyncGenerator[None]:
    """Hold a lock for the length of the block; wait for it as long as another has it. The file goes with the last one.

    Raises:
        OSError: the file cannot be made.
    """
    with path.open("ab") as file:
        while not _try(file.fileno()):  # noqa: ASYNC110  # no event comes from another process
            await asyncio.sleep(_LOOK_S)
        yield
        _remove(path)  # who waits for this one, or makes a new one, finds that the work is done


@contextmanager
def alone(path: Path) -> Generator[None]:
    """Hold a lock for a read and a write that belong together: some milliseconds, in which all wait.

    Raises:
        OSError: the file cannot be made.
    """
    with path.open("ab") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        yield


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)

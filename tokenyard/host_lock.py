"""One supervisor of a pool on a host: a lock that lasts until the workers that it started are gone, however it died."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from broker.errors import UsageError

_LOOK_S = 0.1


@asynccontextmanager
async def host_lock(path: Path, report: Callable[[str], None]) -> AsyncGenerator[int]:
    """Hold the lock for the length of the block; waits for whoever has it.

    The file descriptor is to be handed to the workers: the lock is theirs, too, so that after ``kill -9`` of their
    supervisor the next one begins when the last of them is gone, and not beside them.

    Args:
        path: the lock's file; its folder is made if missing.
        report: told where somebody else has the lock.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        why = f"cannot write {path} ({error.strerror}): set TOKENYARD_STATE_DIR to a folder of yours"
        raise UsageError(why) from None
    try:
        told = False
        while not _taken(descriptor):
            if not told:
                report(f"another supervisor, or workers that it left, hold {path}: standing by")
                told = True
            await asyncio.sleep(_LOOK_S)
        yield descriptor
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""Devices of one machine that processes of several parents share: who has a lock file open, has the device."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_LOOK_S = 0.1


async def claim(folder: Path, kind: str, among: Sequence[int], count: int) -> dict[int, int]:
    """Take ``count`` of these devices, whichever are free first; waits for those who hold them.

    Args:
        folder: where the lock files are, the same for all who share the devices.
        kind: ``core`` or ``gpu``.
        among: indices to take from.
        count: how many.

    Returns:
        Index -> file descriptor. A device is taken as long as any process has its descriptor open.

    Raises:
        OSError: the folder cannot be written.
    """
    held: dict[int, int] = {}
    while len(held) < count:
        for index in among:
            if index not in held and len(held) < count:
                descriptor = _try_to_take(folder / f"{kind}-{index}.lock")
                if descriptor is not None:
                    held[index] = descriptor
        if len(held) < count:
            # Two that each hold what the other waits for would wait for ever.
            release(held)
            held = {}
            await asyncio.sleep(_LOOK_S)
    return held


def release(held: dict[int, int]) -> None:
    """Let go of devices; those who were handed the descriptors still have them."""
    for descriptor in held.values():
        with suppress(OSError):
            os.close(descriptor)


def _try_to_take(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor

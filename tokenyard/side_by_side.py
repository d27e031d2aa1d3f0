"""Processes of one host that begin at the same moment, each with a lock file that ends with it, however it dies."""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from broker.errors import TokenyardError, UsageError

_LOOK_S = 0.05
#: An engine is up, or has failed, within this time (seconds).
_PATIENCE_S = 600.0


class AloneError(TokenyardError):
    """The others did not come."""


@asynccontextmanager
async def side_by_side(
    folder: Path, count: int, report: Callable[[str], None], patience_s: float = _PATIENCE_S
) -> AsyncGenerator[Callable[[], Awaitable[None]]]:
    """Meet others within the block: what it gives waits until ``count`` processes, this one included, wait for it.

    Args:
        folder: of the lock files, the same for all; made if missing.
        count: how many.
        report: told that it waits.
        patience_s: seconds to wait for the others.

    Raises:
        UsageError: the folder cannot be written.
        AloneError: the others did not come; raised by what is given.
    """
    held: list[int] = []
    slots = [folder / f"beside-{number}.lock" for number in range(count)]
    met, name = folder / "beside.met", secrets.token_hex(8)

    async def meet() -> None:
        if count < 2:
            return
        report(f"waiting until {count} engines are up")
        try:
            async with asyncio.timeout(patience_s):
                while not (held or _took_one(slots, name, held)):  # noqa: ASYNC110  other processes
                    await asyncio.sleep(_LOOK_S)
                while not _have_met(slots, met, name):  # noqa: ASYNC110  other processes
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            why = f"fewer than {count} engines were up after {patience_s:.0f} s"
            raise AloneError(f"{why}: start as many `tokenyard profile` at once") from None

    if count > 1:
        _make(folder)
    try:
        yield meet
    finally:
        for descriptor in held:
            os.close(descriptor)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(folder / "beside-0.lock", fcntl.LOCK_SH)
    except OSError as error:
        why = f"cannot write {folder} ({error.strerror}): set TOKENYARD_STATE_DIR to a folder of yours"
        raise UsageError(why) from None
    if descriptor is not None:
        os.close(descriptor)


def _took_one(slots: list[Path], name: str, held: list[int]) -> bool:
    """Take the first slot that nobody has, and put one's name there; not where all are taken, or being looked at."""
    for slot in slots:
        descriptor = _lock(slot, fcntl.LOCK_EX)
        if descriptor is not None:
            held.append(descriptor)
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, name.encode(), 0)
            return True
    return False


def _have_met(slots: list[Path], met: Path, name: str) -> bool:
    """Whether all slots are taken, or were: who sees that writes down who was there, as the first may soon be gone."""
    if all(_is_taken(slot) for slot in slots):
        written = met.with_suffix(f".{name}")
        written.write_text(" ".join(slot.read_text() for slot in slots))
        written.replace(met)
        return True
    return met.exists() and name in met.read_text().split()


def _is_taken(slot: Path) -> bool:
    """Looking takes a shared lock for a moment, so that two who look do not take each other for an owner."""
    descriptor = _lock(slot, fcntl.LOCK_SH)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def _lock(path: Path, how: int) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor

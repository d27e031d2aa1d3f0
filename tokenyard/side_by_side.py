"""Processes of one host that begin at the same moment, or one turn after the other once all are there.

Each has a lock file that ends with it, however it dies.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from broker.errors import TokenyardError, UsageError

_LOOK_S = 0.05
#: An engine is up, or has failed, within this time (seconds).
_PATIENCE_S = 600.0


class AloneError(TokenyardError):
    """The others did not come."""


@asynccontextmanager
async def side_by_side(
    folder: Path, count: int, report: Callable[[str], None], *, turn: int = 1, patience_s: float = _PATIENCE_S
) -> AsyncGenerator[Callable[[], Awaitable[None]]]:
    """Meet others within the block: what it gives waits until ``count`` processes, this one included, wait for it.

    Then it waits until those of lower turns have left their blocks, and their processes have ended: that takes time,
    too, of the cores that are to be measured.

    Args:
        folder: of the lock files, the same for all; made if missing.
        count: how many.
        report: told that it waits.
        turn: which turn this one has; those of one turn begin at the same moment.
        patience_s: seconds to wait for the others to come, and for those of lower turns to leave.

    Raises:
        UsageError: the folder cannot be written.
        AloneError: the others did not come, or did not leave; raised by what is given.
    """
    held: list[int] = []
    slots = [folder / f"beside-{number}.lock" for number in range(count)]
    met, mine = folder / "beside.met", f"{secrets.token_hex(8)}:{turn}:{os.getpid()}"

    async def meet() -> None:
        if count < 2:
            return
        report(f"waiting until {count} engines are up")
        try:
            async with asyncio.timeout(patience_s):
                while not (held or _took_one(slots, mine, held)):  # noqa: ASYNC110  other processes
                    await asyncio.sleep(_LOOK_S)
                while (there := _who_met(slots, met, mine)) is None:  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            why = f"fewer than {count} engines were up after {patience_s:.0f} s"
            raise AloneError(f"{why}: start as many `tokenyard profile` at once") from None
        try:
            async with asyncio.timeout(patience_s):
                while _is_earlier_there(slots, there, turn):  # noqa: ASYNC110  other processes
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise AloneError(f"engines of lower turns were still up after {patience_s:.0f} s") from None

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


def _took_one(slots: list[Path], mine: str, held: list[int]) -> bool:
    """Take the first slot that nobody has, put one's name there; not where all are taken, or being looked at."""
    for slot in slots:
        descriptor = _lock(slot, fcntl.LOCK_EX)
        if descriptor is not None:
            held.append(descriptor)
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, mine.encode(), 0)
            return True
    return False


def _who_met(slots: list[Path], met: Path, mine: str) -> list[str] | None:
    """Who is in which slot, once all are taken, or were; None before.

    Who sees that all are writes down who was there, as the first may soon be gone.
    """
    if all(_is_taken(slot) for slot in slots):
        there = [slot.read_text() for slot in slots]
        written = met.with_suffix(f".{mine.partition(':')[0]}")
        written.write_text(" ".join(there))
        written.replace(met)
        return there
    there = met.read_text().split() if met.exists() else []
    return there if mine in there else None


def _is_earlier_there(slots: list[Path], there: list[str], turn: int) -> bool:
    """Whether one of a lower turn is still in its slot, and nobody else in its place; or ending."""
    earlier = [(slot, who) for slot, who in zip(slots, there, strict=True) if _number(who, 1, 1) < turn]
    if any(_is_taken(slot) and slot.read_text() == who for slot, who in earlier):
        return True
    return any(_runs(_number(who, 2, 0)) for _, who in earlier)


def _number(who: str, place: int, default: int) -> int:
    """A number from one's name: its turn, or its process."""
    words = who.split(":")
    return int(words[place]) if len(words) > place and words[place].isdigit() else default


def _runs(pid: int) -> bool:
    """Whether another process runs; one that has ended and that nobody asked after does not."""
    if pid in (0, os.getpid()):
        return False
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


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

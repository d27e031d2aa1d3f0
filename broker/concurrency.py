"""Small asyncio helpers that several processes share."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

_CANCEL_AGAIN_S = 0.5

_T = TypeVar("_T")


def run_fast(main: Coroutine[Any, Any, _T]) -> _T:
    """As ``asyncio.run``, on uvloop's event loop where it is installed: for servers of many small messages."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        from asyncio import new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


async def run_together(*coroutines: Coroutine[Any, Any, object]) -> None:
    """Run all until the first ends; the others are cancelled, its exception is raised as it is.

    Unlike a TaskGroup it raises no group: the loops around it tell a lost lease from a lost connection.
    """
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await cancel_all(tasks)


class Pacer:
    """At least ``interval_s`` seconds from one pass of a loop to the next.

    A lone job passes at once; under load each pass finds many, and a call to Redis costs much the same for one job
    as for fifty.
    """

    def __init__(self, interval_s: float = 0.002) -> None:
        self._interval_s = interval_s
        self._last = float("-inf")

    async def pause(self) -> None:
        """Wait for what is left of the interval."""
        now = asyncio.get_running_loop().time
        rest = self._last + self._interval_s - now()
        if rest > 0:
            await asyncio.sleep(rest)
        self._last = now()


async def cancel_all(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until each has ended.

    Cancels again where a task goes on: in Python 3.11 ``wait_for``, which libraries use, may swallow a cancellation.
    Cancelled itself, it waits on all the same and ends as cancelled after that: nothing is left running.
    """
    interrupted: asyncio.CancelledError | None = None
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        try:
            await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)
        except asyncio.CancelledError as e:
            interrupted = e
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen: no warning about it at exit
    if interrupted is not None:
        raise interrupted


async def wait_at_most(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, but no longer than that."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def on_stop_signals(callback: Any) -> None:
    """Call ``callback(signal name)`` on SIGINT and SIGTERM."""
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sig, callback, sig.name)

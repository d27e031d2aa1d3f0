"""An event loop in a thread of its own, for callers that have none or are in one already (a notebook)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from broker.concurrency import cancel_all
from broker.errors import UsageError

T = TypeVar("T")


class Portal:
    """Runs coroutines for threads that wait for them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tokenyard-client", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether it runs nothing any more."""
        return self._loop.is_closed()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it to its end and return what it returns. Interrupted (Ctrl-C), it is cancelled and waited for.

        Raises:
            UsageError: the portal is closed.
        """
        if self.closed:
            coroutine.close()
            raise UsageError("the client is closed: make a new one")
        ended: Future[T] = Future()
        tasks: list[asyncio.Task[T]] = []

        def start() -> None:
            tasks.append(self._loop.create_task(coroutine))
            tasks[0].add_done_callback(lambda task: _hand_over(task, ended))

        self._loop.call_soon_threadsafe(start)
        try:
            return ended.result()
        except BaseException:
            if not ended.done():  # it is this thread that was interrupted
                self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
                wait([ended])
            raise

    def close(self) -> None:
        """Cancel what still runs, and end the thread. A second time: does nothing."""
        if self.closed:
            return
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _hand_over(task: asyncio.Task[T], ended: Future[T]) -> None:
    if task.cancelled():
        ended.set_exception(asyncio.CancelledError())
    elif (error := task.exception()) is not None:
        ended.set_exception(error)
    else:
        ended.set_result(task.result())


async def _cancel_others() -> None:
    await cancel_all([task for task in asyncio.all_tasks() if task is not asyncio.current_task()])
    await asyncio.get_running_loop().shutdown_asyncgens()

"""The small asyncio helpers: what ends what, and which error comes out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from broker.concurrency import Pacer, cancel_all, run_together, wait_at_most


class Task:
    """A coroutine that notes whether it was cancelled."""

    def __init__(self) -> None:
        self.cancelled = False

    async def forever(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def fail(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


class TestRunTogether:
    async def test_the_first_that_ends_ends_all(self) -> None:
        others = [Task(), Task()]
        await run_together(others[0].forever(), asyncio.sleep(0), others[1].forever())
        assert all(task.cancelled for task in others)

    async def test_an_error_comes_out_as_it_is_and_not_in_a_group(self) -> None:
        other = Task()
        error = LookupError("mine")
        with pytest.raises(LookupError) as caught:
            await run_together(other.forever(), fail(error))
        assert caught.value is error
        assert other.cancelled

    async def test_cancelling_it_cancels_all_and_waits_for_them(self) -> None:
        others = [Task(), Task()]
        together = asyncio.ensure_future(run_together(*(task.forever() for task in others)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        together.cancel()
        with pytest.raises(asyncio.CancelledError):
            await together
        assert all(task.cancelled for task in others)


class TestCancelAll:
    async def test_cancelled_itself_it_leaves_nothing_running(self) -> None:
        cleaning, cleaned = asyncio.Event(), asyncio.Event()

        async def slow() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cleaning.set()
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
                cleaned.set()
                raise ValueError("seen by nobody") from None

        together = asyncio.ensure_future(run_together(slow(), fail(LookupError())))
        await cleaning.wait()
        together.cancel()
        with pytest.raises(asyncio.CancelledError):
            await together
        assert cleaned.is_set()

    async def test_it_waits_until_each_has_cleaned_up(self) -> None:
        cleaned: list[int] = []

        async def slow(i: int) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)
                cleaned.append(i)

        tasks = [asyncio.ensure_future(slow(i)) for i in range(3)]
        await asyncio.sleep(0)
        await cancel_all(tasks)
        assert sorted(cleaned) == [0, 1, 2]

    async def test_one_that_swallows_a_cancellation_gets_another(self) -> None:
        swallowed = 0

        async def stubborn() -> None:
            nonlocal swallowed
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
            await asyncio.Event().wait()

        task = asyncio.ensure_future(stubborn())
        await asyncio.sleep(0)
        await cancel_all([task])
        assert swallowed == 1
        assert task.cancelled()

    async def test_tasks_that_have_ended_or_failed_do_not_trouble_it(self) -> None:
        tasks = [asyncio.ensure_future(fail(ValueError())), asyncio.ensure_future(asyncio.sleep(0))]
        await asyncio.wait(tasks)
        await cancel_all(tasks)
        await cancel_all([])


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.slept: list[float] = []
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now)
        monkeypatch.setattr(asyncio, "sleep", self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class TestPacer:
    async def test_the_first_pass_is_free_and_each_next_waits_for_what_is_left(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        time = FakeTime(monkeypatch)
        pacer = Pacer(0.5)
        await pacer.pause()
        assert time.slept == []
        await pacer.pause()
        time.now += 0.125
        await pacer.pause()
        time.now += 0.75
        await pacer.pause()
        assert time.slept == [0.5, 0.375]

    async def test_time_that_was_not_used_is_not_saved_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        time = FakeTime(monkeypatch)
        pacer = Pacer(0.5)
        await pacer.pause()
        time.now += 10
        await pacer.pause()
        await pacer.pause()
        assert time.slept == [0.5]


class TestWaitAtMost:
    async def test_it_ends_with_the_event_or_with_the_time_and_never_raises(self) -> None:
        event = asyncio.Event()
        await wait_at_most(event, 0.001)
        assert not event.is_set()
        event.set()
        async with asyncio.timeout(10):
            await wait_at_most(event, 3600)

    async def test_a_cancellation_passes(self) -> None:
        await cancelled_at(lambda: wait_at_most(asyncio.Event(), 3600))


async def cancelled_at(start: Callable[[], Awaitable[Any]]) -> None:
    task = asyncio.ensure_future(start())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

"""A job that runs twice."""

from __future__ import annotations

import pytest
from move_fixtures import Desk

from broker.events import Event, WorkerChanged, parse_event
from broker.jobs import ABORTED, BatchCounts, Delivery, Outcome, job_id
from broker.policies.base import Placement
from broker.store.worker import WorkerStore

JOB = job_id("b", "a")


class Race:
    """One job, ``a`` of batch ``b``: on worker ``slow``, with a copy on ``quick``."""

    def __init__(self, desk: Desk, slow: WorkerStore, quick: WorkerStore) -> None:
        self.desk = desk
        self.slow = slow
        self.quick = quick
        self.position = ""

    async def start(self) -> tuple[Delivery, Delivery]:
        """Take both sides."""
        [original], [copy] = await self.slow.take(9), await self.quick.take(9)
        assert original.job_id == copy.job_id == JOB
        await self.mark()
        return original, copy

    async def mark(self) -> None:
        """``events`` tells what comes after this."""
        self.position = await self.desk.scheduler.last_event()

    async def events(self) -> list[Event | None]:
        found = [parse_event(fields) for _, fields in await self.desk.scheduler.events(self.position)]
        return [event for event in found if not isinstance(event, WorkerChanged)]

    async def counts(self) -> BatchCounts:
        return await self.desk.client.counts("b")

    async def fields(self, *names: str) -> list[str | None]:
        values = await self.desk.redis.hmget(self.desk.keys.job(JOB), names)
        return [value.decode() if value is not None else None for value in values]

    async def is_over(self, *ends: tuple[str, int]) -> None:
        """The job has just this result (worker, status), and nothing else is left of it."""
        assert [(r.worker, r.status_code) for r in await self.desk.results()] == list(ends)
        keys = self.desk.keys
        devices = [keys.device("slow"), keys.device("quick")]
        assert await self.desk.redis.exists(keys.job(JOB), keys.body(JOB)) == 0
        assert [await self.desk.redis.xlen(device) for device in devices] == [0, 0]
        assert await self.desk.waiting() == []
        assert (await self.counts()).ended == 1


def aborted(delivery: Delivery, prompt_tokens: int = 8, output_tokens: int = 3) -> Outcome:
    return Outcome(delivery, 0, b"", prompt_tokens, output_tokens, ABORTED)


async def open_race(desk: Desk) -> Race:
    """Both sides dispatched, none taken."""
    slow, quick = await desk.worker("slow", "s1"), await desk.worker("quick", "q1")
    await desk.submit("a")
    [job] = await desk.waiting()
    await desk.scheduler.dispatch({"slow": [Placement(job, 10, 20, "slow", 30.0, "first")]})
    assert await desk.scheduler.copy([(JOB, "quick", 11, 21, 3.0)]) == {JOB}
    return Race(desk, slow, quick)


@pytest.fixture(name="race")
async def race_fixture(desk: Desk) -> Race:
    """A race on each server."""
    return await open_race(desk)

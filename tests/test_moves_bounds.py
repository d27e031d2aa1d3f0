"""A full backlog, completion windows, jobs that are cancelled: the atomic moves behind them, on each server."""

from __future__ import annotations

import pytest
from cluster_fixtures import READY
from move_fixtures import (
    BODY,
    Desk,
    by_id,
    die,
    ended,
    held_bytes,
    letters,
    may_pass,
    submit_within,
)

from broker.errors import QueueFullError, UsageError
from broker.jobs import BATCH_CANCELLED, BATCH_EXPIRED, Outcome, job_id
from broker.policies.base import Placement


class TestBacklog:
    async def test_no_more_jobs_than_may_wait(self, desk: Desk) -> None:
        assert await submit_within(desk, "a", "b", max_jobs=3) == 2
        with pytest.raises(QueueFullError, match="full"):
            await submit_within(desk, "c", "d", max_jobs=3)
        assert (await desk.client.counts("b")).total == 2, "all or none"
        assert await submit_within(desk, "c", max_jobs=3) == 1

    async def test_what_waits_for_another_attempt_counts(self, desk: Desk) -> None:
        worker = await desk.worker()
        [delivery] = await desk.deliver("a", worker=worker)
        await worker.complete([may_pass(delivery, retry_s=1000)])
        with pytest.raises(QueueFullError):
            await submit_within(desk, "b", max_jobs=1)

    async def test_what_is_there_already_needs_no_room(self, desk: Desk) -> None:
        await submit_within(desk, "a", "b")
        assert await submit_within(desk, "b", "a", max_jobs=1, max_bytes=1) == 0

    async def test_into_an_empty_backlog_some_always_go(self, desk: Desk) -> None:
        assert await submit_within(desk, "a", "b", max_jobs=1, max_bytes=1) == 2

    async def test_no_more_bytes_than_may_be_held_running_jobs_included(self, desk: Desk) -> None:
        worker = await desk.worker()
        [running] = await desk.deliver("a", worker=worker)
        await submit_within(desk, "b")
        assert await held_bytes(desk) == 2 * len(BODY)
        with pytest.raises(QueueFullError):
            await submit_within(desk, "c", max_bytes=2 * len(BODY))
        await worker.complete([ended(running)])
        assert await submit_within(desk, "c", max_bytes=2 * len(BODY)) == 1

    async def test_bytes_are_let_go_however_a_job_ends(self, desk: Desk) -> None:
        worker = await desk.worker()
        good, bad, *_ = await desk.deliver(*"abcd", worker=worker)
        await submit_within(desk, "w1", "w2", batch="waits")
        await worker.complete([ended(good), ended(bad, 400)])
        await desk.client.cancel_jobs([job_id("b", "c")])
        await desk.client.cancel("b")
        await die(desk)
        await desk.client.cancel("waits")
        await desk.scheduler.discard(await desk.waiting())
        assert await held_bytes(desk) == 0

    async def test_a_forged_count_is_put_right(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.redis.set(desk.keys.held_bytes, "many")
        [delivery] = await desk.deliver("a", worker=worker)
        assert await held_bytes(desk) == len(BODY)
        await desk.redis.set(desk.keys.held_bytes, 1)
        await worker.complete([ended(delivery)])
        assert await held_bytes(desk) == 0


class TestCompletionWindow:
    async def over(self, desk: Desk, batch: str = "b") -> None:
        """The window is over now."""
        await desk.redis.zadd(desk.keys.windows, {batch: 1})
        await desk.scheduler.move_due()

    async def test_what_waits_expires_and_says_so(self, desk: Desk) -> None:
        await submit_within(desk, "a", "b", completion_window_s=1000)
        await submit_within(desk, "late", completion_window_s=5000)
        created = float(await desk.redis.hget(desk.keys.batch("b"), "created"))
        assert abs(await desk.redis.zscore(desk.keys.windows, "b") - created - 1000) < 1, "its first job set it"
        await desk.scheduler.move_due()
        assert await desk.results() == []
        jobs = await desk.waiting()
        await self.over(desk)
        await desk.scheduler.discard(jobs)
        results = await desk.results()
        assert [r.error_code for r in results] == [BATCH_EXPIRED] * 3
        assert "completion window" in results[0].error_message
        counts = await desk.client.counts("b")
        assert (counts.state, counts.failed, counts.complete) == ("expired", 3, True)
        assert await letters(desk) == {}
        with pytest.raises(UsageError, match="completion window"):
            await submit_within(desk, "later")

    async def test_workers_are_told_and_what_comes_back_expires(self, desk: Desk) -> None:
        worker = await desk.worker()
        await submit_within(desk, "a", "b", completion_window_s=1000)
        await desk.dispatch()
        running, handed = await worker.take(2)
        await self.over(desk)
        _, orders = await worker.orders("0")
        assert orders == [{"order": "expire", "batch": "b"}]
        await worker.complete([Outcome(running, 0, b"", error_code=BATCH_EXPIRED, error_message="late")])
        await worker.leave()
        assert handed.custom_id == "b"
        assert [r.error_code for r in await desk.results()] == [BATCH_EXPIRED] * 2
        assert await letters(desk) == {}

    async def test_a_batch_that_is_complete_or_cancelled_stays_as_it_is(self, desk: Desk) -> None:
        worker = await desk.worker()
        await submit_within(desk, "a", completion_window_s=1000)
        await desk.dispatch()
        await worker.complete([ended(d) for d in await worker.take(10)])
        await desk.client.seal("b")
        await submit_within(desk, "a", batch="other", completion_window_s=1000)
        await desk.client.cancel("other")
        for batch, state in (("b", "open"), ("other", "cancelled")):
            await self.over(desk, batch)
            assert (await desk.client.counts(batch)).state == state
        assert await desk.redis.exists(desk.keys.windows) == 0


class TestCancelJobs:
    async def test_wherever_it_is_it_ends_at_once(self, desk: Desk) -> None:
        worker = await desk.worker()
        running, delayed = await desk.deliver("running", "delayed", worker=worker)
        await worker.complete([may_pass(delayed, retry_s=1000)])
        await desk.submit("bound")
        await desk.dispatch()
        await desk.submit("waits", "stays")
        names = ("running", "delayed", "bound", "waits")
        assert await desk.client.cancel_jobs([job_id("b", name) for name in (*names, "none")]) == 4
        results = by_id(await desk.results())
        assert {c: r.error_code for c, r in results.items()} == dict.fromkeys(names, BATCH_CANCELLED)
        assert (await desk.client.counts("b")).cancelled == 4
        assert (await desk.depth(), await desk.scheduler.delayed()) == (0, 0)
        _, orders = await worker.orders("0")
        assert orders == [{"order": "cancel_job", "job": running.job_id, "entry": running.entry_id}]
        assert await worker.complete([ended(running)]) == [True], "what it had computed in vain"
        assert (await desk.client.counts("b")).wasted_prompt_tokens == 20
        await desk.dispatch()
        assert [d.custom_id for d in await worker.take(10)] == ["stays"]
        assert await desk.client.cancel_jobs([job_id("b", "running")]) == 0

    async def test_both_sides_of_a_job_that_runs_twice(self, desk: Desk) -> None:
        workers = [await desk.worker("w"), await desk.worker("v")]
        await desk.submit("a")
        [job] = await desk.waiting()
        await desk.scheduler.dispatch({"w": [Placement(job, 10, 20, "w")]})
        await desk.scheduler.copy([(job.job_id, "v", 10, 20, 1.0)])
        for worker in workers:
            await worker.take(1)
        assert await desk.client.cancel_jobs([job.job_id]) == 1
        for worker in workers:
            _, orders = await worker.orders("0")
            assert [order["order"] for order in orders] == ["cancel_job"]
            await worker.heartbeat(READY)
        assert (await desk.depth("w"), await desk.depth("v")) == (0, 0)

    async def test_a_timeout_reaches_the_worker(self, desk: Desk) -> None:
        worker = await desk.worker()
        await submit_within(desk, "a", timeout_s=1.5)
        await submit_within(desk, "b")
        await desk.dispatch()
        assert [d.timeout_s for d in await worker.take(10)] == [1.5, 0]

"""Aborting one delivery whose job ended elsewhere: in the executor, and in a running worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

import pytest
from cluster_fixtures import CHAT, Cluster, ManualEngine, cluster_of, eventually, exactly_once

from broker.jobs import ABORTED, Delivery, Outcome, job_id
from broker.policies.base import Placement
from broker.store.scheduler import SchedulerStore
from workers.engines.base import Load
from workers.executor import Executor


class CountingEngine(ManualEngine):
    """Tells of as many output tokens as the test says."""

    output_tokens = 0

    def load(self) -> Load:
        return Load(len(self.running), 0, 0, 0, self.output_tokens, 1 << 30)


def delivery(entry_id: str = "1-0", job: str = "b.x", max_tokens: int = 0) -> Delivery:
    return Delivery(entry_id, job, "b", "x", 1, "1.0", "2.0", CHAT, b"{}", prompt_tokens=12, max_tokens=max_tokens)


async def sent(executor: Executor) -> list[Outcome]:
    """What there is to send."""
    outcomes: list[Outcome] = []

    async def take(chunk: Sequence[Outcome]) -> list[bool]:
        outcomes.extend(chunk)
        return [True] * len(chunk)

    await executor.flush(take)
    return outcomes


class TestExecutor:
    @pytest.mark.parametrize(("max_tokens", "expected"), [(0, 60), (50, 50), (99, 60)])
    async def test_it_is_aborted_and_what_it_had_computed_is_reported(self, max_tokens: int, expected: int) -> None:
        engine = CountingEngine()
        executor = Executor(engine)
        engine.output_tokens = 1000
        executor.load()
        executor.start(delivery(max_tokens=max_tokens))
        await eventually(lambda: engine.running)
        engine.output_tokens = 1060
        executor.cancel_job("b.x", "1-0")
        executor.cancel_job("b.x", "1-0")
        await executor.until(lambda: executor.running == 0)
        assert engine.aborted == ["b.x-1-0"]
        [outcome] = await sent(executor)
        assert (outcome.error_code, outcome.prompt_tokens, outcome.output_tokens) == (ABORTED, 12, expected)
        assert executor.jobs_total == 0

    async def test_one_the_engine_has_not_begun_wasted_nothing(self) -> None:
        engine = CountingEngine()
        executor = Executor(engine)
        executor.start(delivery())
        executor.cancel_job("b.x", "1-0")
        await executor.until(lambda: executor.running == 0)
        [outcome] = await sent(executor)
        assert (outcome.error_code, outcome.prompt_tokens, outcome.output_tokens) == (ABORTED, 0, 0)
        assert engine.started == []

    async def test_one_that_comes_after_its_order_is_not_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("workers.executor._DELIVERIES_KEPT", 2)
        engine = CountingEngine()
        executor = Executor(engine)
        for entry in ("long ago", "1-0", "2-0"):
            executor.cancel_job("b.x", entry)
        for entry in ("1-0", "2-0", "3-0"):
            executor.start(delivery(entry))
        await eventually(lambda: engine.running)
        assert [(o.delivery.entry_id, o.error_code) for o in await sent(executor)] == [
            ("1-0", ABORTED),
            ("2-0", ABORTED),
        ]
        assert engine.started == ["b.x-3-0"]
        await executor.drop_all()

    @pytest.mark.parametrize(("job", "entry"), [("b.y", "1-0"), ("b.x", "2-0"), ("", "")])
    async def test_an_order_for_another_delivery_touches_nothing(self, job: str, entry: str) -> None:
        engine = CountingEngine()
        executor = Executor(engine)
        executor.start(delivery())
        await eventually(lambda: engine.running)
        executor.cancel_job(job, entry)
        engine.finish()
        await executor.until(lambda: executor.running == 0)
        assert [o.status_code for o in await sent(executor)] == [200]
        assert engine.aborted == []

    async def test_a_response_that_was_there_is_sent(self) -> None:
        engine = CountingEngine()
        executor = Executor(engine)
        executor.start(delivery())
        await eventually(lambda: engine.running)
        engine.finish()
        await executor.until(lambda: executor.running == 0)
        executor.cancel_job("b.x", "1-0")
        assert [o.status_code for o in await sent(executor)] == [200]

    async def test_two_deliveries_of_one_job_are_two(self) -> None:
        engine = CountingEngine()
        executor = Executor(engine)
        executor.start(delivery("1-0"))
        executor.start(delivery("2-0"))
        await eventually(lambda: len(engine.running) == 2)
        assert executor.running == 2
        executor.cancel_job("b.x", "1-0")
        await executor.until(lambda: executor.running == 1)
        engine.finish()
        await executor.until(lambda: executor.running == 0)
        assert [(o.delivery.entry_id, o.status_code) for o in await sent(executor)] == [("1-0", 0), ("2-0", 200)]

    async def test_its_batch_cancelled_too_it_is_still_one_outcome(self) -> None:
        engine = CountingEngine()
        executor = Executor(engine)
        executor.start(delivery())
        await eventually(lambda: engine.running)
        executor.cancel_job("b.x", "1-0")
        executor.cancel_batch("b")
        await executor.until(lambda: executor.running == 0)
        assert [o.error_code for o in await sent(executor)] == [ABORTED]


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(redis_url, pool) as running:
        yield running


async def leader(cluster: Cluster, owner: str = "test") -> SchedulerStore:
    """What the scheduler of that name may do."""
    store = SchedulerStore(cluster.redis, cluster.settings.pool, owner, lease_ttl_s=60, result_ttl_s=60)
    assert await store.hold_lease()
    await store.prepare()
    return store


async def race(cluster: Cluster, store: SchedulerStore, slow: ManualEngine, quick: ManualEngine) -> str:
    """Run the one request of a new batch on worker ``slow`` and a copy of it on ``quick``."""
    batch = await cluster.submit(1)
    jobs = await store.read_requests("normal", 9)
    await store.dispatch({"slow": [Placement(job, 9, 9, "slow") for job in jobs]})
    await eventually(lambda: slow.running)
    job = job_id(batch, "r0")
    assert await store.copy([(job, "quick", 9, 9, 1.0)]) == {job}
    await eventually(lambda: quick.running)
    return batch


class TestWorker:
    async def test_the_loser_is_aborted_in_its_engine_and_its_seat_is_free(
        self, cluster: Cluster, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        slow, quick = ManualEngine(seats=1), ManualEngine(seats=1)
        await cluster.join("slow", slow)
        await cluster.join("quick", quick)
        store = await leader(cluster)
        batch = await race(cluster, store, slow, quick)
        quick.finish()
        exactly_once(await cluster.collect(batch), 1)
        await eventually(lambda: len(slow.aborted) == 1)
        assert not slow.running

        async def reported() -> bool:
            return (await cluster.client.counts(batch)).wasted_prompt_tokens == 9

        await eventually(reported)
        counts = await cluster.client.counts(batch)
        assert (counts.done, counts.copies, counts.copies_won) == (1, 1, 1)
        assert caplog.text == ""
        more = await cluster.submit(2, prefix="s")
        jobs = await store.read_requests("normal", 9)
        await store.dispatch({"slow": [Placement(job, 9, 9, "slow") for job in jobs]})
        await eventually(lambda: len(slow.running) == 2)  # one seat, and one more that waits inside the engine
        slow.finish()
        exactly_once(await cluster.collect(more), 2, "s")

    async def test_a_worker_that_dies_leaves_its_job_to_the_copy(self, cluster: Cluster) -> None:
        slow, quick = ManualEngine(), ManualEngine()
        running = await cluster.join("slow", slow)
        await cluster.join("quick", quick)
        store = await leader(cluster)
        batch = await race(cluster, store, slow, quick)
        await running.stop(at_once=True)
        assert await cluster.waiting() == 0
        quick.finish()
        results = await cluster.collect(batch)
        exactly_once(results, 1)
        assert [(r.worker, r.attempt) for r in results] == [("quick", 1)]

    async def test_an_engine_that_dies_leaves_its_job_to_the_original(self, cluster: Cluster) -> None:
        slow, quick = ManualEngine(), ManualEngine()
        await cluster.join("slow", slow)
        await cluster.join("quick", quick)
        store = await leader(cluster)
        batch = await race(cluster, store, slow, quick)
        quick.die()
        await eventually(lambda: depth_is(cluster, "quick", 0))
        slow.finish()
        results = await cluster.collect(batch)
        exactly_once(results, 1)
        assert [(r.worker, r.attempt) for r in results] == [("slow", 1)]

    @pytest.mark.parametrize("order", [{"order": "cancel_job"}, {"order": "cancel_job", "job": "b.x"}])
    async def test_an_order_that_names_no_entry_is_skipped(
        self, cluster: Cluster, caplog: pytest.LogCaptureFixture, order: dict[str, str]
    ) -> None:
        await cluster.join("w", ManualEngine())
        await cluster.redis.xadd(cluster.keys.control("w"), order)  # type: ignore[arg-type]  # redis-py's types
        await eventually(lambda: "'cancel_job'" in caplog.text)

    async def test_a_scheduler_hears_that_the_loser_is_gone_and_fills_its_seat(self, cluster: Cluster) -> None:
        """Each device takes just two jobs: unless both sides were told of, one of them would stay blocked."""
        slow, quick = ManualEngine(seats=1), ManualEngine(seats=1)
        await cluster.join("slow", slow)
        await cluster.join("quick", quick)
        store = await leader(cluster)
        batch = await race(cluster, store, slow, quick)
        await store.release_lease()
        cluster.schedule("new")
        await cluster.leading("new")
        more = await cluster.submit(3, prefix="s")
        await eventually(lambda: len(slow.running) + len(quick.running) == 4)
        assert await cluster.waiting() == 1
        quick.finish(1)
        await eventually(lambda: slow.aborted)
        await cluster.finish(batch, quick)
        await cluster.finish(more, slow, quick)
        exactly_once(await cluster.collect(batch), 1)
        exactly_once(await cluster.collect(more), 3, "s")


async def depth_is(cluster: Cluster, worker: str, depth: int) -> bool:
    return await cluster.depth(worker) == depth


async def test_cancelling_aborts_what_waits_in_the_event_loop_too() -> None:
    """A delivery whose response came in the same moment as the order ends once, whichever it is."""
    engine = CountingEngine()
    executor = Executor(engine)
    executor.start(delivery())
    await eventually(lambda: engine.running)
    engine.finish()
    executor.cancel_job("b.x", "1-0")
    await executor.until(lambda: executor.running == 0)
    assert len(await sent(executor)) == 1
    await asyncio.sleep(0)
    assert executor.idle

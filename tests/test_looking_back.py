"""Jobs and batches found again in the store: what was predicted of them, and how it went."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
from move_fixtures import TTL_S, Desk, ended, open_desk

from broker.client import Client
from broker.errors import UnknownBatchError
from broker.job_record import UnknownJobError, short_id
from broker.jobs import JobState, job_id
from broker.policies.base import Placement
from broker.store.worker import WorkerStore
from tokenyard.batch_reading import read_report
from tokenyard.batch_report import PredictionError
from tokenyard.job_explanation import REASONS, Lengths
from tokenyard.job_lookup import explain_job


@pytest.fixture
async def desk(redis_url: str, pool: str) -> AsyncGenerator[Desk]:
    async with open_desk(redis_url, pool) as desk:
        yield desk


@pytest.fixture
async def client(desk: Desk) -> Client:
    client = Client(desk.redis, TTL_S)
    await client.registry.add_pool(desk.pool, [f"model-{desk.pool}"])
    return client


async def dispatch(desk: Desk, worker: WorkerStore, predicted_s: float, output_tokens: int, reason: str) -> None:
    jobs = await desk.waiting()
    placed = [Placement(job, 11, output_tokens, worker.worker, predicted_s, reason) for job in jobs]
    assert await desk.scheduler.dispatch({worker.worker: placed}) == (set(), set())


async def test_a_job_all_the_way(desk: Desk, client: Client, pool: str) -> None:
    worker = await desk.worker()
    batch = f"batch-{pool}"
    await desk.submit("a", batch=batch)

    waits = await explain_job(client, "a", batch)
    assert (waits.job.state, waits.job.worker, waits.job.dispatched) == (JobState.QUEUED, "", 0)
    assert waits.lengths == Lengths(8, 7, known=False)  # 30 bytes, max_tokens 7

    await dispatch(desk, worker, 2.5, 6, "share")
    bound = await explain_job(client, "a", batch)
    assert (bound.job.state, bound.job.worker, bound.because) == (JobState.DISPATCHED, "w", REASONS["share"])
    assert (bound.job.predicted_s, bound.job.predicted_output_tokens, bound.actual_s) == (2.5, 6, None)
    assert waits.job.submitted <= bound.job.dispatched <= bound.now
    assert [row.chosen for row in bound.devices] == [True]

    [delivery] = await worker.take(1)
    assert await worker.complete([ended(delivery)]) == [True]
    over = await explain_job(client, "a", batch)
    assert (over.job.state, over.job.worker, over.because) == (JobState.DONE, "w", REASONS["share"])
    assert (over.job.predicted_s, over.job.predicted_output_tokens, over.job.output_tokens) == (2.5, 6, 5)
    assert over.job.dispatched == bound.job.dispatched
    assert over.actual_s is not None
    assert over.lengths == Lengths(10, 5, known=True)


async def test_each_job_of_a_batch_is_found(desk: Desk, client: Client, pool: str) -> None:
    worker = await desk.worker()
    batch = f"batch-{pool}"
    names = [f"r{n}" for n in range(20)]
    await desk.submit(*names, batch=batch)
    await dispatch(desk, worker, 1.0, 5, "spare")
    await worker.complete([ended(delivery, 200 if n % 2 else 500) for n, delivery in enumerate(await worker.take(20))])
    for n, name in enumerate(names):
        found = await explain_job(client, job_id(batch, name), None)
        assert (found.job.custom_id, found.job.state) == (name, JobState.DONE if n % 2 else JobState.FAILED)


async def test_a_job_that_came_back_tells_of_its_next_attempt(desk: Desk, client: Client, pool: str) -> None:
    worker = await desk.worker()
    batch = f"batch-{pool}"
    await desk.submit("a", batch=batch)
    await dispatch(desk, worker, 1.0, 5, "spare")
    await worker.take(1)
    await worker.hand_back(also_running=True)
    found = await explain_job(client, "a", batch)
    assert (found.job.state, found.job.attempt, found.job.worker, found.because) == (JobState.QUEUED, 2, "", "")


async def test_a_job_that_runs_twice(desk: Desk, client: Client, pool: str) -> None:
    slow, fast = await desk.worker("slow"), await desk.worker("fast")
    batch = f"batch-{pool}"
    await desk.submit("a", batch=batch)
    await dispatch(desk, slow, 9.0, 5, "share")
    await slow.take(1)
    assert await desk.scheduler.copy([(job_id(batch, "a"), "fast", 11, 5, 1.5)]) == {job_id(batch, "a")}
    both = (await explain_job(client, "a", batch)).job
    assert (both.worker, both.copy) == ("slow", "fast")
    assert both.dispatched <= both.copy_dispatched
    [delivery] = await fast.take(1)
    assert await fast.complete([ended(delivery)]) == [True]
    over = await explain_job(client, "a", batch)
    assert (over.job.worker, over.because, over.job.predicted_s) == ("fast", REASONS["copy"], 1.5)
    report, _ = await read_report(client, batch)
    assert (report.copies, report.copies_won) == (1, 1)


async def test_what_is_not_there(desk: Desk, client: Client, pool: str) -> None:
    batch = f"batch-{pool}"
    await desk.submit("a", batch=batch)
    with pytest.raises(UnknownJobError, match="has no job with custom_id b"):
        await explain_job(client, "b", batch)
    with pytest.raises(UnknownBatchError, match="no batch other"):
        await explain_job(client, "a", f"other-{pool}")
    with pytest.raises(UnknownJobError, match=f"no job other-{pool}.x"):
        await explain_job(client, f"other-{pool}.x", None)


async def test_rubbish_is_no_job(desk: Desk, client: Client, pool: str) -> None:
    worker = await desk.worker()
    batch = f"batch-{pool}"
    await desk.submit("a", "b", batch=batch)
    await dispatch(desk, worker, 1.0, 5, "spare")
    await worker.complete([ended(delivery) for delivery in await worker.take(2)])
    first, second, unknown = job_id(batch, "a"), job_id(batch, "b"), f"{batch}.made-up"
    index = desk.keys.ended(batch)
    entries = dict(await desk.redis.hgetall(index))
    await desk.redis.hset(index, mapping={short_id(first): "rubbish", "made-up": entries[short_id(second).encode()]})
    await desk.redis.hset(desk.keys.job(f"{batch}.by-hand"), mapping={"state": "lost"})
    await desk.redis.set(desk.keys.job(f"{batch}.no-hash"), "rubbish")
    for identity in (first, unknown, f"{batch}.by-hand", f"{batch}.no-hash"):
        with pytest.raises(UnknownJobError):
            await explain_job(client, identity, None)
    assert (await explain_job(client, second, None)).job.custom_id == "b"
    await desk.redis.delete(desk.keys.job(f"{batch}.by-hand"), desk.keys.job(f"{batch}.no-hash"))


async def test_the_report_knows_what_was_predicted(desk: Desk, client: Client, pool: str) -> None:
    worker = await desk.worker()
    batch = f"batch-{pool}"
    await desk.submit("a", "b", batch=batch)
    await dispatch(desk, worker, 1000.0, 10, "fastest")
    await worker.complete([ended(delivery) for delivery in await worker.take(2)])
    report, jobs = await read_report(client, batch)
    assert (report.done, len(jobs.ran())) == (2, 2)
    [row] = report.devices
    assert (row.name, row.jobs, row.prompt_tokens, row.output_tokens) == ("w", 2, 20, 10)
    assert row.length_error == report.length_error == PredictionError(2, 1.0, 1.0)
    assert jobs.predicted_s.tolist() == [1000, 1000]

"""The client against a running cluster: submitting, following, collecting, cancelling, over one pool and over many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis.exceptions as rex
from cluster_fixtures import Cluster, ManualEngine, cluster_of, eventually, exactly_once, instant_engine

from broker.client import connect_client, new_batch_id
from broker.errors import RedisUnavailableError, UnknownBatchError, UsageError
from broker.jobs import BatchCounts, Result, job_id
from broker.openai_batch import RequestLine


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(redis_url, pool) as running:
        yield running


class TestSubmit:
    async def test_it_says_what_is_new_known_and_refused(self, cluster: Cluster) -> None:
        await cluster.register_model()
        requests = cluster.requests(5)
        report = await cluster.client.submit(requests[:3], cluster.batch)
        assert (report.accepted, report.known, report.refused) == (3, 0, [])
        report = await cluster.client.submit(requests, cluster.batch)
        assert (report.accepted, report.known, report.refused) == (2, 3, [])
        assert (await cluster.client.counts(cluster.batch)).total == 5

    async def test_an_unknown_model_is_refused_by_name_and_the_rest_goes_on(self, cluster: Cluster) -> None:
        await cluster.register_model()
        stranger = RequestLine("odd", "/v1/chat/completions", "no-such-model", b"{}", 0, 7)
        report = await cluster.client.submit([stranger, *cluster.requests(2)], cluster.batch, source="in.jsonl")
        assert report.accepted == 2
        [refused] = report.refused
        assert (refused.line, refused.custom_id, refused.code) == (7, "odd", "model_not_found")
        assert refused.message.startswith("in.jsonl:7: no pool serves model 'no-such-model'; served here: ")
        assert cluster.model in refused.message

    async def test_requests_may_come_one_by_one_and_any_number_of_them(self, cluster: Cluster) -> None:
        await cluster.register_model()
        report = await cluster.client.submit(iter(cluster.requests(1001)), cluster.batch)
        assert report.accepted == 1001
        assert (await cluster.monitor.waiting())["normal"] == 1001

    async def test_long_requests_go_in_calls_of_bounded_size(self, cluster: Cluster) -> None:
        await cluster.register_model()
        sizes: list[int] = []

        def note(args: tuple[object, ...], answer: object) -> bool:
            del answer
            sizes.append(sum(len(arg) for arg in args if isinstance(arg, str | bytes)))
            return False

        cluster.redis.lose = note
        body = b'{"pad": "' + b"x" * 1_500_000 + b'"}'
        requests = [RequestLine(str(i), "/v1/chat/completions", cluster.model, body, 0, i) for i in range(5)]
        await cluster.client.submit(requests, cluster.batch)
        assert max(sizes) < 4_000_000
        assert await cluster.redis.get(cluster.keys.body(job_id(cluster.batch, "4"))) == body

    async def test_after_a_lost_answer_submitting_again_doubles_nothing(self, cluster: Cluster) -> None:
        await cluster.register_model()
        cluster.redis.lose = lambda args, answer: answer == 5
        with pytest.raises(rex.ConnectionError):
            await cluster.client.submit(cluster.requests(5), cluster.batch)
        report = await cluster.client.submit(cluster.requests(5), cluster.batch)
        assert (report.accepted, report.known) == (0, 5)

    async def test_a_cancelled_batch_takes_no_more(self, cluster: Cluster) -> None:
        await cluster.register_model()
        await cluster.submit(2, batch=cluster.batch)
        await cluster.client.cancel(cluster.batch)
        with pytest.raises(UsageError, match="is cancelled; submit to a new one"):
            await cluster.client.submit(cluster.requests(3), cluster.batch)

    def test_batch_ids_differ(self) -> None:
        assert len({new_batch_id() for _ in range(100)}) == 100


class TestResults:
    async def test_they_come_while_the_batch_runs_and_end_with_it(self, cluster: Cluster) -> None:
        engine = ManualEngine(seats=4)
        await cluster.join("w", engine)
        cluster.schedule()
        batch = await cluster.submit(8)
        found: list[Result] = []

        async def follow() -> None:
            async for chunk in cluster.client.results(batch):
                found.extend(chunk)

        following = asyncio.ensure_future(follow())
        for count in range(1, 9):
            await eventually(lambda: engine.running)
            engine.finish(1)
            await eventually(lambda count=count: len(found) == count)
        async with asyncio.timeout(10):
            await following
        exactly_once(found, 8)

    async def test_they_can_be_read_again_and_by_many(self, cluster: Cluster) -> None:
        await cluster.join("w", instant_engine(cluster.model))
        cluster.schedule()
        batch = await cluster.submit(600)
        for results in await asyncio.gather(*(cluster.collect(batch) for _ in range(3))):
            exactly_once(results, 600)
        exactly_once(await cluster.collect(batch), 600)

    async def test_they_wait_for_the_seal_and_more_requests_may_come_till_then(self, cluster: Cluster) -> None:
        await cluster.join("w", instant_engine(cluster.model))
        cluster.schedule()
        requests = cluster.requests(6)
        await cluster.client.submit(requests[:3], cluster.batch)
        following = asyncio.ensure_future(cluster.collect(cluster.batch))
        await eventually(lambda: ended(cluster, 3))
        assert not following.done()
        await cluster.client.submit(requests[3:], cluster.batch)
        await cluster.client.seal(cluster.batch)
        exactly_once(await following, 6)

    async def test_an_unknown_batch_is_named(self, cluster: Cluster) -> None:
        with pytest.raises(UnknownBatchError, match="no batch nothing: `tokenyard status`"):
            await cluster.collect("nothing")
        with pytest.raises(UnknownBatchError):
            await cluster.client.counts("nothing")
        with pytest.raises(UnknownBatchError):
            await cluster.client.cancel("nothing")

    async def test_leaving_the_loop_early_leaves_nothing_running(self, cluster: Cluster) -> None:
        await cluster.join("w", instant_engine(cluster.model))
        cluster.schedule()
        batch = await cluster.submit(5)
        await cluster.collect(batch)
        before = asyncio.all_tasks()
        results = cluster.client.results(batch)
        await anext(results)
        await results.aclose()
        assert asyncio.all_tasks() <= before

    async def test_what_is_forgotten_is_gone_and_can_be_run_again(self, cluster: Cluster) -> None:
        await cluster.join("w", instant_engine(cluster.model))
        cluster.schedule()
        await cluster.collect(await cluster.submit(3, batch=cluster.batch))
        await cluster.client.forget(cluster.batch)
        with pytest.raises(UnknownBatchError):
            await cluster.client.counts(cluster.batch)
        exactly_once(await cluster.collect(await cluster.submit(3, batch=cluster.batch)), 3)

    async def test_a_batch_of_which_everything_was_refused_is_no_batch(self, cluster: Cluster) -> None:
        await cluster.client.submit(cluster.requests(2), cluster.batch)
        await cluster.client.seal(cluster.batch)
        assert await cluster.client.pools_of(cluster.batch) == []


async def ended(cluster: Cluster, least: int) -> bool:
    return (await cluster.client.counts(cluster.batch)).ended >= least


class TestManyPools:
    async def test_each_request_goes_to_the_pool_of_its_model(self, redis_url: str, pool: str) -> None:
        async with cluster_of(redis_url, f"{pool}-a") as first, cluster_of(redis_url, f"{pool}-b") as second:
            await first.join("w", instant_engine(first.model))
            await second.join("w", instant_engine(second.model))
            requests = [r for pair in zip(first.requests(5, "a"), second.requests(5, "b"), strict=True) for r in pair]
            report = await first.client.submit(requests, first.batch)
            await first.client.seal(first.batch)
            assert report.accepted == 10
            assert await first.client.pools_of(first.batch) == [f"{pool}-a", f"{pool}-b"]
            assert [(await c.monitor.waiting())["normal"] for c in (first, second)] == [5, 5]
            counts = await first.client.counts(first.batch)
            assert (counts.total, counts.sealed, counts.complete) == (10, True, False)
            first.schedule()
            second.schedule()
            results = await first.collect(first.batch)
            assert sorted(r.custom_id for r in results) == sorted(f"{p}{i}" for p in "ab" for i in range(5))
            assert (await first.client.counts(first.batch)).complete

    async def test_cancelling_reaches_all_of_them(self, redis_url: str, pool: str) -> None:
        async with cluster_of(redis_url, f"{pool}-a") as first, cluster_of(redis_url, f"{pool}-b") as second:
            await first.register_model()
            await second.register_model()
            await first.client.submit(first.requests(2, "a") + second.requests(3, "b"), first.batch)
            counts = await first.client.cancel(first.batch)
            assert (counts.total, counts.state, counts.sealed) == (5, "cancelled", True)
            first.schedule()
            second.schedule()
            assert len(await first.collect(first.batch)) == 5

    async def test_a_model_belongs_to_the_pool_that_came_first(self, cluster: Cluster, pool: str) -> None:
        await cluster.register_model()
        await cluster.register_model()
        with pytest.raises(UsageError, match=f"is served by pool '{pool}'; use --pool {pool}"):
            await cluster.client.registry.add_pool("another", [cluster.model])


class TestCounts:
    def test_they_add_up_over_pools(self) -> None:
        first = BatchCounts(3, 1, 1, 1, 10, 20, sealed=True)
        second = BatchCounts(2, 1, 0, 0, 1, 2, sealed=True, state="cancelled")
        assert first + second == BatchCounts(5, 2, 1, 1, 11, 22, sealed=True, state="cancelled")
        assert (first.ended, first.complete) == (3, True)
        assert not second.complete

    def test_a_batch_that_is_open_in_one_pool_is_not_complete(self) -> None:
        assert not (BatchCounts(1, 1, sealed=True) + BatchCounts(1, 1)).complete


async def test_connecting_to_nobody_is_one_clear_error() -> None:
    with pytest.raises(RedisUnavailableError, match="is it running"):
        async with connect_client("unix:///no/such.sock"):
            pass

"""The planner's looks against a real server, with a search that the test steers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec
import pytest
from cluster_fixtures import Cluster, cluster_of, eventually, instant_engine
from move_fixtures import TTL_S

from broker.errors import UsageError
from broker.pool_plan import PlannedWorker, PoolPlan
from broker.profiles import ProfileRecord
from broker.recent_mix import RecentMix
from broker.store.plans import PlanStore
from broker.store.scheduler import SchedulerStore
from planner.replanning import LookTerms, Replanner
from planner.resizing import ResizeTerms, same_workers

NOW = LookTerms(watch_s=0, resize=ResizeTerms(looks=1, hold_s=0, least_interval_s=0))


class Menu:
    """Knows some pools by the tokens a second that each does; proposes the fastest."""

    def __init__(self, **rates: float) -> None:
        self.rates = rates
        self.mixes: list[RecentMix] = []

    def propose(self, mix: RecentMix, profiles: Sequence[ProfileRecord]) -> PoolPlan:
        self.mixes.append(mix)
        if not self.rates:
            raise UsageError("no configuration fits: 3 GiB are missing")
        best = max(self.rates, key=self.rates.__getitem__)
        return PoolPlan(1, 0.0, (pool_worker(best),), self.rates[best], reason=f"the menu says {best}")

    def expected(
        self, workers: Sequence[PlannedWorker], mix: RecentMix, profiles: Sequence[ProfileRecord]
    ) -> float | None:
        return self.rates.get(workers[0].options[1])


def pool_worker(shape: str) -> PlannedWorker:
    return PlannedWorker("w", "h", ("--seats", shape), tokens_per_s=1.0)


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncGenerator[Cluster]:
    async with cluster_of(redis_url, pool) as cluster:
        yield cluster


def planner(cluster: Cluster, menu: Menu, terms: LookTerms = NOW) -> Replanner:
    return Replanner(cluster.redis, cluster.settings.pool, menu, terms)


def plans(cluster: Cluster) -> PlanStore:
    return PlanStore(cluster.redis, cluster.settings.pool)


async def end_jobs(cluster: Cluster, mix: str = "100:20000:30000") -> None:
    """What the scheduler notes when jobs have ended."""
    store = SchedulerStore(cluster.redis, cluster.settings.pool, "s", lease_ttl_s=9, result_ttl_s=TTL_S)
    await store.note_ended(mix)


async def stored(cluster: Cluster) -> PoolPlan:
    plan = (await plans(cluster).read()).plan
    assert plan is not None
    return plan


class TestLooks:
    async def test_without_history_nothing_is_planned(self, cluster: Cluster) -> None:
        assert "too few" in await planner(cluster, Menu(a=1.0)).look(at_once=True)
        assert (await plans(cluster).read()).token == ""

    async def test_the_mix_that_it_plans_for_is_the_one_that_ended(self, cluster: Cluster) -> None:
        menu = Menu(a=1.0)
        await end_jobs(cluster)
        await end_jobs(cluster, "20:1000:2000")
        await planner(cluster, menu).look()
        [mix] = menu.mixes
        assert (mix.jobs, mix.tokens) == (120, 53_000)

    async def test_a_better_plan_replaces_the_one_before(self, cluster: Cluster) -> None:
        await end_jobs(cluster)
        menu = Menu(a=100.0)
        look = planner(cluster, menu).look
        said = await look()
        assert said.startswith("plan 1: ")
        assert said.endswith("; the menu says a; no supervisor on h (1)")
        first = await stored(cluster)
        assert first.workers == (pool_worker("a"),)
        assert first.made > 1e9
        assert "is the best" in await look()
        menu.rates["b"] = 105.0
        assert "not worth a change" in await look()
        menu.rates["b"] = 200.0
        assert (await look()).startswith("plan 2: 1 workers, saves 4")
        second = await stored(cluster)
        await plans(cluster).mark_hosts(["h"])
        menu.rates["c"] = 400.0
        assert (await look()).endswith("; the menu says c")
        assert (second.version, second.workers, second.reason) == (2, (pool_worker("b"),), "the menu says b")

    async def test_asked_for_any_gain_is_enough_but_no_loss(self, cluster: Cluster) -> None:
        await end_jobs(cluster)
        menu = Menu(a=100.0)
        patient = planner(cluster, menu, LookTerms(watch_s=0))
        await patient.look()
        menu.rates["b"] = 110.0
        assert "not worth" in await patient.look()
        assert (await patient.look(at_once=True)).startswith("plan 2")

    async def test_the_gain_must_be_there_in_several_looks_whoever_looks(self, cluster: Cluster) -> None:
        await end_jobs(cluster)
        menu = Menu(a=100.0)
        terms = LookTerms(watch_s=0, resize=ResizeTerms(looks=3, hold_s=0, least_interval_s=0))
        await planner(cluster, menu, terms).look()
        menu.rates["b"] = 200.0
        said = [await planner(cluster, menu, terms).look() for _ in range(3)]
        assert ["not worth" in line for line in said] == [True, True, False]

    async def test_no_plan_leaves_the_pool_as_it_is(self, cluster: Cluster) -> None:
        await end_jobs(cluster)
        await planner(cluster, Menu(a=100.0)).look()
        said = await planner(cluster, Menu()).look(at_once=True)
        assert said == "no plan for this mix: no configuration fits: 3 GiB are missing; the pool stays as it is"
        assert (await stored(cluster)).version == 1

    async def test_the_operators_least_number_of_workers_stays(self, cluster: Cluster) -> None:
        await end_jobs(cluster)
        by_hand = PoolPlan(1, 0.0, (pool_worker("a"),), min_workers=3)
        await plans(cluster).write(by_hand, await plans(cluster).read())
        await planner(cluster, Menu(a=1.0, b=9.0)).look(at_once=True)
        assert ((await stored(cluster)).version, (await stored(cluster)).min_workers) == (2, 3)


class TestStore:
    async def test_of_many_writers_one_wins(self, cluster: Cluster) -> None:
        store = plans(cluster)
        for version in (1, 2, 3):
            before = await store.read()
            shapes = [PoolPlan(1, 0.0, (pool_worker(f"{version}-{n}"),)) for n in range(10)]
            written = await asyncio.gather(*(store.write(plan, before) for plan in shapes))
            [winner] = [plan for plan in written if plan is not None]
            assert winner.version == version
            assert same_workers(winner, await stored(cluster))

    @pytest.mark.parametrize(
        "garbage",
        [
            {"plan": b"{"},
            {"version": b"\xff\xfe", "plan": b"x"},
            {"version": b"9" * 50},
            {"version": str(2**53).encode(), "plan": msgspec.json.encode(PoolPlan(2**53, 0.0, ()))},
        ],
    )
    async def test_what_was_written_by_hand_is_told_and_replaced(
        self, cluster: Cluster, garbage: dict[str, bytes]
    ) -> None:
        store = plans(cluster)
        for name, value in garbage.items():
            await cluster.redis.execute_command("HSET", store.keys.plan, name, value)
        before = await store.read()
        assert before.plan is None or before.plan.version == 2**53
        written = await store.write(PoolPlan(1, 0.0, (pool_worker("a"),)), before)
        assert written is not None
        assert await stored(cluster) == written

    async def test_keys_of_another_kind(self, cluster: Cluster) -> None:
        store = plans(cluster)
        keys = store.keys
        for key in (keys.plan, keys.recent, keys.starts):
            await cluster.redis.set(key, "x")
        for key in (keys.looks, keys.turn):
            await cluster.redis.execute_command("RPUSH", key, "x")
        assert (await store.read()).plan is None
        assert (await store.recent_mix(60)).jobs == 0
        assert await store.start_seconds() is None
        assert await store.note() == b""
        assert not await store.take_turn("h", 1)
        await store.note_start("h", 1.0)
        assert await store.write(PoolPlan(1, 0.0, ()), await store.read()) is not None

    async def test_starts_are_those_of_the_slowest_host(self, cluster: Cluster) -> None:
        store = plans(cluster)
        for host, seconds in (("a", 5.0), ("b", 50.0), ("b", 20.0)):
            await store.note_start(host, seconds)
        await cluster.write(store.keys.starts, c="nan", d="-1", e="many")
        assert await store.start_seconds() == 20.0
        assert await cluster.redis.ttl(store.keys.starts) > 0

    async def test_one_host_at_a_time_has_its_turn(self, cluster: Cluster) -> None:
        store = plans(cluster)
        assert await store.take_turn("a", 60)
        assert not await store.take_turn("b", 60)
        assert await store.take_turn("a", 60)
        await store.end_turn("b")
        assert not await store.take_turn("b", 60)
        await store.end_turn("a")
        assert await store.take_turn("b", 60)
        assert await cluster.redis.pttl(store.keys.turn) > 0


async def test_the_scheduler_schedules_on_where_it_cannot_note_what_ended(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("broker.leadership._NOTE_S", 0.05)
    await cluster.redis.set(cluster.keys.recent, "not even a stream")
    cluster.schedule()
    worker = await cluster.join("w", instant_engine(cluster.model))
    await cluster.collect(await cluster.submit(5))
    await eventually(lambda: f"{cluster.keys.recent} is no stream" in caplog.text)
    assert len(await cluster.collect(await cluster.submit(5))) == 5
    await worker.stop()


async def test_the_scheduler_notes_what_ended(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.leadership._NOTE_S", 0.05)
    cluster.schedule()
    worker = await cluster.join("w", instant_engine(cluster.model))
    await cluster.collect(await cluster.submit(30))

    async def noted() -> Any:
        return (await plans(cluster).recent_mix(60)).jobs == 30

    await eventually(noted)
    mix = await plans(cluster).recent_mix(60)
    assert 30 * 3 >= sum(c.output_tokens for c in mix.classes) >= 30
    await worker.stop()

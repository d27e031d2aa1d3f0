"""Fair shares between tenants: the ledger by its rules, and a cluster in which one cannot hold another up."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from cli_process import tokenyard
from cluster_fixtures import CHAT, Cluster, ManualEngine, cluster_of, eventually, exactly_once, instant_engine
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from broker.client import new_batch_id
from broker.errors import UsageError
from broker.keys import FRESH_LEVELS, tenant_level
from broker.tenant_names import DEFAULT_TENANT, check_tenant, id_of_tenant, tenant_of
from broker.tenants import Ledger, TenantTerms, parse_all_terms, parse_terms

TENANTS = ("a", "b", "c")
weights = st.fixed_dictionaries({tenant: st.floats(0.1, 10.0) for tenant in TENANTS})
costs = st.lists(st.floats(0.01, 5.0), min_size=50, max_size=300)


def ledger_of(terms: Mapping[str, float], max_running: int = 0) -> Ledger:
    return Ledger({tenant: TenantTerms(weight, max_running) for tenant, weight in terms.items()})


class TestLedger:
    @given(weights, costs)
    def test_who_always_waits_gets_shares_by_weight(self, terms: dict[str, float], seconds: list[float]) -> None:
        """The bound of start-time fair queueing: virtual times differ by no more than a job of each."""
        ledger = ledger_of(terms)
        given: Counter[str] = Counter()
        most = max(seconds)
        for number, cost in enumerate(seconds):
            ledger.see_waiting(TENANTS)
            tenant = ledger.next(TENANTS)
            assert tenant is not None
            ledger.placed(f"j{number}", tenant, cost)
            given[tenant] += cost  # type: ignore[assignment]
            for one in TENANTS:
                for other in TENANTS:
                    ahead = given[one] / terms[one] - given[other] / terms[other]
                    assert ahead <= most / terms[one] + most / terms[other] + 1e-6

    @given(weights, costs, st.integers(1, 40))
    def test_who_comes_late_is_next_and_is_owed_nothing(
        self, terms: dict[str, float], seconds: list[float], comes: int
    ) -> None:
        ledger = ledger_of(terms)
        for number, cost in enumerate(seconds):
            waiting = TENANTS if number >= comes else ("a",)
            ledger.see_waiting(waiting)
            tenant = ledger.next(waiting)
            if number == comes:
                assert tenant != "a"
            assert tenant is not None
            ledger.placed(f"j{number}", tenant, cost)
        virtual = [ledger.accounts[tenant].virtual_s for tenant in TENANTS if tenant in ledger.accounts]
        assert max(virtual) - min(virtual) <= 2 * max(seconds) / min(terms.values()) + 1e-6

    @given(st.lists(st.tuples(st.floats(0.01, 5.0), st.floats(0.01, 5.0)), min_size=1, max_size=50))
    def test_what_was_measured_replaces_what_was_predicted(self, jobs: list[tuple[float, float]]) -> None:
        ledger = Ledger()
        ledger.see_waiting(["a"])
        for number, (predicted, _) in enumerate(jobs):
            ledger.placed(f"j{number}", "a", predicted)
        for number, (_, measured) in enumerate(jobs):
            ledger.ended(f"j{number}", measured)
            ledger.ended(f"j{number}", measured)  # an event may be written twice
        assert ledger.accounts["a"].virtual_s == pytest.approx(sum(measured for _, measured in jobs))
        assert ledger.accounts["a"].running == 0

    def test_what_came_back_has_cost_nothing(self) -> None:
        ledger = Ledger()
        ledger.see_waiting(["a"])
        ledger.placed("j", "a", 3.0)
        ledger.undo("j")
        ledger.undo("j")
        assert ledger.accounts["a"].virtual_s == 0
        assert ledger.accounts["a"].running == 0

    @given(st.integers(1, 5), st.lists(st.booleans(), min_size=1, max_size=100))
    def test_a_cap_is_kept(self, most: int, moves: list[bool]) -> None:
        ledger = ledger_of({"a": 1.0}, max_running=most)
        running: list[str] = []
        for number, place in enumerate(moves):
            ledger.see_waiting(["a"])
            if place and ledger.next(["a"]) == "a":
                ledger.placed(f"j{number}", "a", 1.0)
                running.append(f"j{number}")
            elif running:
                ledger.ended(running.pop(), 1.0)
            assert len(running) <= most
            assert ledger.room("a") == most - len(running)

    def test_accounts_of_who_is_gone_are_forgotten(self) -> None:
        ledger = Ledger()
        for number in range(1000):
            tenant = f"t{number}"
            ledger.see_waiting([tenant])
            assert ledger.next([tenant]) == tenant
            ledger.placed("j", tenant, 1.0)
            ledger.ended("j", 1.0)
        ledger.see_waiting(["z"])
        ledger.next(["z"])
        ledger.placed("k", "z", 2000.0)
        ledger.see_waiting(["z"])
        ledger.next(["z"])
        ledger.see_waiting(["z"])
        assert len(ledger.accounts) == 1


class TestTerms:
    @pytest.mark.parametrize("text", [b"", b"{}x", b"[]", b'{"weight": 0}', b'{"weight": -1}', b'{"wait": 1}', b"\xff"])
    def test_what_are_none(self, text: bytes) -> None:
        with pytest.raises(UsageError, match="not the terms of a tenant"):
            parse_terms(text)

    def test_each_that_is_none_is_named_and_the_others_hold(self) -> None:
        raw = {b"a": b'{"weight": 3}', b"b": b"x", b"\xff": b"{}", b"c" * 100: b"{}"}
        terms, problems = parse_all_terms(raw)
        assert terms == {"a": TenantTerms(3.0)}
        assert len(problems) == 3


class TestNames:
    @given(st.sampled_from(["acme", "a", "A-1_b", DEFAULT_TENANT]))
    def test_a_batch_says_whose_it_is(self, tenant: str) -> None:
        batch = new_batch_id(tenant)
        assert tenant_of(batch) == tenant
        assert tenant_of(f"{batch}.job") == tenant
        assert id_of_tenant(tenant, batch) == batch

    @pytest.mark.parametrize("name", ["", "a:b", "a*", "batch_a", "x" * 33, "-a", "a b", "ä"])
    def test_what_is_no_name(self, name: str) -> None:
        with pytest.raises(UsageError, match="letters, digits"):
            check_tenant(name)

    def test_another_tenant_s_batch(self) -> None:
        with pytest.raises(UsageError, match="not one of tenant b"):
            id_of_tenant("b", "a:batch_1")


@pytest.fixture
async def cluster(any_redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(any_redis_url, pool) as running:
        yield running


def any_redis(cluster: Cluster) -> Any:
    """redis-py annotates its sync and its async client with one type, which fits neither."""
    return cluster.redis


class TestCluster:
    async def test_few_jobs_pass_by_many_of_another(self, cluster: Cluster) -> None:
        engine = ManualEngine(seats=4)
        await cluster.join("w", engine)
        cluster.schedule()
        many = await cluster.submit(2000, batch=new_batch_id("big"))
        await eventually(lambda: len(engine.running) >= 4)
        few = await cluster.submit(10, batch=new_batch_id("small"))
        for _ in range(60):  # of 2000: long before the first half
            if (await cluster.client.counts(few)).complete:
                break
            before = len(engine.started)
            engine.finish()
            await eventually(lambda before=before: len(engine.started) > before)
        assert (await cluster.client.counts(few)).complete
        assert (await cluster.client.counts(many)).done < 500
        await cluster.client.cancel(many)

    async def test_shares_follow_weights_and_a_cap_holds(self, cluster: Cluster) -> None:
        await any_redis(cluster).hset(
            cluster.keys.terms, mapping={"a": '{"weight": 3}', "c": '{"max_running": 1}', "d": "x"}
        )
        engine = ManualEngine(seats=8)
        cluster.schedule()
        await cluster.register_model()
        batches = {tenant: await cluster.submit(400, batch=new_batch_id(tenant)) for tenant in ("a", "b", "c")}
        await cluster.join("w", engine)
        while len(engine.started) < 200:
            before = len(engine.started)
            engine.finish(1)
            await eventually(lambda before=before: len(engine.started) > before)
            assert sum(tenant_of(job) == "c" for job in engine.running) <= 1
        served = Counter(tenant_of(job) for job in engine.started)
        # 3 to 1 but for the first seats, and jobs placed ahead
        assert 2.0 < served["a"] / served["b"] < 4.5
        for batch in batches.values():
            await cluster.client.cancel(batch)

    async def test_every_job_of_many_tenants_ends_once_and_nothing_is_left(self, cluster: Cluster) -> None:
        await cluster.join("w", instant_engine(cluster.model))
        cluster.schedule()
        batches = [await cluster.submit(30, batch=new_batch_id(tenant)) for tenant in (*TENANTS, DEFAULT_TENANT)]
        for batch in batches:
            exactly_once(await cluster.collect(batch), 30)
        assert await cluster.waiting() == 0

        async def forgotten() -> bool:
            streams = [cluster.keys.requests(tenant_level(level, t)) for t in TENANTS for level in FRESH_LEVELS]
            return not await cluster.redis.exists(cluster.keys.tenants, *streams)

        await eventually(forgotten, "tenants without jobs are forgotten")

    async def test_a_standby_takes_over_what_was_read(self, cluster: Cluster) -> None:
        await cluster.register_model()
        first = cluster.schedule("first")
        await cluster.leading("first")
        batch = await cluster.submit(100, batch=new_batch_id("a"))

        async def read() -> bool:
            stream = cluster.keys.requests(tenant_level("normal", "a"))
            with suppress(ResponseError):  # its first look is yet to come: no group
                return (await cluster.redis.xpending(stream, "scheduler"))["pending"] == 100
            return False

        await eventually(read, "the first scheduler has read all")
        await first.stop()
        cluster.schedule("second")
        await cluster.join("w", instant_engine(cluster.model))
        exactly_once(await cluster.collect(batch), 100)

    async def test_a_cancelled_batch_of_a_tenant_ends(self, cluster: Cluster) -> None:
        await cluster.register_model()
        cluster.schedule()
        batch = await cluster.submit(50, batch=new_batch_id("a"))
        await cluster.client.cancel(batch)
        assert {r.error_code for r in await cluster.collect(batch)} == {"batch_cancelled"}

    async def test_an_entry_in_another_s_stream_is_removed(
        self, cluster: Cluster, caplog: pytest.LogCaptureFixture
    ) -> None:
        await cluster.register_model()
        cluster.schedule()
        await cluster.submit(1, batch=new_batch_id("a"))
        forged = {"job": "b:batch_1.x", "batch": "b:batch_1", "priority": "normal", "body_bytes": 1, "max_tokens": 0}
        stream = cluster.keys.requests(tenant_level("normal", "a"))
        entry = await any_redis(cluster).xadd(stream, forged)
        await eventually(lambda: entry.decode() in caplog.text)

        async def removed() -> bool:
            return await cluster.redis.xlen(stream) == 1

        await eventually(removed)


class TestCommands:
    async def test_terms_are_set_and_shown(self, cluster: Cluster) -> None:
        pool = ["--pool", cluster.settings.pool]
        ended = await tokenyard(cluster.url, "tenants", "acme", "--weight", "4", "--max-running", "64", *pool)
        assert ended.code == 0
        await tokenyard(cluster.url, "tenants", "acme", "--weight", "2.5", *pool)
        await any_redis(cluster).hset(cluster.keys.terms, "bad", "x")
        shown = await tokenyard(cluster.url, "tenants", *pool)
        assert shown.out == '{"tenant":"acme","weight":2.5,"max_running":64}\n'
        assert "terms of tenant 'bad': not the terms of a tenant" in shown.err
        refused = await tokenyard(cluster.url, "tenants", "a:b", "--weight", "4", *pool)
        assert refused.code == 2

    async def test_a_batch_is_submitted_for_a_tenant(self, cluster: Cluster, tmp_path: Path) -> None:
        await cluster.join("w", instant_engine(cluster.model))
        cluster.schedule()
        source = tmp_path / "in.jsonl"
        body = {"model": cluster.model, "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 3}
        source.write_bytes(orjson.dumps({"custom_id": "r0", "method": "POST", "url": CHAT, "body": body}))
        submitted = await tokenyard(cluster.url, "submit", source, "--tenant", "acme")
        assert submitted.out.startswith("acme:batch_")
        exactly_once(await cluster.collect(submitted.out.strip()), 1)
        other = await tokenyard(cluster.url, "submit", source, "--tenant", "b", "--batch", submitted.out.strip())
        assert other.code == 2
        assert "is not one of tenant b" in other.err

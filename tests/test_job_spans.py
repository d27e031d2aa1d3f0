"""What a job went through as spans: of results, and of a live cluster's jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from acl_server import acl_server
from cluster_fixtures import Cluster, ManualEngine, cluster_of, eventually, instant_engine
from hypothesis import given
from hypothesis import strategies as st
from test_acl import POOL, RoleCluster
from test_live_parts import result

from broker.acl import Role
from broker.client import connect_client
from broker.concurrency import cancel_all
from broker.jobs import Result
from tokenyard.embedded_server import find_binary
from tokenyard.tracing.following import JobFollower
from tokenyard.tracing.job_spans import is_sampled, spans_of, trace_id_of, traceparent_of

seconds = st.floats(0, 1e15) | st.floats(1e9, 2e9)


class TestSpans:
    def test_a_job_from_submission_to_result(self) -> None:
        whole, *parts = spans_of(result("a", submitted=1000.0, started=1002.0), "llama")
        assert (whole.name, whole.start, whole.end, whole.error) == ("job", 1000.0, 1011.0, "")
        assert [(p.name, p.start, p.end) for p in parts] == [
            ("queued", 1000.0, 1001.0),
            ("dispatched", 1001.0, 1002.0),
            ("running", 1002.0, 1011.0),
        ]
        assert {p.parent_id for p in parts} == {whole.span_id}
        told = whole.attributes
        assert (told["tokenyard.pool"], told["tokenyard.worker"], told["gen_ai.usage.output_tokens"]) == (
            "llama",
            "w",
            20,
        )
        assert not any("body" in name for name in told)

    def test_one_that_no_device_had(self) -> None:
        fields: dict[str, Any] = {"dispatched": 0.0, "started": 0.0, "status_code": 0, "error_code": "batch_cancelled"}
        found = spans_of(result("a", **fields), "p")
        assert [(s.name, s.error) for s in found] == [("job", "batch_cancelled"), ("queued", "")]

    def test_one_that_failed(self) -> None:
        found = {s.name: s.error for s in spans_of(result("a", status_code=400), "p")}
        assert found == {"job": "status 400", "queued": "", "dispatched": "", "running": "status 400"}

    @given(seconds, seconds, seconds, seconds)
    def test_whatever_the_stamps_say(self, submitted: float, dispatched: float, started: float, ended: float) -> None:
        stamps = {"submitted": submitted, "dispatched": dispatched, "started": started, "ended": ended}
        found = spans_of(result("a", **stamps), "p")
        assert all(s.start <= s.end < 1e10 for s in found)
        assert len({s.span_id for s in found}) == len(found)
        if found:
            whole, *parts = found
            assert parts
            assert (parts[0].start, parts[-1].end) == (whole.start, whole.end)
            assert all(one.end == next_.start for one, next_ in pairwise(parts))

    def test_ids_come_from_the_job(self) -> None:
        parent = traceparent_of("b.1")
        version, trace, span, flags = parent.split("-")
        assert (version, flags) == ("00", "01")
        assert int(trace, 16) == trace_id_of("b.1") != trace_id_of("b.2")
        assert (len(trace), len(span)) == (32, 16)
        assert int(span, 16) == spans_of(result(job_id="b.1"), "p")[0].span_id

    def test_a_share_of_the_jobs_is_sampled_and_a_larger_one_has_those_too(self) -> None:
        jobs = [f"b.{n}" for n in range(4000)]
        tenth, half = ({job for job in jobs if is_sampled(job, share)} for share in (0.1, 0.5))
        assert 250 < len(tenth) < 550
        assert tenth < half
        assert not any(is_sampled(job, 0.0) for job in jobs)
        assert all(is_sampled(job, 1.0) for job in jobs)


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(redis_url, pool) as running:
        yield running


async def test_every_job_of_a_live_cluster_is_told_once(cluster: Cluster) -> None:
    told: list[str] = []

    def sink(results: Sequence[Result], pool: str) -> None:
        if pool == cluster.settings.pool:
            told.extend(r.custom_id for r in results)

    follower = JobFollower(cluster.client, lambda job: is_sampled(job, 1.0), sink)
    following = asyncio.ensure_future(follower.run())
    try:
        await cluster.register_model()
        await eventually(lambda: cluster.settings.pool in follower.following)
        cluster.schedule()
        engine = ManualEngine(seats=2)
        await cluster.join("w", engine)
        batch = await cluster.submit(8)
        await eventually(lambda: engine.running)
        engine.finish(1, status_code=400)
        await cluster.client.cancel_jobs(batch, ["r7"])  # waits
        await cluster.finish(batch, engine)
        await eventually(lambda: len(told) >= 8)
        assert sorted(told) == [f"r{n}" for n in range(8)]
    finally:
        await cancel_all([following])


async def test_the_rights_of_a_gateway_are_enough(tmp_path: Path) -> None:
    told: list[str] = []

    def sink(results: Sequence[Result], _pool: str) -> None:
        told.extend(result.custom_id for result in results)

    async with acl_server(find_binary(), tmp_path, POOL) as server:
        cluster: Cluster = RoleCluster(server)
        cluster.schedule()
        await cluster.join("w", instant_engine(cluster.model))
        async with connect_client(server.url_of(Role.GATEWAY)) as client:
            follower = JobFollower(client, lambda _job: True, sink)
            following = asyncio.ensure_future(follower.run())
            await eventually(lambda: POOL in follower.following)
            await cluster.submit(3)
            await eventually(lambda: len(told) == 3)
            await cancel_all([following])
        await cluster.close()

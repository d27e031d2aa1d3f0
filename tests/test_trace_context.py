"""A caller's traceparent: read strictly, kept with its job, and the jobs' spans hang under it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from cluster_fixtures import Cluster, cluster_of, instant_engine
from gateway_fixtures import serving
from hypothesis import given
from hypothesis import strategies as st
from test_live_parts import result

from broker.jobs import Result
from broker.result_record import parse_result
from broker.submission import SubmitOptions
from broker.trace_context import TraceParent, checked_traceparent, parse_traceparent
from tokenyard import AsyncClient, Client
from tokenyard.tracing.job_spans import spans_of, trace_id_of, trace_of

TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
IGNORED = [
    "",
    "rubbish",
    CALLER.upper(),
    CALLER[:-1],
    CALLER + "0",
    CALLER + "-00",  # the first version has four fields
    CALLER + "\n",
    " " + CALLER,
    "ff" + CALLER[2:],
    "0x" + CALLER[2:],
    f"00-{'0' * 32}-b7ad6b7169203331-01",
    f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
    CALLER.replace("-01", "-0g"),
    CALLER.replace("-", "_"),
    "01" + CALLER[2:] + "." + "x" * 300,
    CALLER.replace("0af", "٠af"),  # a digit, but not one of ours
]


class TestParsing:
    def test_the_standard_s_example(self) -> None:
        assert parse_traceparent(CALLER) == TraceParent(TRACE, SPAN, 1)
        assert checked_traceparent(CALLER) == CALLER

    @pytest.mark.parametrize("text", IGNORED)
    def test_what_is_malformed_is_ignored(self, text: str) -> None:
        assert parse_traceparent(text) is None
        assert checked_traceparent(text) == ""

    def test_of_a_later_version_what_we_know_is_read(self) -> None:
        assert parse_traceparent(f"cc{CALLER[2:]}-what-comes") == TraceParent(TRACE, SPAN, 1)
        assert checked_traceparent(f"01{CALLER[2:-2]}ff") == CALLER[:-2] + "03"  # flags that mean nothing are not kept

    @given(st.text(max_size=60) | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.?", fullmatch=True))
    def test_whatever_comes_what_is_kept_is_valid(self, text: str) -> None:
        kept = checked_traceparent(text)
        assert not kept or parse_traceparent(kept) == parse_traceparent(text)
        assert len(kept) in (0, 55)

    @given(st.binary(max_size=80))
    def test_an_entry_with_rubbish_has_no_caller(self, raw: bytes) -> None:
        entry = {b"job": b"b.r", b"custom_id": b"r", b"status_code": b"200", b"worker": b"w", b"attempt": b"1"}
        found = parse_result(b"1-0", entry | {b"traceparent": raw})
        assert found is not None
        assert found.traceparent == ""


class TestSpans:
    def test_they_hang_under_the_caller_s(self) -> None:
        ended = result("a", traceparent=CALLER)
        whole, *parts = spans_of(ended, "p")
        assert (trace_of(ended), whole.parent_id) == (TRACE, SPAN)
        assert {part.parent_id for part in parts} == {whole.span_id}

    def test_without_a_caller_the_trace_is_the_job_s(self) -> None:
        ended = result("a")
        assert trace_of(ended) == trace_id_of(ended.job_id)
        assert spans_of(ended, "p")[0].parent_id == 0

    def test_a_caller_that_is_not_recorded_gets_none(self) -> None:
        assert spans_of(result("a", traceparent=CALLER[:-2] + "00"), "p") == []


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(redis_url, pool) as running:
        yield running


async def callers_of(cluster: Cluster, batch: str) -> dict[str, str]:
    return {found.custom_id: found.traceparent for found in await cluster.collect(batch)}


async def test_a_batch_of_the_client_keeps_its_caller(cluster: Cluster) -> None:
    await cluster.join("w", instant_engine(cluster.model))
    cluster.schedule()
    async with AsyncClient(cluster.url, model=cluster.model, durable=False) as client:
        told = await client.submit(["a", "b"], traceparent=CALLER)
        untold = await client.submit(["a", "b"], traceparent="rubbish")
        found = await callers_of(cluster, told.batch)
        assert len(found) == 2
        assert set(found.values()) == {CALLER}
        assert set((await callers_of(cluster, untold.batch)).values()) == {""}

    def in_a_thread() -> str:
        with Client(cluster.url, model=cluster.model, durable=False) as sync:
            return sync.submit(["c"], traceparent=CALLER).batch

    found = await callers_of(cluster, await asyncio.to_thread(in_a_thread))
    assert list(found.values()) == [CALLER]


async def test_so_does_a_job_that_never_ran(cluster: Cluster) -> None:
    await cluster.register_model()
    report = await cluster.client.submit(cluster.requests(2), "b", options=SubmitOptions(traceparent=CALLER))
    assert report.accepted == 2
    await cluster.client.seal("b")
    await cluster.client.cancel_jobs("b", ["r0", "r1"])
    assert await callers_of(cluster, "b") == {"r0": CALLER, "r1": CALLER}


@pytest.mark.parametrize(("headers", "kept"), [([CALLER], CALLER), (["rubbish"], ""), ([CALLER, CALLER], ""), ([], "")])
async def test_a_chat_keeps_its_caller(headers: list[str], kept: str, cluster: Cluster, tmp_path: Path) -> None:
    told: list[Result] = []
    await cluster.join("w", instant_engine(cluster.model))
    cluster.schedule()
    async with serving(cluster, tmp_path) as url:
        await _ask(url, cluster.model, headers)
        [key] = await cluster.redis.keys(f"{cluster.keys.prefix}results:*")
        for entry, fields in await cluster.redis.xrange(key):
            ended = parse_result(entry, fields)
            assert ended is not None
            told.append(ended)
            assert (b"traceparent" in fields) == bool(kept)
    assert [ended.traceparent for ended in told] == [kept]


async def _ask(url: str, model: str, traceparents: list[str]) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 2, "stream": True}
    async with httpx.AsyncClient() as client:
        headers = [("traceparent", text) for text in traceparents]
        answer = await client.post(f"{url}/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200

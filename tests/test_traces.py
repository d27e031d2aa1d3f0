"""Traces: spans of results, of a live cluster's jobs, and what a collector gets."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from cli_process import ROOT, start, tokenyard
from cluster_fixtures import Cluster, cluster_of, eventually, instant_engine
from test_compose import parse_command
from test_live_parts import result

from broker.client import new_batch_id
from broker.jobs import job_id
from broker.submission import SubmitOptions
from tokenyard.tracing.job_spans import JobSpan, spans_of, trace_id_of

pytest.importorskip("opentelemetry.sdk", reason="OpenTelemetry is not installed: pip install 'tokenyard[otel]'")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tokenyard.tracing.export import TraceWriter


def exported(spans: tuple[ReadableSpan, ...]) -> Iterator[tuple[int, int, int | None, JobSpan]]:
    """Trace, span and parent of each span, and the rest of it."""
    for span in spans:
        assert span.context is not None and span.start_time is not None and span.end_time is not None
        parent = span.parent.span_id if span.parent else 0
        at = (span.start_time / 1e9, span.end_time / 1e9)
        yield span.context.trace_id, span.context.span_id, parent, JobSpan(span.name, span.context.span_id, parent, *at)


def test_what_is_exported_is_what_was_meant() -> None:
    memory = InMemorySpanExporter()
    writer = TraceWriter(memory)
    results = [result("a"), result("b", status_code=500)]
    writer.write(results, "p")
    writer.close()
    found = list(exported(memory.get_finished_spans()))
    meant = [(trace_id_of(r.job_id), s) for r in results for s in spans_of(r, "p")]
    assert {(trace, span, parent) for trace, span, parent, _ in found} == {
        (trace, s.span_id, s.parent_id) for trace, s in meant
    }
    assert {(s.name, round(s.start), round(s.end)) for *_, s in found} == {
        (s.name, round(s.start), round(s.end)) for _, s in meant
    }
    bad = {s.name for s in memory.get_finished_spans() if not s.status.is_ok and s.status.description}
    assert bad == {"job", "running"}


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(redis_url, pool) as running:
        yield running


@dataclass(slots=True)
class Collector:
    """What an OTLP collector got over HTTP."""

    url: str = ""
    spans: list[Any] = field(default_factory=list[Any])

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.headers.get("content-encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        sent = ExportTraceServiceRequest.FromString(body)
        self.spans += [s for r in sent.resource_spans for scope in r.scope_spans for s in scope.spans]
        return web.Response(content_type="application/x-protobuf")


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    found = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", found.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
    yield found
    with suppress(asyncio.CancelledError):
        await runner.cleanup()


async def test_the_command_sends_traces_to_a_collector(
    cluster: Cluster, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # the SDK sends so often, in milliseconds
    cluster.schedule()
    await cluster.join("w", instant_engine(cluster.model))
    running = await start(cluster.url, "traces", "--endpoint", collector.url)
    await running.says(f"following pool {cluster.settings.pool}")
    batch = await cluster.submit(5)
    await cluster.collect(batch)
    told = SubmitOptions(traceparent=f"00-{0xCAFE:032x}-{0xBEEF:016x}-01")
    await cluster.client.submit(cluster.requests(1, "told"), new_batch_id(), options=told)
    wanted = {trace_id_of(job_id(batch, f"r{n}")).to_bytes(16) for n in range(5)}

    async def all_there() -> bool:
        mine = [span for span in collector.spans if span.trace_id in wanted]
        return len(mine) == 20 and len(of_caller()) == 4

    def of_caller() -> dict[str, Any]:
        return {span.name: span for span in collector.spans if span.trace_id == (0xCAFE).to_bytes(16)}

    await eventually(all_there)
    running.interrupt()
    assert (await running.end()).code == 0
    mine = [span for span in collector.spans if span.trace_id in wanted]
    assert {span.name for span in mine} == {"job", "queued", "dispatched", "running"}
    assert {span.trace_id for span in mine} == wanted
    roots = {span.trace_id: span.span_id for span in mine if span.name == "job"}
    assert all(span.parent_span_id == roots[span.trace_id] for span in mine if span.name != "job")
    whole = of_caller().pop("job")
    assert whole.parent_span_id == (0xBEEF).to_bytes(8)
    assert {span.parent_span_id for span in of_caller().values()} == {whole.span_id, whole.parent_span_id}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--endpoint", "collector:4318"), "TOKENYARD_TRACES_ENDPOINT collector:4318"),
        (("--share", "2"), "TOKENYARD_TRACES_SHARE"),
    ],
)
async def test_what_is_wrong_is_said_in_a_line(redis_url: str, words: tuple[str, ...], said: str) -> None:
    ended = await tokenyard(redis_url, "traces", *words)
    assert ended.code == 2
    assert said in ended.err


def test_the_handbooks_command_parses() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text().partition("## Traces")[2]
    [command] = re.findall(r"^```sh\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)
    parse_command(shlex.split(command))

"""Hands spans to an OpenTelemetry collector, by OpenTelemetry's own SDK (the extra ``otel``)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from broker.jobs import Result
from tokenyard import __version__
from tokenyard.tracing.job_spans import JobSpan, spans_of, trace_of

log = logging.getLogger(__name__)

_NANOSECONDS = 10**9


class _GivenIds(IdGenerator):
    """Gives the ids that the next span is to have."""

    def __init__(self) -> None:
        self.trace_id = self.span_id = 1

    def generate_span_id(self) -> int:
        return self.span_id

    def generate_trace_id(self) -> int:
        return self.trace_id


class TraceWriter:
    """Makes spans of ended jobs. A thread of the SDK sends them; what it cannot keep up with is dropped, and told."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._ids = _GivenIds()
        resource = Resource.create({"service.name": "tokenyard", "service.version": __version__})
        # Which jobs are traced was decided before.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=resource, id_generator=self._ids, shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tokenyard", __version__)

    def write(self, results: Sequence[Result], pool: str) -> None:
        """Trace these jobs."""
        for result in results:
            trace_id = trace_of(result)
            for number, span in enumerate(spans_of(result, pool)):
                self._write(trace_id, span, is_whole=number == 0)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    def _write(self, trace_id: int, span: JobSpan, *, is_whole: bool) -> None:
        self._ids.trace_id, self._ids.span_id = trace_id, span.span_id
        parent = Context()
        if span.parent_id:
            flags = TraceFlags(TraceFlags.SAMPLED)
            above = SpanContext(trace_id, span.parent_id, is_whole, flags)
            parent = set_span_in_context(NonRecordingSpan(above), parent)
        made = self._tracer.start_span(
            span.name,
            parent,
            SpanKind.CONSUMER if is_whole else SpanKind.INTERNAL,
            span.attributes,
            start_time=int(span.start * _NANOSECONDS),
        )
        if span.error:
            made.set_status(Status(StatusCode.ERROR, span.error))
        made.end(int(span.end * _NANOSECONDS))

"""A job's way as spans of one trace, from its result. Pure.

All ids come from the job's id: whoever knows that finds the trace, and a job that is told twice stays one trace.
Ids: https://www.w3.org/TR/trace-context/. Names of attributes about tokens and errors:
https://opentelemetry.io/docs/specs/semconv/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise

from broker.job_record import batch_of
from broker.jobs import Result
from broker.tenant_names import tenant_of
from broker.trace_context import parse_traceparent

Attribute = str | int | float
#: Of a trace id these last bits decide whether it is sampled, as in the W3C's trace context, level 2.
_RANDOM_BITS = 56
#: Nothing happened later, in seconds since the epoch: in nanoseconds that is what a span holds.
_LATEST = 1e10


@dataclass(frozen=True, slots=True)
class JobSpan:
    """One span.

    Attributes:
        name: ``job`` for the whole, or ``queued``, ``dispatched``, ``running`` for its parts.
        span_id: its id.
        parent_id: id of the span that it is a part of; of the whole it is the caller's, 0 where none was named.
        start: seconds since the epoch on Redis' clock; ``end`` likewise, not before it.
        error: why the job failed, empty where it did not.
        attributes: what else is known.
    """

    name: str
    span_id: int
    parent_id: int
    start: float
    end: float
    error: str = ""
    attributes: Mapping[str, Attribute] = field(default_factory=dict[str, Attribute])


def trace_id_of(job_id: str) -> int:
    """The id of a job's trace, of 128 bits."""
    return _number(job_id, 16)


def traceparent_of(job_id: str) -> str:
    """The header that makes a span of one's own a part of a job's trace, where the job's caller named none."""
    return f"00-{trace_id_of(job_id):032x}-{_number(f'job {job_id}', 8):016x}-01"


def trace_of(result: Result) -> int:
    """The trace that an ended job is part of: its caller's, or one of its own."""
    caller = parse_traceparent(result.traceparent)
    return caller.trace_id if caller else trace_id_of(result.job_id)


def is_sampled(job_id: str, share: float) -> bool:
    """Whether a job is one of the ``share`` (0 to 1) that are traced; the same for every look at it."""
    return trace_id_of(job_id) % 2**_RANDOM_BITS < share * 2**_RANDOM_BITS


def spans_of(result: Result, pool: str) -> list[JobSpan]:
    """The spans of an ended job, the whole first; stages that it did not reach are missing.

    Of a job that was tried several times the last attempt is told: it was queued until that was dispatched. None where
    its caller says that its own span is not recorded.
    """
    job, stamps = result.job_id, _stamps(result)
    caller = parse_traceparent(result.traceparent)
    if not stamps or (caller is not None and not caller.sampled):
        return []
    error = "" if result.ok else result.error_code or f"status {result.status_code}"
    whole = _number(f"job {job}", 8)
    begin, end = stamps[0][1], stamps[-1][1]
    spans = [JobSpan("job", whole, caller.span_id if caller else 0, begin, end, error, _attributes(result, pool))]
    for (name, start), (_, until) in pairwise(stamps):
        why = error if name == "running" else ""
        spans.append(JobSpan(name, _number(f"{name} {job}", 8), whole, start, until, why))
    return spans


def _stamps(result: Result) -> list[tuple[str, float]]:
    """The stages that the job reached with their beginnings, and its end; in order, whatever the stamps say."""
    reached = [("queued", result.submitted), ("dispatched", result.dispatched), ("running", result.started)]
    stamps: list[tuple[str, float]] = []
    for name, at in [*reached, ("", result.ended)]:
        if 0 < at < _LATEST:
            stamps.append((name, max(at, stamps[-1][1]) if stamps else at))
    return stamps if len(stamps) > 1 and not stamps[-1][0] else []


def _attributes(result: Result, pool: str) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {
        "tokenyard.pool": pool,
        "tokenyard.tenant": tenant_of(result.job_id),
        "tokenyard.batch": batch_of(result.job_id),
        "tokenyard.job": result.job_id,
        "tokenyard.attempt": result.attempt,
        "gen_ai.usage.input_tokens": result.prompt_tokens,
        "gen_ai.usage.output_tokens": result.output_tokens,
        "tokenyard.cached_tokens": result.cached_tokens,
    }
    optional: dict[str, Attribute] = {
        "tokenyard.worker": result.worker,
        "tokenyard.reason": result.reason,
        "tokenyard.predicted_seconds": result.predicted_s,
        "tokenyard.predicted_output_tokens": result.predicted_output_tokens,
        "http.response.status_code": result.status_code,
        "error.type": "" if result.ok else result.error_code or str(result.status_code),
    }
    return found | {name: value for name, value in optional.items() if value}


def _number(text: str, size: int) -> int:
    """A number of so many bytes that stands for a text; never 0, which is no id."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()) or 1

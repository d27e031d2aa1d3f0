"""One job as a person asks for it: where it is or how it ended. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from broker.errors import TokenyardError
from broker.jobs import BATCH_CANCELLED, JobState, Result

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=10**12)]
_Text = Annotated[str, msgspec.Meta(max_length=4096)]


class UnknownJobError(TokenyardError):
    """No job of that id is stored: it never was, or its result's time to live is over."""


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A job, whatever its state. Times are seconds since the epoch on Redis' clock, 0 where it did not happen.

    Attributes:
        job_id: its id.
        batch: id of its batch.
        custom_id: the client's own id.
        state: where it is, or how it ended.
        attempt: the latest attempt; 1 for the first.
        worker: who has it or had it, empty where nobody.
        reason: short word on why this device, as the placement policy wrote it; empty where it says none.
        copy: who has its second run, empty where there is none; ``copy_dispatched``: since when.
        submitted: when it was submitted; the next three likewise, of the latest attempt.
        predicted_s: seconds from dispatch to result as predicted, 0 where they were not.
        predicted_output_tokens: output tokens as predicted at dispatch, 0 where they were not.
        max_tokens: most tokens it may generate, 0 where it does not say (or has ended).
        body_bytes: size of the request's body, 0 once it has ended.
        prompt_tokens: true length once it has ended, 0 before.
        output_tokens: likewise.
        cached_tokens: prompt tokens that were found in a prefix cache.
        status_code: HTTP status of the response, 0 where there is none.
        error: one line on why there is no response.
    """

    job_id: str
    batch: str
    custom_id: str
    state: JobState
    attempt: int
    worker: str = ""
    reason: str = ""
    copy: str = ""
    copy_dispatched: float = 0.0
    submitted: float = 0.0
    dispatched: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    predicted_s: float = 0.0
    predicted_output_tokens: int = 0
    max_tokens: int = 0
    body_bytes: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    status_code: int = 0
    error: str = ""


class _JobHash(msgspec.Struct, frozen=True):
    """The hash of a job that has not ended."""

    state: JobState
    batch: _Text
    custom_id: _Text
    attempt: Annotated[int, msgspec.Meta(ge=1, le=10**6)]
    submitted: _Seconds
    worker: _Text = ""
    dispatched: _Seconds = 0.0
    predicted_s: _Seconds = 0.0
    reason: _Text = ""
    copy: _Text = ""
    copy_dispatched: _Seconds = 0.0
    output_tokens: _Tokens = 0
    max_tokens: _Tokens = 0


_JOB_FIELDS = {name.encode(): name for name in _JobHash.__struct_fields__}  # others were written by hand


def batch_of(job_id: str) -> str:
    """The batch that a job's id names; empty where it is no job's id."""
    return job_id.rpartition(".")[0]


def short_id(job_id: str) -> str:
    """What the job is called in its batch's index of ended jobs."""
    return job_id.rpartition(".")[2]


def parse_job(job_id: str, raw: Mapping[bytes, bytes], body_bytes: int) -> JobRecord | None:
    """A job that has not ended, from its hash; None where there is none or it is not one (anyone can write to Redis).

    Args:
        job_id: its id.
        raw: the hash.
        body_bytes: size of the request's body.
    """
    try:
        fields = {_JOB_FIELDS[key]: raw[key].decode() for key in _JOB_FIELDS.keys() & raw.keys()}
        job = msgspec.convert(fields, _JobHash, strict=False)
    except (msgspec.ValidationError, UnicodeDecodeError):
        return None
    bound = job.state is JobState.DISPATCHED
    return JobRecord(
        job_id=job_id,
        batch=job.batch,
        custom_id=job.custom_id,
        state=job.state,
        attempt=job.attempt,
        worker=job.worker if bound else "",
        reason=job.reason if bound else "",
        copy=job.copy if bound else "",
        copy_dispatched=job.copy_dispatched if bound else 0.0,
        submitted=job.submitted,
        dispatched=job.dispatched if bound else 0.0,
        predicted_s=job.predicted_s if bound else 0.0,
        predicted_output_tokens=job.output_tokens,
        max_tokens=job.max_tokens,
        body_bytes=body_bytes,
    )


def ended_job(result: Result) -> JobRecord:
    """A job that has ended, from its result."""
    state = JobState.DONE if result.ok else JobState.FAILED
    if result.error_code == BATCH_CANCELLED:
        state = JobState.CANCELLED
    return JobRecord(
        job_id=result.job_id,
        batch=batch_of(result.job_id),
        custom_id=result.custom_id,
        state=state,
        attempt=result.attempt,
        worker=result.worker,
        reason=result.reason,
        submitted=result.submitted,
        dispatched=result.dispatched,
        started=result.started,
        ended=result.ended,
        predicted_s=result.predicted_s,
        predicted_output_tokens=result.predicted_output_tokens,
        prompt_tokens=result.prompt_tokens,
        output_tokens=result.output_tokens,
        cached_tokens=result.cached_tokens,
        status_code=result.status_code,
        error=result.error_message,
    )


def cursor_before(entry: str) -> str | None:
    """The position in a stream after which the next entry is this one; None where it is no entry's id."""
    milliseconds, _, number = entry.partition("-")
    try:
        ms, seq = int(milliseconds), int(number)
    except ValueError:
        return None
    if ms < 0 or seq < 0 or ms + seq == 0:
        return None
    return f"{ms}-{seq - 1}" if seq else f"{ms - 1}-{2**64 - 1}"

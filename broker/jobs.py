"""Requests, jobs and results as plain values. Pure."""

from __future__ import annotations

import base64
import hashlib
from enum import StrEnum

import msgspec

#: Error code of a request whose batch was cancelled, as OpenAI's Batch API has it.
BATCH_CANCELLED = "batch_cancelled"
#: Likewise, of a request that had not ended when its batch's completion window was over.
BATCH_EXPIRED = "batch_expired"
#: Likewise, of a request that ran longer than it may.
REQUEST_TIMEOUT = "request_timeout"
#: Error code of an attempt that was aborted because its job ended elsewhere; never that of a result.
ABORTED = "aborted"


class Priority(StrEnum):
    """Jobs of a higher level are dispatched first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class JobState(StrEnum):
    """Where a job is.

    ``queued`` (request stream) -> ``dispatched`` (device queue; started once its worker has taken the entry) ->
    ``done``, ``failed`` or ``cancelled``; from ``dispatched`` back to ``queued`` when its worker drains or dies, or
    when it is taken back before it started; or to ``delayed`` where it failed in a way that may pass, and from there to
    ``queued``. A dispatched job may have a copy in a second device queue: the first
    result ends it, and where one of the two goes away it goes on at the other.
    """

    QUEUED = "queued"
    DISPATCHED = "dispatched"
    DELAYED = "delayed"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Submission(msgspec.Struct, frozen=True):
    """A request on its way into the queue.

    Attributes:
        job_id: see ``job_id``.
        custom_id: the client's own id, unique in the batch.
        url: OpenAI path.
        body: JSON object of the request, kept as the client wrote it.
        max_tokens: most tokens it may generate, 0 where it does not say.
        prefix: marks of how its prompt begins, as text (see ``broker.prefixes``); empty where it has none.
        follow: whether its client follows the tokens while they are made (see ``broker.token_news``).
        traceparent: span of whoever submits it (see ``broker.trace_context``); empty where none was named.
    """

    job_id: str
    custom_id: str
    url: str
    body: bytes
    max_tokens: int
    prefix: str = ""
    follow: bool = False
    traceparent: str = ""


class WaitingJob(msgspec.Struct, frozen=True):
    """A job in the request stream, as the scheduler sees it: an id and the numbers that placement needs.

    Attributes:
        job_id: id of the job.
        level: request stream it waits in (one of ``keys.LEVELS``).
        entry_id: id of its stream entry.
        batch_id: batch it belongs to.
        priority: level it is served at, also when it was returned.
        body_bytes: size of the request's body in bytes.
        max_tokens: most tokens it may generate, 0 where it does not say.
        prefix: marks of how its prompt begins, as text; ``prefixes.parse_marks`` reads and checks it.
        deaths: workers that died while they ran it; from 1 on it is a suspect (see ``broker.quarantine``).
        charges: attempts of a suspect that are used up.
    """

    job_id: str
    level: str
    entry_id: str
    batch_id: str
    priority: str
    body_bytes: int
    max_tokens: int
    prefix: str = ""
    deaths: int = 0
    charges: int = 0


class Delivery(msgspec.Struct, frozen=True):
    """One attempt of a job, handed to a worker.

    Attributes:
        entry_id: id of the device queue's entry, new for every attempt.
        job_id: id of the job.
        batch_id: batch it belongs to.
        custom_id: the client's own id.
        attempt: 1 for the first.
        submitted: when it was submitted, seconds since the epoch on Redis' clock, as text.
        started: when it was taken, likewise.
        url: OpenAI path.
        body: JSON object of the request.
        prompt_tokens: length of the prompt in tokens as predicted at dispatch, 0 where not known.
        max_tokens: most tokens it may generate, 0 where it does not say.
        timeout_s: seconds that the attempt may run, 0 for any.
        follow: whether its client follows the tokens while they are made.
    """

    entry_id: str
    job_id: str
    batch_id: str
    custom_id: str
    attempt: int
    submitted: str
    started: str
    url: str
    body: bytes
    prompt_tokens: int = 0
    max_tokens: int = 0
    timeout_s: float = 0.0
    follow: bool = False


class Outcome(msgspec.Struct, frozen=True):
    """How an attempt ended, as its worker says it.

    Attributes:
        delivery: the attempt; where its job went to another meanwhile, the outcome changes nothing.
        status_code: HTTP status of the response, 0 where there is none.
        body: response body or error body, empty where there is none.
        prompt_tokens: tokens of the prompt.
        output_tokens: tokens generated.
        error_code: set where there is no response, for example ``batch_cancelled``; ``aborted`` where the attempt was
            told to stop: then the tokens are an estimate of what was computed in vain.
        error_message: one line for the error file.
        cached_tokens: prompt tokens found in the prefix cache.
        retry_s: seconds after which the job is to be tried again, as long as it has attempts left; 0: never.
    """

    delivery: Delivery
    status_code: int
    body: bytes
    prompt_tokens: int = 0
    output_tokens: int = 0
    error_code: str = ""
    error_message: str = ""
    cached_tokens: int = 0
    retry_s: float = 0.0

    @property
    def state(self) -> JobState:
        """The state that the job ends in."""
        if self.error_code == BATCH_CANCELLED:
            return JobState.CANCELLED
        return JobState.DONE if self.status_code == 200 and not self.error_code else JobState.FAILED


class Result(msgspec.Struct, frozen=True):
    """An ended job, as its client reads it.

    Attributes:
        cursor: position in the batch's result stream; reading on from here misses and repeats nothing.
        job_id: id of the job.
        custom_id: the client's own id.
        status_code: HTTP status, 0 where there was no response.
        body: response body or error body.
        error_code: empty where there was a response.
        error_message: one line.
        prompt_tokens: tokens of the prompt.
        output_tokens: tokens generated.
        worker: name of the worker that ran it, empty where none did.
        attempt: the attempt that counted.
        submitted: when it was submitted, seconds since the epoch on Redis' clock.
        started: when its last attempt started, 0 where none did.
        dispatched: when the attempt that counted was put into its device queue, likewise.
        ended: when the job ended, on the same clock.
        predicted_s: time from dispatch to result that was expected, in seconds, 0 where the policy did not say.
        predicted_output_tokens: output tokens that were expected.
        reason: why this device, in a word.
        cached_tokens: prompt tokens found in the prefix cache.
        traceparent: span of whoever submitted it, empty where none was named.
    """

    cursor: str
    job_id: str
    custom_id: str
    status_code: int
    body: bytes
    error_code: str
    error_message: str
    prompt_tokens: int
    output_tokens: int
    worker: str
    attempt: int
    submitted: float = 0.0
    started: float = 0.0
    dispatched: float = 0.0
    ended: float = 0.0
    predicted_s: float = 0.0
    predicted_output_tokens: int = 0
    reason: str = ""
    cached_tokens: int = 0
    traceparent: str = ""

    @property
    def ok(self) -> bool:
        """Whether the request got a response with status 200."""
        return self.status_code == 200 and not self.error_code


class BatchCounts(msgspec.Struct, frozen=True):
    """How far a batch is: numbers of jobs and of tokens.

    ``copies`` are jobs that were started a second time elsewhere, ``copies_won`` those whose copy ended first. The
    wasted tokens are work of these two that no result shows; those of a request that was aborted are an estimate of
    its worker, which comes a moment after the result.
    """

    total: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    sealed: bool = False
    state: str = "open"
    wasted_prompt_tokens: int = 0
    wasted_output_tokens: int = 0
    copies: int = 0
    copies_won: int = 0

    @property
    def ended(self) -> int:
        """Jobs that have their result."""
        return self.done + self.failed + self.cancelled

    @property
    def complete(self) -> bool:
        """Whether all jobs were submitted and all have ended."""
        return self.sealed and self.ended >= self.total

    def __add__(self, other: BatchCounts) -> BatchCounts:
        """The counts of a batch that lies in several pools."""
        return BatchCounts(
            total=self.total + other.total,
            done=self.done + other.done,
            failed=self.failed + other.failed,
            cancelled=self.cancelled + other.cancelled,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            sealed=self.sealed and other.sealed,
            state=self.state if self.state != "open" else other.state,
            wasted_prompt_tokens=self.wasted_prompt_tokens + other.wasted_prompt_tokens,
            wasted_output_tokens=self.wasted_output_tokens + other.wasted_output_tokens,
            copies=self.copies + other.copies,
            copies_won=self.copies_won + other.copies_won,
        )


def job_id(batch_id: str, custom_id: str) -> str:
    """The id of a job: the same batch and custom_id always give the same, so that a request sent twice is one job."""
    digest = hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=9).digest()
    return f"{batch_id}.{base64.urlsafe_b64encode(digest).decode()}"

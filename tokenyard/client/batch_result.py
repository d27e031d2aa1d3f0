"""What the client hands out, as plain values. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from broker.errors import TokenyardError
from broker.jobs import BatchCounts, Result


class RequestFailedError(TokenyardError):
    """A request has no response; the message says why."""


class SubmitReport(msgspec.Struct, frozen=True):
    """What became of a submission.

    Attributes:
        batch: id of the batch, which any process reads its results by.
        accepted: requests that are new in the queue.
        known: requests that the batch had before: they do not run again.
        on_disk: whether the server said that they are on its disk.
        promise: where it was asked and cannot say so: one line on what is promised instead.
    """

    batch: str
    accepted: int
    known: int
    on_disk: bool
    promise: str


class BatchStatus(msgspec.Struct, frozen=True):
    """How far a batch is; jobs and tokens.

    Attributes:
        batch: its id.
        state: ``open`` (more may come), ``running``, ``complete``, ``cancelling``, ``cancelled``, ``expiring`` or
            ``expired``.
        total: requests submitted so far.
        done: those with a response; the next two likewise: without one, and cancelled.
        prompt_tokens: of those that ended; the next likewise.
        complete: whether all were submitted and all have ended.
    """

    batch: str
    state: str
    total: int
    done: int
    failed: int
    cancelled: int
    prompt_tokens: int
    output_tokens: int
    complete: bool


class BatchResult(msgspec.Struct, frozen=True):
    """How a request ended.

    Attributes:
        custom_id: its id in the batch.
        status_code: HTTP status of the engine's answer, 0 where it gave none.
        body: that answer as JSON, as the engine wrote it; empty where there is none.
        error_code: why there is no answer, as OpenAI's Batch API has it (``batch_cancelled``, …); empty where there is.
        error_message: the same in one line.
        prompt_tokens: tokens of the prompt.
        output_tokens: tokens generated.
        worker: the worker that ran it, empty where none did.
        attempt: the attempt that counted.
        job_id: what `tokenyard explain` knows it by.
    """

    custom_id: str
    status_code: int
    body: bytes
    error_code: str
    error_message: str
    prompt_tokens: int
    output_tokens: int
    worker: str
    attempt: int
    job_id: str

    @property
    def ok(self) -> bool:
        """Whether it got a response with status 200."""
        return self.status_code == 200 and not self.error_code

    @property
    def text(self) -> str | None:
        """What the model wrote (its first choice); None where there is none: a failure, an embedding, a tool call."""
        choices = self._part("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(first, dict):
            return None
        message = first.get("message")
        written = message.get("content") if isinstance(message, dict) else first.get("text")
        return written if isinstance(written, str) else None

    @property
    def embedding(self) -> list[float] | None:
        """The (first) embedding; None where there is none."""
        data = self._part("data")
        first = data[0] if isinstance(data, list) and data else None
        vector = first.get("embedding") if isinstance(first, dict) else None
        return vector if isinstance(vector, list) else None

    def json(self) -> Any:
        """The engine's answer, decoded; None where it gave none or one that is no JSON."""
        try:
            return msgspec.json.decode(self.body) if self.body else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    @property
    def why(self) -> str:
        """Why it failed, in one line; empty where it did not."""
        if self.ok:
            return ""
        answer = f"status {self.status_code}: {self.body[:300].decode(errors='replace')}"
        return " ".join((self.error_message or self.error_code or answer).split())

    def check(self) -> BatchResult:
        """Itself.

        Raises:
            RequestFailedError: it failed.
        """
        if not self.ok:
            raise RequestFailedError(f"request {self.custom_id} failed ({self.why}): `tokenyard explain {self.job_id}`")
        return self

    def _part(self, name: str) -> Any:
        answer = self.json() if self.ok else None
        return answer.get(name) if isinstance(answer, dict) else None


def public(result: Result) -> BatchResult:
    """A result of the queue as its author sees it."""
    return BatchResult(
        custom_id=result.custom_id,
        status_code=result.status_code,
        body=result.body,
        error_code=result.error_code,
        error_message=result.error_message,
        prompt_tokens=result.prompt_tokens,
        output_tokens=result.output_tokens,
        worker=result.worker,
        attempt=result.attempt,
        job_id=result.job_id,
    )


def status_of(batch: str, counts: BatchCounts, state: str) -> BatchStatus:
    """The counts of a batch as its author sees them; ``state`` is that of ``BatchStatus``."""
    return BatchStatus(
        batch=batch,
        state=state,
        total=counts.total,
        done=counts.done,
        failed=counts.failed,
        cancelled=counts.cancelled,
        prompt_tokens=counts.prompt_tokens,
        output_tokens=counts.output_tokens,
        complete=counts.complete,
    )

"""Dead letters: jobs that failed for good, as they were, and how each of their attempts failed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from broker.errors import TokenyardError
from broker.jobs import Priority, Submission

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
_Text = Annotated[str, msgspec.Meta(max_length=4096)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=10**9)]
#: Attempts that are read of a letter.
_MOST_ATTEMPTS = 1000


class UnknownLetterError(TokenyardError):
    """No dead letter of that id is stored: there never was one, or its time to live is over."""


class Attempt(msgspec.Struct, frozen=True):
    """How an attempt failed.

    Attributes:
        attempt: its number, 1 for the first.
        worker: where it ran.
        started: when a worker took it, seconds since the epoch on Redis' clock, 0 where not known; ``ended`` likewise.
        why: one line.
    """

    attempt: _Count
    worker: _Text
    started: _Seconds
    ended: _Seconds
    why: _Text

    @property
    def seconds(self) -> float:
        """How long it ran; 0 where that is not known."""
        return max(self.ended - self.started, 0.0) if self.started else 0.0


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A job that failed for good. Times are seconds since the epoch on Redis' clock.

    Attributes:
        job_id: its id.
        batch: id of its batch, where its result is, too.
        custom_id: the client's own id.
        url: OpenAI path.
        priority: level that it was served at.
        submitted: when it was submitted; ``died``: when it was given up.
        status_code: HTTP status of the last answer, 0 where there was none.
        error_code: why there was none.
        error_message: one line.
        max_tokens: most tokens it may generate, 0 where it does not say.
        timeout_s: seconds that an attempt might run, 0 for any.
        prefix: marks of how its prompt begins, as text.
        has_body: whether the request itself is kept, so that it can be tried again from here.
        attempts: oldest first.
    """

    job_id: str
    batch: _Text
    custom_id: _Text
    url: _Text
    priority: Priority
    submitted: _Seconds
    died: _Seconds
    status_code: Annotated[int, msgspec.Meta(ge=0, le=999)] = 0
    error_code: _Text = ""
    error_message: str = ""
    max_tokens: _Count = 0
    timeout_s: Annotated[float, msgspec.Meta(ge=0, le=1e7)] = 0.0
    prefix: str = ""
    has_body: bool = False
    attempts: list[Attempt] = []

    @property
    def why(self) -> str:
        """Why it was given up, in a line."""
        if self.error_code:
            return f"{self.error_code}: {self.error_message}"
        return self.attempts[-1].why if self.attempts else f"status {self.status_code}"

    def submission(self, job_id: str, body: bytes) -> Submission:
        """The same request as a fresh job."""
        return Submission(job_id, self.custom_id, self.url, body, self.max_tokens, self.prefix)


_decode_attempt = msgspec.json.Decoder(Attempt).decode


def parse_letter(job_id: str, raw: Mapping[bytes, bytes]) -> DeadLetter | None:
    """A dead letter from its hash; None where there is none or it is not one (anyone can write to Redis).

    Args:
        job_id: id of its job.
        raw: the hash; its ``body`` may be left out, or stand for itself with any value.
    """
    texts = {_text(key): _text(value) for key, value in raw.items()}
    fields: dict[str, object] = dict(texts)
    fields["has_body"] = "body" in fields
    fields["attempts"] = _attempts(texts.get("history", ""))
    fields["job_id"] = job_id
    try:
        return msgspec.convert(fields, DeadLetter, strict=False)
    except msgspec.ValidationError:
        return None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _attempts(history: str) -> list[Attempt]:
    """A line is an attempt; what is none is left out."""
    found: list[Attempt] = []
    for line in history.splitlines()[:_MOST_ATTEMPTS]:
        try:
            found.append(_decode_attempt(line))
        except (msgspec.DecodeError, UnicodeEncodeError):  # of a forged line
            continue
    return found

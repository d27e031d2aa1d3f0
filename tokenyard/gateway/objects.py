"""Files and batches as the OpenAI API shows them, and as they are kept. Pure.

Form: https://platform.openai.com/docs/api-reference/files and …/batch. Times are seconds since the epoch, sizes bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from broker.jobs import BatchCounts

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
#: A batch of one of these changes no more.
FINAL: frozenset[str] = frozenset({"failed", "completed", "expired", "cancelled"})


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a file beside its content."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    object: str = "file"
    status: str = "processed"


class BatchError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a batch failed before it began: a line of its file."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class StoredBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch. ``total``, ``completed`` and ``failed`` are requests, as of its last change of status."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    status: BatchStatus = "validating"
    metadata: dict[str, str] | None = None
    errors: tuple[BatchError, ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def is_final(self) -> bool:
        """Whether nothing of it changes any more."""
        return self.status in FINAL


def with_counts(batch: StoredBatch, counts: BatchCounts) -> StoredBatch:
    """The batch as far as the queue has it."""
    return msgspec.structs.replace(
        batch,
        total=max(counts.total, batch.total),
        completed=counts.done,
        failed=counts.failed + counts.cancelled,
        prompt_tokens=counts.prompt_tokens,
        output_tokens=counts.output_tokens,
    )


_NOT_SHOWN = ("total", "completed", "failed", "prompt_tokens", "output_tokens")


def batch_object(batch: StoredBatch) -> dict[str, Any]:
    """A batch as the API shows it."""
    shown: dict[str, Any] = msgspec.to_builtins(batch)
    for name in _NOT_SHOWN:
        del shown[name]
    shown["object"] = "batch"
    shown["errors"] = {"object": "list", "data": shown["errors"]} if batch.errors else None
    shown["request_counts"] = {"total": batch.total, "completed": batch.completed, "failed": batch.failed}
    tokens = batch.prompt_tokens + batch.output_tokens
    shown["usage"] = {
        "input_tokens": batch.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": batch.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens,
    }
    return shown


class _Kept(Protocol):
    @property
    def id(self) -> str: ...

    @property
    def created_at(self) -> int: ...


_T = TypeVar("_T", bound=_Kept)


def page_of(items: Sequence[_T], after: str | None, limit: int, *, newest_first: bool) -> tuple[list[_T], bool]:
    """A page of a list by time, and whether more follow. An unknown ``after`` gives an empty page."""
    ordered = sorted(items, key=lambda item: (item.created_at, item.id), reverse=newest_first)
    if after is not None:
        ids = [item.id for item in ordered]
        ordered = ordered[ids.index(after) + 1 :] if after in ids else []
    return ordered[:limit], len(ordered) > limit


def list_object(shown: Sequence[dict[str, Any]], *, more: bool) -> dict[str, Any]:
    """A page as the API shows it."""
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": more,
    }

"""What the pool's event stream says, as plain values. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: No job has more; what claims so is forged, and would spoil what is learned from it.
_MOST_TOKENS = 10**9


@dataclass(frozen=True, slots=True)
class Completed:
    """Jobs of a worker ended: job id -> prompt and output tokens."""

    worker: str
    jobs: dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Returned:
    """Jobs left a worker's queue and wait again."""

    worker: str
    jobs: list[str]


@dataclass(frozen=True, slots=True)
class WorkerChanged:
    """A worker joined, left or changed its state."""

    worker: str


@dataclass(frozen=True, slots=True)
class BatchCancelled:
    """A batch was cancelled."""

    batch_id: str


Event = Completed | Returned | WorkerChanged | BatchCancelled


def parse_event(fields: Mapping[str, str]) -> Event | None:
    """An event from its stream entry; None where it is not one (anyone can write to Redis)."""
    try:
        match fields["kind"]:
            case "completed":
                return Completed(fields["worker"], dict(_ended(text) for text in fields["jobs"].split()))
            case "returned":
                return Returned(fields["worker"], fields["jobs"].split())
            case "worker":
                return WorkerChanged(fields["worker"])
            case "cancelled":
                return BatchCancelled(fields["batch"])
            case _:
                return None
    except (KeyError, ValueError):
        return None


def _ended(text: str) -> tuple[str, tuple[int, int]]:
    job_id, prompt_tokens, output_tokens = text.rsplit(":", 2)
    return job_id, (_tokens(prompt_tokens), _tokens(output_tokens))


def _tokens(text: str) -> int:
    tokens = int(text)
    if not 0 <= tokens <= _MOST_TOKENS:
        raise ValueError(f"not a number of tokens: {tokens}")
    return tokens

"""What the pool's event stream says, as plain values. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

#: No job has more; what claims so is forged, and would spoil what is learned from it.
_MOST_TOKENS = 10**9


class EndedTokens(NamedTuple):
    """Lengths of an ended job in tokens: its prompt, its output, and how much of the prompt was in the prefix cache."""

    prompt: int
    output: int
    cached: int


@dataclass(frozen=True, slots=True)
class Completed:
    """Jobs of a worker ended: job id -> lengths."""

    worker: str
    jobs: dict[str, EndedTokens]


@dataclass(frozen=True, slots=True)
class Returned:
    """Jobs left a worker's queue and wait again."""

    worker: str
    jobs: list[str]


@dataclass(frozen=True, slots=True)
class Dropped:
    """Jobs left a worker's queue and do not wait: they go on, or ended, on another worker."""

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


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Jobs were cancelled, each by itself."""

    jobs: list[str]


@dataclass(frozen=True, slots=True)
class Submitted:
    """A tenant (not the default one) has new jobs in its streams."""

    tenant: str


Event = Submitted | Completed | Returned | Dropped | WorkerChanged | BatchCancelled | Withdrawn


def parse_event(fields: Mapping[str, str]) -> Event | None:
    """An event from its stream entry; None where it is not one (anyone can write to Redis)."""
    try:
        match fields["kind"]:
            case "completed":
                return Completed(fields["worker"], dict(_ended(text) for text in fields["jobs"].split()))
            case "returned":
                return Returned(fields["worker"], fields["jobs"].split())
            case "dropped":
                return Dropped(fields["worker"], fields["jobs"].split())
            case "worker":
                return WorkerChanged(fields["worker"])
            case "cancelled":
                return BatchCancelled(fields["batch"])
            case "submitted":
                return Submitted(fields["tenant"])
            case "withdrawn":
                return Withdrawn(fields["jobs"].split())
            case _:
                return None
    except (KeyError, ValueError):
        return None


def _ended(text: str) -> tuple[str, EndedTokens]:
    job_id, prompt, output, cached = text.rsplit(":", 3)
    return job_id, EndedTokens(_tokens(prompt), _tokens(output), _tokens(cached))


def _tokens(text: str) -> int:
    tokens = int(text)
    if not 0 <= tokens <= _MOST_TOKENS:
        raise ValueError(f"not a number of tokens: {tokens}")
    return tokens

"""Random loads for tests of ContinuousBatch: devices, and requests that come and are cancelled."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from broker.batching import ContinuousBatch, Event
from broker.throughput import Profile

BLOCK = 4


@dataclass
class Op:
    """Add a request at ``at``, or (``output`` None) cancel the one with that id."""

    at: float
    id: int
    prompt: int = 1
    output: int | None = None
    prefix: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])


# Times are binary fractions, so that both ways of adding them up are exact and can be compared with ==.
ticks = st.integers(0, 8).map(lambda n: n / 1024)
profiles = st.builds(
    Profile,
    prefill_a=ticks,
    prefill_b=ticks,
    prefill_c=ticks,
    decode_d=ticks,
    decode_e=ticks,
    decode_f=ticks,
    kv_tokens=st.integers(4, 24).map(lambda blocks: blocks * BLOCK),
    seats=st.integers(1, 6),
)


def batch_of(profile: Profile, budget: int) -> ContinuousBatch:
    """The engine under test."""
    return ContinuousBatch(profile, max_batched_tokens=budget, block_tokens=BLOCK)


def drain(batch: ContinuousBatch) -> list[Event]:
    """Let it run until nothing is left."""
    events: list[Event] = []
    while (at := batch.next_event_at()) is not None:
        events += batch.advance(at)
    return events


def apply(batch: ContinuousBatch, op: Op, *, caching: bool = True) -> None:
    """Add or cancel a request; without ``caching`` its prefix is its own."""
    if op.output is None:
        batch.cancel(op.id, op.at)
    else:
        batch.add(op.id, op.prompt, op.output, op.at, op.prefix if caching else ())


def replay(batch: ContinuousBatch, ops: list[Op], *, caching: bool = True) -> list[Event]:
    """Everything that happens."""
    for op in ops:
        apply(batch, op, caching=caching)
    return drain(batch)

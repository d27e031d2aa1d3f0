"""How near an engine that is kept full comes to the linear program, which is what no engine can pass. Pure.

The program shares memory and steps out to the last token. An engine holds its memory in blocks, takes a request in when
its prompt fits and finds out later that its output does not, computes what it lost to that once more (where the prefix
cache does not hold it still), and pays for the steps in which it reads. How much all that takes depends on the mix and
on how scarce memory is; so some hundred requests of the mix are put through the model of continuous batching.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import count

import numpy as np

from broker.batching import ContinuousBatch, EventKind
from broker.fluid import solve
from broker.length_class import LengthClass
from broker.throughput import DeviceKind
from planner.simulated import Ints

#: vLLM's block of KV cache (tokens), where nobody chose another.
BLOCK_TOKENS = 16
#: Requests that are timed: so many times what runs at once, and so many at least.
_TURNS, _LEAST_TIMED = 3, 150
#: As a worker takes them: one more for so many, which the engine starts in the very step in which another ends.
_AHEAD = 16
#: Multiples of the golden ratio's fraction fill the unit interval evenly: every stretch of them has the whole mix.
_GOLDEN = (5**0.5 - 1) / 2


def as_reached(
    kinds: Sequence[DeviceKind], classes: Sequence[LengthClass], block_tokens: int = BLOCK_TOKENS
) -> list[DeviceKind]:
    """The same engines, slower by what they lose on this mix: with these the program tells what to expect.

    Args:
        kinds: engines.
        classes: the mix.
        block_tokens: tokens that a block of their KV cache holds.
    """
    mix = tuple(classes)
    return [replace(kind, slowdown=kind.slowdown / _share(_alone(kind), mix, block_tokens)) for kind in kinds]


def requests_at_once(kv_tokens: int, seats: int, mix: Sequence[LengthClass]) -> int:
    """Requests that an engine runs at a time: as many as its memory holds on average, or its seats."""
    steps = sum(c.jobs * c.work.steps for c in mix)
    mean = sum(c.jobs * c.work.context_steps for c in mix) / steps if steps else 1.0
    return max(1, min(seats, int(kv_tokens / mean)))


def _alone(kind: DeviceKind) -> DeviceKind:
    """One such engine with nothing to do, at the speed of its profile."""
    return DeviceKind(kind.profile, max_batched_tokens=kind.max_batched_tokens, context_tokens=kind.context_tokens)


@lru_cache(maxsize=4096)
def _share(kind: DeviceKind, classes: tuple[LengthClass, ...], block_tokens: int) -> float:
    """Share of the program's rate, above 0 and at most 1."""
    lengths = np.array([_lengths(c) for c in classes], dtype=np.int64).reshape(-1, 2)
    jobs = np.array([c.jobs for c in classes], dtype=float)
    profile = kind.profile
    if profile.seats < 1 or profile.kv_tokens < block_tokens:
        return 1.0
    batch = ContinuousBatch(profile, max_batched_tokens=kind.max_batched_tokens, block_tokens=block_tokens)
    held = [kind.can_hold(int(p + o)) and batch.can_hold(int(p), int(o)) for p, o in lengths]
    lengths, jobs = lengths[held], jobs[held]
    if not jobs.sum() > 0:
        return 1.0
    mix = [LengthClass.of(int(p), int(o), n) for (p, o), n in zip(lengths, jobs.tolist(), strict=True)]
    best = solve(mix, [kind]).jobs_per_s
    rate = _rate(batch, _order(lengths, jobs), _together(kind, mix))
    return min(rate / best, 1.0) if 0 < best < float("inf") and rate > 0 else 1.0


def _lengths(c: LengthClass) -> tuple[int, int]:
    """Prompt and output tokens of a typical job of a class."""
    steps = c.work.steps
    held = c.work.context_steps / steps - (steps - 1) / 2 if steps > 0 else c.work.prompt
    return max(round(held), 1), round(steps) + 1


def _together(kind: DeviceKind, mix: Sequence[LengthClass]) -> int:
    """Requests that are given to the engine at once: late binding gives it what its memory holds, and a few ahead."""
    running = requests_at_once(kind.profile.kv_tokens, kind.profile.seats, mix)
    return running + max(1, running // _AHEAD)


def _order(lengths: Ints, jobs: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Iterator[tuple[int, int]]:
    """Requests without end, in an order of which every stretch has about the same mix."""
    upto = np.cumsum(jobs) / jobs.sum()
    for number in count():
        at = min(int(np.searchsorted(upto, (number * _GOLDEN) % 1, side="right")), len(upto) - 1)
        yield int(lengths[at, 0]), int(lengths[at, 1])


def _rate(batch: ContinuousBatch, order: Iterator[tuple[int, int]], together: int) -> float:
    """Requests a second of an engine that has always something to do; 0 where it takes no time."""
    for number in range(together):
        prompt, output = next(order)
        # The first end one after another, as they do when all goes its way.
        batch.add(number, prompt, 1 + number * output // together, 0.0, [(number, prompt)])
    ended, begun, first, now = 0, together - 1, 0.0, 0.0
    skipped = 2 * together
    last = skipped + max(_TURNS * together, _LEAST_TIMED)
    while ended < last and (at := batch.next_event_at()) is not None:
        now = at
        for event in batch.advance(at):
            if event.kind is EventKind.FINISHED:
                ended, begun = ended + 1, begun + 1
                first = now if ended == skipped else first
                prompt, output = next(order)
                batch.add(begun, prompt, output, now, [(begun, prompt)])
    return (ended - skipped) / (now - first) if now > first else 0.0

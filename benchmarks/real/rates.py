"""Tokens a second from what an engine's counter said now and then. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class Sample(NamedTuple):
    """A counter at a moment.

    Attributes:
        seen: seconds.
        tokens: counted since the start.
    """

    seen: float
    tokens: int


def rate_of(samples: Sequence[Sample]) -> float:
    """Tokens a second between the first and the last step that ended while it was looked at.

    A step of a slow engine takes many seconds, and its tokens come all at once at its end: from end to end no step
    counts in part. Where fewer than two ended, it is the rate over all samples.

    Args:
        samples: two at least, in the order of time.
    """
    ended = [after for before, after in pairwise(samples) if after.tokens > before.tokens]
    first, last = (ended[0], ended[-1]) if len(ended) > 1 else (samples[0], samples[-1])
    return (last.tokens - first.tokens) / (last.seen - first.seen)

"""What an engine is worth where jobs have values: the most value it does in a second. Pure.

One engine of a kind has a second, which goes into jobs' own work and into steps of d seconds, each with room for so
much context, so many seats and tokens. By duality the most value is the least, over weights of the three rooms, of the
highest

    value / (own + d * sum_i weight_i * use_i / room_i)

of any job that it holds. Whatever the weights, no engine does more; the best are searched for, for all kinds at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from broker.throughput import DeviceKind
from planner.sparse_rows import Array

#: Steps of a golden-section search: the interval is then below a millionth.
_STEPS = 30
_GOLDEN = (5**0.5 - 1) / 2


def engine_worth(kinds: Sequence[DeviceKind], work: Array, longest: Array, jobs: Array) -> Array:
    """Value a second that one engine of each kind does at most.

    Args:
        kinds: the engines.
        work: of a job of each class, as ``broker.throughput.Work``.
        longest: tokens of the longest job of each class.
        jobs: value of a job of each class.
    """
    if not kinds:
        return np.zeros(0)
    p = [kind.profile for kind in kinds]
    times = np.array([[q.prefill_b, q.prefill_c, q.decode_e, q.decode_f] for q in p])
    rooms = np.array([[q.kv_tokens, q.seats, kind.max_batched_tokens] for q, kind in zip(p, kinds, strict=True)], float)
    steps = np.array([q.decode_d for q in p])
    value = np.where(longest[:, None] <= [kind.most_tokens for kind in kinds], jobs[:, None], 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        own = work[:, :4] @ times.T
        uses = [steps * (work[:, [feature]] / rooms[:, i]) for i, feature in enumerate((3, 2, 4))]

        def most(seconds: Array) -> Array:
            return np.where(value > 0, value / seconds, 0.0).max(axis=0)

        def between(one: Array, other: Array) -> tuple[Array, Array]:
            """The best mean of two uses of rooms, and the value with it."""
            low, high = np.zeros(len(kinds)), np.ones(len(kinds))
            for _ in range(_STEPS):
                left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
                better = most(own + left * one + (1 - left) * other) < most(own + right * one + (1 - right) * other)
                low, high = np.where(better, low, left), np.where(better, right, high)
            part = (low + high) / 2
            mean = part * one + (1 - part) * other
            return mean, most(own + mean)

        mean, first = between(uses[0], uses[1])
        _, second = between(mean, uses[2])
    return np.minimum(first, second)

"""A day in some minutes: the rate swings 10:1, and short requests give way to long ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from benchmarks.resizing.shapes import Shape, best_shape
from broker.length_class import LengthClass
from planner.simulated import Requests

#: Mean prompt and output tokens of the requests of the morning, and of those of the evening.
SHORT, LONG = (120, 50), (1600, 160)
#: Spread of their lengths (sigma of a lognormal), and the longest.
_SIGMA = 0.3
_LONGEST_PROMPT, _LONGEST_OUTPUT = 3500, 500
#: The rate, as a share of what the best pool for the mix of the moment does: it begins low and ends high.
_LOW, _HIGH = 0.15, 1.5
_SWINGS = 1.5


@dataclass(frozen=True, slots=True)
class Day:
    """So many seconds of load.

    Attributes:
        seconds: from the first arrival to the last.
    """

    seconds: float

    def long_share(self, at: float) -> float:
        """Share of the requests that are long, ``at`` seconds from the start: none at first, all in the end."""
        x = min(max((at / self.seconds - 0.35) / 0.3, 0.0), 1.0)
        return x * x * (3 - 2 * x)

    def classes(self, at: float) -> list[LengthClass]:
        """The mix at that time."""
        share = self.long_share(at)
        return [LengthClass.of(*SHORT, 1 - share + 1e-6), LengthClass.of(*LONG, share + 1e-6)]

    def use(self, at: float) -> float:
        """The rate at that time, as a share of what the best pool does."""
        return _LOW + (_HIGH - _LOW) * (1 - math.cos(2 * math.pi * _SWINGS * at / self.seconds)) / 2

    def best(self, at: float) -> Shape:
        """The best pool for that time's mix."""
        return best_shape(self.classes(at))

    def draw(self, seed: int) -> tuple[Requests, list[bool]]:
        """The requests, in order of arrival; and which of them are long."""
        rng = np.random.default_rng(seed)
        arrivals: list[float] = []
        long: list[bool] = []
        for second in range(math.ceil(self.seconds)):
            classes = self.classes(second)
            rate = self.use(second) * self.best(second).jobs_per_s(classes)
            count = int(rng.poisson(rate))
            arrivals += sorted(second + rng.random(count))
            long += (rng.random(count) < self.long_share(second)).tolist()
        means = np.where(np.array(long)[:, None], LONG, SHORT)
        drawn = means * rng.lognormal(-(_SIGMA**2) / 2, _SIGMA, means.shape)
        lengths = np.clip(drawn.round().astype(np.int64), 1, (_LONGEST_PROMPT, _LONGEST_OUTPUT))
        return Requests(np.array(arrivals), lengths[:, 0], lengths[:, 1]), long

"""What devices have done of a batch over time, from its results as they are read. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from broker.events import EndedTokens
from broker.jobs import BATCH_CANCELLED, Result
from broker.recent_mix import MixTally, RecentMix
from tokenyard.ended_jobs import Floats
from tokenyard.known_devices import device_name
from tokenyard.live.time_bins import TimeBins

#: Time lines of so many devices are told, those with the most tokens.
MOST_DEVICES = 64
#: Devices that are told apart at all: anyone can write results.
_MOST_NAMES = 4096
#: A job takes a millisecond at least: Redis' stamps are no finer (seconds). No request has more tokens.
_SHORTEST_S = 1e-3
_MOST_TOKENS = 10**9


@dataclass(frozen=True, slots=True)
class DeviceLine:
    """One device over time; its lists have a value for each interval.

    Attributes:
        name: the device's name.
        jobs: jobs that ended on it.
        tokens: their prompt and output tokens.
        busy_s: seconds in which it had a job running, to the grain of an interval.
        running: jobs running, the mean of each interval.
    """

    name: str
    jobs: int
    tokens: int
    busy_s: float
    running: list[float]


@dataclass(frozen=True, slots=True)
class Line:
    """A batch over time, as far as its results were read.

    Attributes:
        begin: seconds since the epoch; ``width_s``: length of an interval, seconds.
        prompt: prompt tokens a second of all devices, in each interval; ``output``: output tokens.
        devices: by name; at most ``MOST_DEVICES``, those with the most tokens. ``more``: how many are left out.
        busy_s: of all devices, those left out too.
    """

    begin: float
    width_s: float
    prompt: list[float]
    output: list[float]
    devices: list[DeviceLine]
    more: int
    busy_s: Mapping[str, float]


class BatchLine:
    """Takes in the results of one batch, and keeps sums alone: as much for ten jobs as for ten million."""

    def __init__(self, created: float) -> None:
        """Args:
        created: when the batch began, seconds since the epoch on Redis' clock: no job of it did before.
        """
        self.read = 0
        self.tokens = 0
        self._bins = TimeBins(created)
        self._jobs: dict[str, int] = {}
        self._tokens: dict[str, int] = {}
        self._mix = MixTally()

    def add(self, results: Iterable[Result], now: float, pool: str = "") -> None:
        """Take in results.

        Args:
            results: the next ones.
            now: nothing ended later, seconds on Redis' clock: what says so is forged.
            pool: their devices are called ``POOL/WORKER`` where one is given.
        """
        all_of_them = list(results)
        self.read += len(all_of_them)
        ran = sorted((r for r in all_of_them if _ran(r, now)), key=lambda r: r.worker)
        for worker, group in groupby(ran, key=lambda r: r.worker):
            self._add(device_name(worker, pool), list(group))

    @property
    def mix(self) -> RecentMix:
        """The lengths of the jobs that are done."""
        return self._mix.mix()

    def line(self) -> Line:
        """All of it so far."""
        bins, first = self._bins, self._bins.first()
        names = sorted(self._jobs, key=lambda name: (-self._tokens[name], name))
        running = {name: bins.means(f"running {name}") for name in names}
        busy = {name: float(np.minimum(mean, 1.0).sum()) * bins.width_s for name, mean in running.items()}
        devices = [
            DeviceLine(name, self._jobs[name], self._tokens[name], busy[name], _rounded(running[name][first:]))
            for name in sorted(names[:MOST_DEVICES])
        ]
        return Line(
            bins.begin + first * bins.width_s,
            bins.width_s,
            _rounded(bins.means("prompt")[first:]),
            _rounded(bins.means("output")[first:]),
            devices,
            len(names) - len(devices),
            busy,
        )

    def _add(self, name: str, results: Sequence[Result]) -> None:
        if name not in self._jobs and len(self._jobs) >= _MOST_NAMES:
            return
        prompt, output = (
            np.array([min(n, _MOST_TOKENS) for n in tokens], dtype=float)
            for tokens in ([r.prompt_tokens for r in results], [r.output_tokens for r in results])
        )
        start = np.array([max(r.started, r.dispatched) for r in results])
        end = np.maximum(np.array([r.ended for r in results]), start + _SHORTEST_S)
        self._bins.add(f"running {name}", start, end, np.ones(len(start)))
        self._bins.add("prompt", start, end, prompt / (end - start))
        self._bins.add("output", start, end, output / (end - start))
        tokens = int(prompt.sum() + output.sum())
        self._jobs[name] = self._jobs.get(name, 0) + len(results)
        self._tokens[name] = self._tokens.get(name, 0) + tokens
        self.tokens += tokens
        self._mix.add(EndedTokens(r.prompt_tokens, r.output_tokens, r.cached_tokens) for r in results if r.ok)


def _ran(result: Result, now: float) -> bool:
    """Whether a device ran it to its end, and its times can be."""
    there = bool(result.worker) and result.error_code != BATCH_CANCELLED
    return there and 0 < result.dispatched <= now and result.started <= now and result.ended <= now + 1.0


def _rounded(values: Floats) -> list[float]:
    return [round(float(value), 2) for value in values]

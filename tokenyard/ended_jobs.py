"""The ended jobs of a batch as columns of numbers: about 100 bytes a job, so that a million fit. Pure."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from broker.jobs import BATCH_CANCELLED, Result
from tokenyard.known_devices import device_name

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_TIMES = 5
_NUMBERS = 7
#: Stored times are rounded to the millisecond, the ids of a stream's entries cut off: an end may seem to come so much
#: before its beginning (seconds).
_STAMP_S = 0.002
#: More tokens than any request has; anyone can write to Redis.
_MOST = 10**9


class Ending(IntEnum):
    """How a job ended."""

    DONE = 0
    FAILED = 1
    CANCELLED = 2


@dataclass(frozen=True, slots=True)
class JobColumns:
    """Ended jobs, one in each place of every array.

    Times are seconds since the epoch on Redis' clock, 0 where the thing did not happen; ``device`` is an index into
    ``devices``, -1 where none ran the job; ``predicted_s`` and ``predicted_output_tokens`` are 0 where nothing was
    predicted.
    """

    devices: tuple[str, ...]
    submitted: Floats
    dispatched: Floats
    started: Floats
    ended: Floats
    predicted_s: Floats
    device: Ints
    ending: Ints
    attempt: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    predicted_output_tokens: Ints
    cached_tokens: Ints

    def __len__(self) -> int:
        return len(self.ended)

    def select(self, mask: NDArray[np.bool_]) -> JobColumns:
        """The jobs for which ``mask`` says yes."""
        return JobColumns(self.devices, *(getattr(self, name)[mask] for name in _NAMES))

    def ran(self) -> JobColumns:
        """The jobs that a device ran to their end: those whose times tell something."""
        there = (self.device >= 0) & (self.dispatched > 0) & (self.ended >= self.dispatched)
        return self.select(there & (self.ending != Ending.CANCELLED))


_NAMES = tuple(name for name in JobColumns.__dataclass_fields__ if name != "devices")


class EndedJobs:
    """Takes in results as they are read, and keeps their numbers alone."""

    def __init__(self) -> None:
        self._devices: dict[str, int] = {}
        self._times = array("d")
        self._numbers = array("q")

    def add(self, results: Iterable[Result], pool: str = "") -> None:
        """Take in results; their devices are called ``POOL/WORKER`` where a pool is given."""
        for result in results:
            self._times.extend(_times(result))
            self._numbers.extend((self._index(result.worker, pool), *_numbers(result)))

    def columns(self) -> JobColumns:
        """All jobs so far. Later ones are not in it."""
        times: list[Floats] = list(np.array(self._times, dtype=np.float64).reshape(-1, _TIMES).T)
        numbers: list[Ints] = list(np.array(self._numbers, dtype=np.int64).reshape(-1, _NUMBERS).T)
        submitted, dispatched, started, ended, predicted_s = times
        device, ending, attempt, prompt, output, predicted_output, cached = numbers
        return JobColumns(
            tuple(self._devices),
            submitted=submitted,
            dispatched=dispatched,
            started=started,
            ended=ended,
            predicted_s=predicted_s,
            device=device,
            ending=ending,
            attempt=attempt,
            prompt_tokens=prompt,
            output_tokens=output,
            predicted_output_tokens=predicted_output,
            cached_tokens=cached,
        )

    def _index(self, worker: str, pool: str) -> int:
        if not worker:
            return -1
        return self._devices.setdefault(device_name(worker, pool), len(self._devices))


def _times(result: Result) -> tuple[float, ...]:
    ended = result.ended
    if result.dispatched - _STAMP_S <= ended:
        ended = max(ended, result.dispatched)
    times = (result.submitted, result.dispatched, result.started, ended, result.predicted_s)
    return tuple(t if math.isfinite(t) and t > 0 else 0.0 for t in times)


def _numbers(result: Result) -> tuple[int, ...]:
    ending = Ending.DONE if result.ok else Ending.FAILED
    if result.error_code == BATCH_CANCELLED:
        ending = Ending.CANCELLED
    tokens = (
        result.attempt,
        result.prompt_tokens,
        result.output_tokens,
        result.predicted_output_tokens,
        result.cached_tokens,
    )
    return (ending, *(min(max(n, 0), _MOST) for n in tokens))

"""What a simulation is given and what it tells, as plain values. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker.jobs import WaitingJob
from broker.throughput import DeviceKind

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Requests:
    """What comes in: arrival times (seconds, ascending), prompt and output tokens; all of shape (requests,)."""

    arrivals: Floats
    prompt_tokens: Ints
    output_tokens: Ints

    def __len__(self) -> int:
        return len(self.arrivals)


@dataclass(frozen=True, slots=True)
class SimulatedDevice:
    """A device: its name, and how it truly is.

    Attributes:
        name: unique in its cluster.
        kind: its times and sizes.
        told: whether its heartbeat announces its profile.
        label: what kind of device it is, for a reader.
    """

    name: str
    kind: DeviceKind
    told: bool = True
    label: str = ""


@dataclass(frozen=True, slots=True)
class Delays:
    """Times of the broker (seconds), as measured live.

    Attributes:
        hop_s: one way between scheduler and worker.
        pace_s: the scheduler decides at most once in this time.
        heartbeat_s: a worker says how it is this often.
        look_s: the scheduler looks at heartbeats this often; None: as it does live for so many devices.
        round_trip_s: time that a device queue hides.
        finish_s: at the end the scheduler looks this often whether jobs should move.
    """

    hop_s: float = 0.002
    pace_s: float = 0.002
    heartbeat_s: float = 0.5
    look_s: float | None = None
    round_trip_s: float = 0.02
    finish_s: float = 0.25


@dataclass(frozen=True, slots=True)
class SpeedChange:
    """From ``at`` seconds on a device runs ``slowdown`` times slower than its kind says."""

    at: float
    device: str
    slowdown: float


@dataclass(slots=True)
class Outcome:
    """What happened; arrays of shape (requests,), times in seconds, NaN for what did not happen.

    Attributes:
        device: index of the device that ran it, -1 for none.
        dispatched: when the scheduler sent it.
        first_token: when its first token came.
        finished: when its last token came.
        samples: by device: time, running requests, KV tokens held, prompt and output tokens done; shape (n, 5).
        preemptions: times a request lost its KV memory.
        copies: requests that ran a second time, on another device.
        wasted_tokens: tokens computed by the runs that lost.
        refused: requests that went to a device whose KV memory could never hold them: they failed there.
        last_seen_at: when the last request entered the scheduler's window: the end of the steady state.
    """

    device: Ints
    dispatched: Floats
    first_token: Floats
    finished: Floats
    samples: list[Floats]
    preemptions: int
    copies: int
    wasted_tokens: int
    last_seen_at: float
    refused: int = 0

    @property
    def makespan(self) -> float:
        """Seconds from the start to the last result."""
        return float(np.nanmax(self.finished, initial=0.0))


@dataclass(slots=True)
class KnownLengths:
    """Predictions that are true, or off by a known ``factor``: for measuring what not knowing costs."""

    requests: Requests
    factor: float = 1.0

    def predict(self, job: WaitingJob) -> tuple[int, int]:
        i = int(job.job_id[2:])
        return int(self.requests.prompt_tokens[i]), max(1, round(int(self.requests.output_tokens[i]) * self.factor))

    def observe(self, job: object, prompt_tokens: int, output_tokens: int) -> bool:
        del job, prompt_tokens, output_tokens
        return False

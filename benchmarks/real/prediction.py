"""The simulator's prediction of a batch: from the workers' profiles, their speed and the requests' lengths."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.cluster import BenchmarkError
from broker.cluster import InFlight
from broker.heartbeat import Heartbeat
from broker.jobs import WaitingJob
from broker.lengths import LengthModel
from broker.openai_batch import RequestLine
from broker.policies import make_policy
from planner.simulate import Outcome, Requests, SimulatedDevice, Simulation
from tokenyard.known_devices import known_device

#: A rate is that between these shares of the time: the batch has filled, and does not run empty yet.
_MIDDLE = (0.25, 0.75)
#: Where there is one device, any policy is as good.
_ALONE = "round_robin"
_AS_PROFILED: Mapping[str, float] = {}


def predict(
    requests: Sequence[RequestLine],
    lengths: Mapping[str, tuple[int, int]],
    beats: Mapping[str, Heartbeat],
    policy: str,
    seed: int,
    slowdowns: Mapping[str, float] = _AS_PROFILED,
) -> Outcome:
    """Simulate the batch.

    Args:
        requests: in the order in which they are submitted.
        lengths: prompt and output tokens by custom_id. The simulated scheduler learns them as the live one does.
        beats: a heartbeat of each worker: its profile and its sizes.
        policy: name of the placement policy.
        seed: of the simulation.
        slowdowns: how much slower than its profile each worker was.

    Raises:
        BenchmarkError: a worker has no profile.
    """
    devices = [_device(name, beat, slowdowns.get(name, 1.0)) for name, beat in sorted(beats.items())]
    return _simulate(requests, _tokens(requests, lengths), devices, policy, seed)


def slowdown(
    name: str, beat: Heartbeat, backlog: Sequence[RequestLine], lengths: Mapping[str, tuple[int, int]], rate: float
) -> float:
    """How much slower a worker was than its profile.

    Args:
        beat: a heartbeat of it.
        backlog: its private backlog; a request is called by its copy and its number, see ``Questions.backlog``.
        lengths: prompt and output tokens by number.
        rate: prompt and output tokens a second that it did of it.

    Raises:
        BenchmarkError: it has no profile.
    """
    numbers = [request.custom_id.partition(".")[2] for request in backlog]
    tokens = np.array([lengths[number] for number in numbers], dtype=np.int64)
    outcome = _simulate(backlog, tokens, [_device(name, beat, 1.0)], _ALONE, 0)
    order = np.argsort(outcome.finished)
    done = np.cumsum(tokens.sum(axis=1)[order])
    first, last = _MIDDLE
    edges = np.array([first, last]) * outcome.makespan
    before, after = np.interp(edges, outcome.finished[order], done)
    return float((after - before) / (edges[1] - edges[0])) / rate


def _tokens(requests: Sequence[RequestLine], lengths: Mapping[str, tuple[int, int]]) -> NDArray[np.int64]:
    return np.array([lengths[request.custom_id] for request in requests], dtype=np.int64)


def _simulate(
    requests: Sequence[RequestLine],
    tokens: NDArray[np.int64],
    devices: Sequence[SimulatedDevice],
    policy: str,
    seed: int,
) -> Outcome:
    return Simulation(
        Requests(np.zeros(len(requests)), tokens[:, 0], tokens[:, 1]),
        devices,
        make_policy(policy),
        random.Random(seed),
        lengths=_LearnedLengths(requests),
    ).run()


def _device(name: str, beat: Heartbeat, slower: float) -> SimulatedDevice:
    kind = known_device("", beat).kind
    if kind is None:
        raise BenchmarkError(f"worker {name} has no profile")
    budget = beat.max_batched_tokens or kind.max_batched_tokens
    return SimulatedDevice(name, replace(kind, max_batched_tokens=budget, slowdown=slower))


class _LearnedLengths:
    """What the live scheduler knows of lengths; the simulation itself does not tell it sizes and limits."""

    def __init__(self, requests: Sequence[RequestLine]) -> None:
        self._model = LengthModel()
        self._requests = requests

    def predict(self, job: WaitingJob) -> tuple[int, int]:
        request = self._of(job.job_id)
        return self._model.predict(
            msgspec.structs.replace(job, body_bytes=len(request.body), max_tokens=request.max_tokens)
        )

    def observe(self, job: InFlight, prompt_tokens: int, output_tokens: int) -> bool:
        request = self._of(job.job_id)
        known = msgspec.structs.replace(job, body_bytes=len(request.body), max_tokens=request.max_tokens)
        return self._model.observe(known, prompt_tokens, output_tokens)

    def _of(self, job_id: str) -> RequestLine:
        return self._requests[int(job_id.rpartition(".")[2])]

"""The simulator's prediction of a batch: from the workers' profiles and the requests' lengths alone."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec
import numpy as np

from benchmarks.cluster import BenchmarkError
from broker.cluster import InFlight
from broker.heartbeat import Heartbeat
from broker.jobs import WaitingJob
from broker.lengths import LengthModel
from broker.openai_batch import RequestLine
from broker.policies import make_policy
from planner.simulate import Outcome, Requests, SimulatedDevice, Simulation
from tokenyard.known_devices import known_device


def predict(
    requests: Sequence[RequestLine],
    lengths: Mapping[str, tuple[int, int]],
    beats: Mapping[str, Heartbeat],
    policy: str,
    seed: int,
) -> Outcome:
    """Simulate the batch.

    Args:
        requests: in the order in which they are submitted.
        lengths: prompt and output tokens by custom_id. The simulated scheduler learns them as the live one does.
        beats: a heartbeat of each worker: its profile and its sizes.
        policy: name of the placement policy.
        seed: of the simulation.

    Raises:
        BenchmarkError: a worker has no profile.
    """
    tokens = np.array([lengths[request.custom_id] for request in requests], dtype=np.int64)
    return Simulation(
        Requests(np.zeros(len(requests)), tokens[:, 0], tokens[:, 1]),
        [_device(name, beat) for name, beat in sorted(beats.items())],
        make_policy(policy),
        random.Random(seed),
        lengths=_LearnedLengths(requests),
    ).run()


def _device(name: str, beat: Heartbeat) -> SimulatedDevice:
    kind = known_device("", beat).kind
    if kind is None:
        raise BenchmarkError(f"worker {name} has no profile")
    return SimulatedDevice(name, replace(kind, max_batched_tokens=beat.max_batched_tokens or kind.max_batched_tokens))


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

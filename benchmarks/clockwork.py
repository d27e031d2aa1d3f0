"""A saturated cluster that costs next to nothing: jobs end after their steps, at the pace of a full device.

For what is measured beside it. Nothing of an engine is modelled but what a scheduler hears: ended jobs, and a heartbeat
of each device every second.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from benchmarks.placing.lengths import Lengths
from broker.heartbeat import Heartbeat
from broker.jobs import WaitingJob
from broker.placement import Placer
from broker.throughput import DeviceKind, work_of
from planner.simulate import SimulatedDevice
from planner.simulated_worker import SimulatedWorker

#: Seconds between two rounds of the scheduler, and between two heartbeats of a device.
_PACE_S, _HEARTBEAT_S = 0.002, 1.0
_BYTES_PER_TOKEN = 4


@dataclass(slots=True)
class _Engine:
    """What a device tells. Prompts are computed first; a job's steps last as long as the mean over all that it has."""

    kind: DeviceKind
    beat: Heartbeat
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    steps: float = 0.0
    decode_s: float = 0.0  # of all its jobs, a step
    prefill_s: float = 0.0  # likewise: prompts of those that follow are computed between its steps
    due_tokens: float = 0.0  # prompt tokens to compute, and the seconds they take
    due_s: float = 0.0

    @property
    def decode_step_s(self) -> float:
        """Seconds a step takes."""
        return (self.kind.profile.decode_d + self.decode_s) * self.kind.slowdown

    def starts(self, prompt_tokens: int, output_tokens: int) -> float:
        """A job starts; returns the seconds that it takes."""
        prefill, decode = self._own(prompt_tokens, output_tokens)
        self.prefill_s += prefill / output_tokens
        self.decode_s += decode / output_tokens
        self.due_tokens += prompt_tokens
        self.due_s += prefill * self.kind.slowdown
        return output_tokens * (self.decode_step_s + self.prefill_s * self.kind.slowdown)

    def ends(self, prompt_tokens: int, output_tokens: int) -> None:
        """It ends."""
        prefill, decode = self._own(prompt_tokens, output_tokens)
        self.prefill_s -= prefill / output_tokens
        self.decode_s -= decode / output_tokens

    def passes(self, seconds: float, running: int) -> None:
        """Time goes by."""
        if self.due_s > 0:
            paid = min(seconds, self.due_s)
            tokens = self.due_tokens * paid / self.due_s
            self.due_s -= paid
            self.due_tokens -= tokens
            self.prompt_tokens += tokens
            seconds -= paid
        steps = seconds / self.decode_step_s
        self.steps += steps
        self.output_tokens += steps * running

    def _own(self, prompt_tokens: int, output_tokens: int) -> tuple[float, float]:
        """Seconds of its prefill, and of its steps."""
        work, profile = work_of(prompt_tokens, output_tokens), self.kind.profile
        decode = profile.decode_e * work.steps + profile.decode_f * work.context_steps
        return profile.own_seconds(work) - decode, decode


@dataclass(slots=True)
class Clockwork:
    """Drives a placer: ``lengths`` are those of the jobs ``b.0``, ``b.1`` and so on."""

    placer: Placer
    lengths: Lengths
    window_jobs: int
    now: float = 0.0
    _engines: dict[str, _Engine] = field(default_factory=dict[str, _Engine])
    _ends: list[tuple[float, int, str]] = field(default_factory=list[tuple[float, int, str]])
    _beats: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    _added: int = 0

    def add_devices(self, devices: Sequence[SimulatedDevice]) -> None:
        """These serve; their heartbeats are spread over the second."""
        for i, device in enumerate(devices):
            worker = SimulatedWorker.of(i, device, 0.0)
            worker.beat(0.0)
            assert worker.heartbeat is not None, "it has just told"
            self._engines[device.name] = _Engine(device.kind, worker.heartbeat)
            self.placer.cluster.refresh(device.name, worker.heartbeat, 0.0)
            heappush(self._beats, (_HEARTBEAT_S * (i + 1) / len(devices), device.name))

    def round(self) -> None:
        """One round of the scheduler, at most ``window_jobs`` waiting."""
        self.now += _PACE_S
        self._tell_ended()
        self._tell_beats()
        self._refill()
        while groups := self.placer.decide(self.now):
            for name, placements in groups.items():
                engine = self._engines[name]
                for placement in placements:
                    number = int(placement.job.job_id[2:])
                    seconds = engine.starts(*self.lengths[number].tolist())
                    heappush(self._ends, (self.now + seconds, number, name))
            self._refill()

    def _refill(self) -> None:
        while len(self.placer.window) < self.window_jobs:
            i = self._added
            body_bytes = int(self.lengths[i, 0]) * _BYTES_PER_TOKEN
            self.placer.add(WaitingJob(f"b.{i}", "normal", f"{i}-0", "b", "normal", body_bytes, 0))
            self._added += 1

    def _tell_ended(self) -> None:
        ended: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
        while self._ends and self._ends[0][0] <= self.now:
            _, number, name = heappop(self._ends)
            prompt, output = self.lengths[number].tolist()
            ended[name][f"b.{number}"] = prompt, output
            self._engines[name].ends(prompt, output)
        for name, jobs in ended.items():
            self.placer.completed(name, jobs, self.now)

    def _tell_beats(self) -> None:
        while self._beats[0][0] <= self.now:
            at, name = heappop(self._beats)
            heappush(self._beats, (at + _HEARTBEAT_S, name))
            engine, known = self._engines[name], self.placer.cluster.devices[name]
            beat, running = engine.beat, len(known.in_flight)
            engine.passes(self.now - beat.seen, min(running, beat.seats))
            said = {
                "running": min(running, beat.seats),
                "waiting": max(0, running - beat.seats),
                "kv_tokens_free": max(0, beat.kv_tokens_total - known.tokens_in_flight),
                "prompt_tokens_total": int(engine.prompt_tokens),
                "output_tokens_total": int(engine.output_tokens),
                "steps_total": int(engine.steps),
                "seen": self.now,
            }
            engine.beat = beat.model_copy(update=said)
            self.placer.cluster.refresh(name, engine.beat, self.now)

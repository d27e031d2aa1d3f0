"""A cluster in simulated time: discrete events, the live policies and late binding unchanged. Pure.

Everything between a job's submission and its result is here as it is live: the scheduler sees a bounded window of the
backlog, decides at most once in a pacing interval, and learns of completions and heartbeats with a delay; a worker
takes from its device queue what it can run now; the engine is ``broker.batching.ContinuousBatch``, with chunked
prefill, KV blocks and preemption. At the end jobs are taken back and run a second time as they are live.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

import numpy as np

from broker.batching import EventKind
from broker.heartbeat import look_interval_s
from broker.jobs import WaitingJob
from broker.placement import Lengths, Placer
from broker.policies.base import Placement, Policy
from planner.simulated import Delays, KnownLengths, Outcome, Requests, SimulatedDevice, SpeedChange
from planner.simulated_worker import SimulatedWorker

if TYPE_CHECKING:
    import random

__all__ = ["Delays", "KnownLengths", "Outcome", "Requests", "SimulatedDevice", "Simulation", "SpeedChange"]

_NEVER = float("inf")
#: Bytes of a request's body for each token of its prompt.
_BYTES_PER_TOKEN = 4


class Simulation:
    """One run. Deterministic: the same arguments give the same outcome."""

    def __init__(
        self,
        requests: Requests,
        devices: Sequence[SimulatedDevice],
        policy: Policy,
        rng: random.Random,
        *,
        lengths: Lengths | None = None,
        window_jobs: int = 4096,
        delays: Delays | None = None,
        step_overhead_s: float = 0.0,
        changes: Sequence[SpeedChange] = (),
    ) -> None:
        """Set the stage.

        Args:
            requests: what comes in.
            devices: what there is, each under a name of its own.
            policy: places the jobs.
            rng: the only source of chance.
            lengths: predictions; without, they are learned as they are live.
            window_jobs: jobs that the scheduler sees.
            delays: times of the broker.
            step_overhead_s: seconds the host adds to each step of an engine.
            changes: devices that become slower or faster.
        """
        self._delays = delays or Delays()
        live = look_interval_s(len(devices), self._delays.heartbeat_s)
        self._look_s = live if self._delays.look_s is None else self._delays.look_s
        self.placer = Placer(policy, rng, self._delays.round_trip_s)
        if lengths is not None:
            self.placer.lengths = lengths
        self._window_jobs = window_jobs
        self._workers = [SimulatedWorker.of(i, device, step_overhead_s) for i, device in enumerate(devices)]
        self._by_name = {worker.device.name: worker for worker in self._workers}
        self._prompts, self._outputs = requests.prompt_tokens.tolist(), requests.output_tokens.tolist()
        self._arrivals: list[float] = requests.arrivals.tolist()
        n = len(requests)
        self._device, self._dispatched, self._first, self._finished = [-1] * n, [np.nan] * n, [np.nan] * n, [np.nan] * n
        self._heap: list[tuple[float, int, Callable[[Any, float], None], Any]] = []
        self._sequence = 0
        self._arrived = 0  # requests that are in the window or beyond
        self._awaited = -1  # the one whose arrival is the next to happen
        self._left = n
        self._deciding = self._finishing = False
        self._decided_at = -_NEVER
        self._last_seen_at = float("nan")
        self._preemptions = self._copied = self._wasted = self._refused = 0
        self._sides: dict[int, tuple[SimulatedWorker, SimulatedWorker]] = {}  # of requests that run twice
        for worker in self._workers:
            self._push(rng.random() * self._delays.heartbeat_s, self._beat, worker)
            worker.beat(0.0)
        self._look(None, 0.0)
        for change in changes:
            self._push(change.at, self._change, change)
        if n:
            self._push(self._arrivals[0], self._arrive, None)

    def run(self) -> Outcome:
        """Until the last request is done."""
        heap = self._heap
        while self._left:
            now, _, handle, what = heappop(heap)
            handle(what, now)
        return Outcome(
            device=np.array(self._device, dtype=np.int64),
            dispatched=np.array(self._dispatched),
            first_token=np.array(self._first),
            finished=np.array(self._finished),
            samples=[np.array(worker.samples, float).reshape(-1, 5) for worker in self._workers],
            preemptions=self._preemptions,
            copies=self._copied,
            wasted_tokens=self._wasted,
            last_seen_at=self._last_seen_at,
            refused=self._refused,
        )

    def _push(self, at: float, handle: Callable[[Any, float], None], what: Any) -> None:
        self._sequence += 1
        heappush(self._heap, (at, self._sequence, handle, what))

    # The scheduler

    def _arrive(self, _: None, now: float) -> None:
        """Requests that are there by now enter the window, as far as it has room."""
        placer, arrivals = self.placer, self._arrivals
        room = self._window_jobs - len(placer.window)
        i = self._arrived
        while room > 0 and i < len(arrivals) and arrivals[i] <= now:
            placer.add(self._job(i, "normal"))
            i += 1
            room -= 1
        if i > self._arrived:
            self._arrived = i
            self._wake(now)
            if i == len(arrivals):
                self._last_seen_at = now
        placer.whole = i >= len(arrivals) or arrivals[i] > now
        if i < len(arrivals) and arrivals[i] > now and i != self._awaited:
            self._awaited = i
            self._push(arrivals[i], self._arrive, None)

    def _job(self, i: int, level: str) -> WaitingJob:
        return WaitingJob(f"b.{i}", level, f"{i}-0", "b", "normal", self._prompts[i] * _BYTES_PER_TOKEN, 0)

    def _wake(self, now: float) -> None:
        if not self._deciding:
            self._deciding = True
            self._push(max(now, self._decided_at + self._delays.pace_s), self._decide, None)

    def _decide(self, _: None, now: float) -> None:
        self._deciding, self._decided_at = False, now
        while groups := self.placer.decide(now):
            for name, placements in groups.items():
                for placement in placements:
                    self._dispatched[_number(placement.job.job_id)] = now
                self._push(now + self._delays.hop_s, self._deliver, (self._by_name[name], placements))
            refill = self._arrived < len(self._arrivals) and self._arrivals[self._arrived] <= now
            if refill and len(self.placer.window) < self._window_jobs:
                self._arrive(None, now)
        if self.placer.whole and not len(self.placer.window) and not self._finishing:
            self._finishing = True
            self._push(now + self._delays.finish_s, self._finish_up, None)

    def _seen(self, what: tuple[str, dict[str, tuple[int, int]]], now: float) -> None:
        name, ended = what
        self.placer.completed(name, ended, now)
        self._wake(now)

    def _look(self, _: None, now: float) -> None:
        for worker in self._workers:
            if worker.heartbeat is not None:
                self.placer.cluster.refresh(worker.device.name, worker.heartbeat, worker.heartbeat.seen)
        self._push(now + self._look_s, self._look, None)
        self._wake(now)

    # The end of the work

    def _finish_up(self, _: None, now: float) -> None:
        decided = self.placer.finish_up(now)
        for name, jobs in decided.recalls.items():
            self._push(now + self._delays.hop_s, self._recall, (self._by_name[name], [_number(job) for job in jobs]))
        for copy in decided.copies:
            sides = self._by_name[copy.source], self._by_name[copy.device]
            self._push(now + self._delays.hop_s, self._copy, (_number(copy.job.job_id), sides))
        if self.placer.whole and not len(self.placer.window):
            self._push(now + self._delays.finish_s, self._finish_up, None)
        else:
            self._finishing = False

    def _recall(self, what: tuple[SimulatedWorker, list[int]], now: float) -> None:
        """Jobs that still lie in the device queue wait again."""
        worker, jobs = what
        for i in jobs:
            if i in worker.queue:
                worker.queue.remove(i)
                self.placer.forget(worker.device.name, [f"b.{i}"])
                self.placer.add(self._job(i, "returned"))
        self._wake(now)

    def _copy(self, what: tuple[int, tuple[SimulatedWorker, SimulatedWorker]], now: float) -> None:
        i, sides = what
        if self._finished[i] == self._finished[i]:  # it ended meanwhile
            self.placer.forget(sides[1].device.name, [f"b.{i}"])
            return
        self._sides[i] = sides
        self._copied += 1
        sides[1].queue.append(i)
        self._take(sides[1], now)

    def _drop(self, what: tuple[SimulatedWorker, int], now: float) -> None:
        """The run that lost is aborted."""
        worker, i = what
        if i in worker.running:
            self._wasted += self._prompts[i] + worker.batch.generated(i)
            worker.batch.cancel(i, worker.clock(now))
            worker.running.discard(i)
            self._schedule(worker)
        elif i in worker.queue:
            worker.queue.remove(i)
        self.placer.forget(worker.device.name, [f"b.{i}"])
        self._take(worker, now)
        self._wake(now)

    # The workers

    def _deliver(self, what: tuple[SimulatedWorker, list[Placement]], now: float) -> None:
        worker, placements = what
        worker.queue.extend(_number(placement.job.job_id) for placement in placements)
        self._take(worker, now)

    def _take(self, worker: SimulatedWorker, now: float) -> None:
        took = False
        room = worker.room()
        while worker.queue and room > 0:
            i = worker.queue.popleft()
            if not worker.batch.can_hold(self._prompts[i], self._outputs[i]):
                self._refuse(i, worker, now)
                continue
            worker.batch.add(i, self._prompts[i], self._outputs[i], worker.clock(now))
            worker.running.add(i)
            room -= 1
            took = True
        if took:
            self._schedule(worker)

    def _refuse(self, i: int, worker: SimulatedWorker, now: float) -> None:
        """The device's memory could never hold it: there it fails, as it does live."""
        if not self._sides.pop(i, None):
            self._device[i] = worker.index
            self._left -= 1
            self._refused += 1
        self._push(now + self._delays.hop_s, self._seen, (worker.device.name, {f"b.{i}": (0, 0)}))

    def _schedule(self, worker: SimulatedWorker) -> None:
        at = worker.batch.next_event_at()
        if at is None:
            worker.due = _NEVER
            return
        worker.due_at = at
        due = worker.real(at)
        if due != worker.due:
            worker.due = due
            self._push(due, self._engine, worker)

    def _engine(self, worker: SimulatedWorker, now: float) -> None:
        if worker.due != now:
            return  # overtaken by a change of the batch
        worker.due = _NEVER
        self._settle(worker, max(worker.clock(now), worker.due_at), now)  # rounding must not stop it short
        if worker.due == _NEVER:
            self._schedule(worker)

    def _settle(self, worker: SimulatedWorker, until: float, now: float) -> None:
        """Let the engine run up to a time on its own clock, and pass on what it has to tell."""
        ended: list[int] = []
        for event in worker.batch.advance(until):
            i = int(event.request_id)
            if event.kind is EventKind.FINISHED:
                ended.append(i)
                self._end(i, worker, worker.real(event.at), now)
            elif event.kind is EventKind.PREEMPTED:
                self._preemptions += 1
            elif self._first[i] != self._first[i]:
                self._first[i] = worker.real(event.at)
        if ended:
            lengths = {f"b.{i}": (self._prompts[i], self._outputs[i]) for i in ended}
            self._push(now + self._delays.hop_s, self._seen, (worker.device.name, lengths))
            self._take(worker, now)

    def _end(self, i: int, worker: SimulatedWorker, at: float, now: float) -> None:
        """A run is over: the first one of a request is its result."""
        worker.running.discard(i)
        if self._finished[i] == self._finished[i]:
            self._wasted += self._prompts[i] + self._outputs[i]
            return
        self._finished[i] = at
        self._device[i] = worker.index
        self._left -= 1
        for side in self._sides.pop(i, ()):
            if side is not worker:
                self._push(now + 2 * self._delays.hop_s, self._drop, (side, i))

    def _beat(self, worker: SimulatedWorker, now: float) -> None:
        self._settle(worker, worker.clock(now), now)
        self._schedule(worker)
        worker.beat(now)
        self._push(now + self._delays.heartbeat_s, self._beat, worker)

    def _change(self, change: SpeedChange, now: float) -> None:
        worker = self._by_name[change.device]
        worker.change_speed(now, change.slowdown * worker.device.kind.slowdown)
        self._schedule(worker)


def _number(job_id: str) -> int:
    return int(job_id[2:])

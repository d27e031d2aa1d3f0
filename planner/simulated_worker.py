"""A worker in simulated time: its device queue, its engine, and what it says of itself. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from broker.batching import ContinuousBatch
from broker.heartbeat import Heartbeat
from broker.profiles import profile_text
from planner.simulated import SimulatedDevice

#: A heartbeat's rates are taken over about this many beats, as a worker does over some seconds.
_RATE_BEATS = 8


@dataclass(slots=True)
class SimulatedWorker:
    """One worker. Requests are known by their numbers."""

    index: int
    device: SimulatedDevice
    batch: ContinuousBatch
    queue: deque[int] = field(default_factory=deque[int])
    running: set[int] = field(default_factory=set[int])
    due: float = float("inf")  # when its engine has something to tell
    due_at: float = 0.0  # the same on the engine's clock
    slowdown: float = 1.0
    heartbeat: Heartbeat | None = None
    samples: list[tuple[float, int, int, int, int]] = field(default_factory=list[tuple[float, int, int, int, int]])
    _origin: tuple[float, float] = (0.0, 0.0)  # one moment, in real and in the engine's time

    @classmethod
    def of(cls, index: int, device: SimulatedDevice, step_overhead_s: float) -> SimulatedWorker:
        """A worker with an empty engine on that device."""
        kind = device.kind
        batch = ContinuousBatch(
            kind.profile, max_batched_tokens=kind.max_batched_tokens, step_overhead_s=step_overhead_s
        )
        return cls(index, device, batch, slowdown=kind.slowdown)

    def clock(self, now: float) -> float:
        """The engine's time: it passes slower where the device is slower than its profile."""
        return self._origin[1] + (now - self._origin[0]) / self.slowdown

    def real(self, at: float) -> float:
        """When the engine's clock says ``at``."""
        return self._origin[0] + (at - self._origin[1]) * self.slowdown

    def change_speed(self, now: float, slowdown: float) -> None:
        """Run slower or faster from now on."""
        self._origin = (now, self.clock(now))
        self.slowdown = slowdown

    def room(self) -> int:
        """Jobs it takes now, as ``workers.worker``: free seats, and a few that start in the step another ends in."""
        seats = self.device.kind.profile.seats
        return seats + max(1, seats // 16) - len(self.running)

    def beat(self, now: float) -> None:
        """Say how it is."""
        batch, profile = self.batch, self.device.kind.profile
        prompt, output, used = batch.prompt_tokens_total, batch.output_tokens_total, batch.kv_tokens_used
        self.samples.append((now, batch.running, used, prompt, output))
        since = self.samples[max(0, len(self.samples) - 1 - _RATE_BEATS)]
        span = max(now - since[0], 1e-9)
        before = self.heartbeat or self._first_beat()
        self.heartbeat = before.model_copy(
            update={
                "running": batch.running,
                "waiting": batch.waiting,
                "kv_tokens_free": profile.kv_tokens - used,
                "prompt_tokens_total": prompt,
                "output_tokens_total": output,
                "prompt_tokens_per_s": (prompt - since[3]) / span,
                "output_tokens_per_s": (output - since[4]) / span,
                "steps_total": batch.steps,
                "seen": now,
            }
        )

    def _first_beat(self) -> Heartbeat:
        kind, profile = self.device.kind, self.device.kind.profile
        return Heartbeat(
            incarnation="1",
            state="ready",
            engine="simulated",
            model="simulated",
            device=self.device.name,
            version="",
            host="",
            pid=0,
            prompt_tokens_total=0,
            output_tokens_total=0,
            jobs_total=0,
            steps_total=0,
            seen=0.0,
            prompt_tokens_per_s=0.0,
            output_tokens_per_s=0.0,
            kv_tokens_total=profile.kv_tokens,
            kv_tokens_free=profile.kv_tokens,
            seats=profile.seats,
            context_tokens=min(kind.context_tokens, 10**9),
            running=0,
            waiting=0,
            free_memory_bytes=0,
            max_batched_tokens=kind.max_batched_tokens,
            profile=profile_text(profile) if self.device.told else "",
        )

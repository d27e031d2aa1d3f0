"""What the scheduler knows of the pool: heartbeats, and what it has dispatched since. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

#: A device's speed follows its measured rate this fast (share of the gap a second), where the device is busy.
_SPEED_GAIN = 0.5
#: A device counts as busy from this share of its seats or KV tokens on: only then its rate tells its speed.
_BUSY_SHARE = 0.6
#: Completion rates are averaged over about this long (seconds).
_RATE_WINDOW_S = 2.0

WorkerState = Literal["starting", "ready", "draining", "paused"]


class Heartbeat(BaseModel):
    """A worker's own account, as its hash in Redis holds it (all values text).

    Rates are tokens a second over the last seconds; KV sizes are tokens; ``seen`` is seconds on Redis' clock.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    incarnation: str = Field(min_length=1, max_length=64)
    state: WorkerState
    engine: str = Field(max_length=64)
    model: str = Field(max_length=512)
    device: str = Field(max_length=256)
    version: str = Field(max_length=256)
    host: str = Field("", max_length=256)
    pid: int = Field(0, ge=0)
    prompt_tokens_per_s: float = Field(ge=0, le=1e9, allow_inf_nan=False)
    output_tokens_per_s: float = Field(ge=0, le=1e9, allow_inf_nan=False)
    prompt_tokens_total: int = Field(0, ge=0)
    output_tokens_total: int = Field(0, ge=0)
    jobs_total: int = Field(0, ge=0)
    kv_tokens_total: int = Field(ge=0, le=10**12)
    kv_tokens_free: int = Field(ge=0, le=10**12)
    seats: int = Field(ge=0, le=10**6)
    context_tokens: int = Field(ge=0, le=10**9)
    running: int = Field(ge=0, le=10**7)
    waiting: int = Field(ge=0, le=10**7)
    free_memory_bytes: int = Field(ge=0)
    seen: float = Field(0.0, ge=0, allow_inf_nan=False)


def parse_heartbeat(name: str, raw: Mapping[bytes, bytes]) -> Heartbeat | None:
    """A heartbeat from its hash; None where there is none or it is not one (anyone can write to Redis)."""
    if not raw or len(name) > 128 or not name.isprintable():
        return None
    try:
        return Heartbeat.model_validate({k.decode(): v.decode() for k, v in raw.items()})
    except (ValidationError, UnicodeDecodeError):
        return None


@dataclass(frozen=True, slots=True)
class InFlight:
    """A job bound to a device: its lengths in tokens, as predicted at dispatch, and its body's size (0: not known)."""

    job_id: str
    prompt_tokens: int
    output_tokens: int
    body_bytes: int = 0

    @property
    def tokens(self) -> int:
        """KV tokens it holds at its end."""
        return self.prompt_tokens + self.output_tokens


@dataclass(slots=True)
class Device:
    """One worker as the scheduler sees it: its last heartbeat, corrected by what was dispatched and ended since."""

    name: str
    heartbeat: Heartbeat
    in_flight: dict[str, InFlight] = field(default_factory=dict[str, InFlight])
    tokens_in_flight: int = 0
    speed: float = 0.0
    jobs_per_s: float = 0.0
    _rate_at: float = 0.0

    def bind(self, job: InFlight) -> None:
        """Count a job as dispatched to this device."""
        if job.job_id not in self.in_flight:
            self.in_flight[job.job_id] = job
            self.tokens_in_flight += job.tokens

    def unbind(self, job_id: str) -> InFlight | None:
        """Count a job as gone from this device; None where it was not known here."""
        job = self.in_flight.pop(job_id, None)
        if job is not None:
            self.tokens_in_flight -= job.tokens
        return job

    def count_completed(self, jobs: int, now: float) -> None:
        """Follow the rate at which jobs end: an exponential average over some seconds."""
        elapsed = max(now - self._rate_at, 1e-3)
        gain = min(1.0, elapsed / _RATE_WINDOW_S)
        self.jobs_per_s += gain * (jobs / elapsed - self.jobs_per_s)
        self._rate_at = now

    def refresh(self, heartbeat: Heartbeat) -> None:
        """Take over a newer heartbeat and learn the device's speed from it."""
        elapsed = max(0.0, heartbeat.seen - self.heartbeat.seen)
        self.heartbeat = heartbeat
        rate = heartbeat.prompt_tokens_per_s + heartbeat.output_tokens_per_s
        if self._busy():
            gain = min(1.0, _SPEED_GAIN * elapsed) if self.speed else 1.0
            self.speed += gain * (rate - self.speed)
        else:
            self.speed = max(self.speed, rate)

    def depth(self, round_trip_s: float) -> int:
        """Jobs beyond the seats that hide the dispatch round trip: what ends meanwhile, at least one."""
        return max(1, min(self.heartbeat.seats, int(self.jobs_per_s * round_trip_s * 2) + 1))

    def _busy(self) -> bool:
        beat = self.heartbeat
        held = beat.kv_tokens_total - beat.kv_tokens_free
        return beat.running >= _BUSY_SHARE * beat.seats or held >= _BUSY_SHARE * beat.kv_tokens_total


@dataclass(slots=True)
class Cluster:
    """The devices of one pool by name."""

    devices: dict[str, Device] = field(default_factory=dict[str, Device])

    def refresh(self, name: str, heartbeat: Heartbeat) -> bool:
        """Take over a heartbeat; True where this is a new device (its in-flight jobs are not known yet)."""
        device = self.devices.get(name)
        if device is None or device.heartbeat.incarnation != heartbeat.incarnation:
            self.devices[name] = device = Device(name, heartbeat)
            device.refresh(heartbeat)
            return True
        device.refresh(heartbeat)
        return False

    def keep_only(self, names: Iterable[str]) -> None:
        """Forget devices that are not in the pool any more."""
        alive = set(names)
        for name in [n for n in self.devices if n not in alive]:
            del self.devices[name]

    def ready(self) -> list[Device]:
        """Devices that take jobs."""
        return [d for d in self.devices.values() if d.heartbeat.state == "ready" and d.heartbeat.seats > 0]

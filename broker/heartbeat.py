"""A worker's own account of itself, as it is read from Redis. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

#: Heartbeats are looked at this often (seconds) in a pool of so many workers, in a small one twice as often as they
#: come: what an engine holds now decides what it may be given.
LOOK_S, _MANY, _LOOKS_A_BEAT = 1.0, 256, 2
#: Loads that are this much closer together than the heartbeats which tell them (a share) are one, told twice: a server
#: that is not ours is asked now and then, and the way of a heartbeat takes now longer, now shorter.
_ONE_LOAD = 0.25

WorkerState = Literal["starting", "ready", "draining", "paused"]


class Heartbeat(BaseModel):
    """A worker's own account, as its hash in Redis holds it (all values text).

    Rates are tokens a second over the last seconds; KV sizes are tokens; ``seen`` is seconds on Redis' clock, and
    ``load_age_s`` how old was then what it tells of the engine; ``profile`` is empty or the measured step times as JSON
    (see ``broker.profiles``).
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    incarnation: str = Field(min_length=1, max_length=64)
    state: WorkerState
    engine: str = Field(max_length=64)
    model: str = Field(max_length=512)
    device: str = Field(max_length=256)
    version: str = Field(max_length=256)
    host: str = Field("", max_length=256)
    pid: int = Field(0, ge=0, le=2**63)
    prompt_tokens_per_s: float = Field(ge=0, le=1e9, allow_inf_nan=False)
    output_tokens_per_s: float = Field(ge=0, le=1e9, allow_inf_nan=False)
    prompt_tokens_total: int = Field(0, ge=0, le=10**15)
    output_tokens_total: int = Field(0, ge=0, le=10**15)
    jobs_total: int = Field(0, ge=0, le=10**15)
    kv_tokens_total: int = Field(ge=0, le=10**12)
    kv_tokens_free: int = Field(ge=0, le=10**12)
    seats: int = Field(ge=0, le=10**6)
    context_tokens: int = Field(ge=0, le=10**9)
    running: int = Field(ge=0, le=10**7)
    waiting: int = Field(ge=0, le=10**7)
    free_memory_bytes: int = Field(ge=0, le=10**18)
    steps_total: int = Field(0, ge=0, le=10**12)
    max_batched_tokens: int = Field(0, ge=0, le=10**9)
    profile: str = Field("", max_length=1024)
    load_age_s: float = Field(default=0.0, ge=0, le=1e9, allow_inf_nan=False)
    seen: float = Field(0.0, ge=0, le=1e12, allow_inf_nan=False)

    @property
    def measured(self) -> float:
        """When the engine was as this says: seconds on Redis' clock."""
        return self.seen - self.load_age_s

    def tells_more_than(self, before: Heartbeat) -> bool:
        """Whether the engine was looked at again since that earlier heartbeat."""
        return self.measured - before.measured > _ONE_LOAD * (self.seen - before.seen)


def look_interval_s(workers: int, heartbeat_interval_s: float) -> float:
    """Seconds between two looks at the heartbeats of so many workers, which come every ``heartbeat_interval_s``."""
    return min(max(LOOK_S * workers / _MANY, heartbeat_interval_s / _LOOKS_A_BEAT), LOOK_S)


_FIELDS = {name.encode(): name for name in Heartbeat.model_fields}


def parse_heartbeat(name: str, raw: Mapping[bytes, bytes]) -> Heartbeat | None:
    """A heartbeat from its hash; None where there is none or it is not one (anyone can write to Redis).

    A field that no heartbeat has is passed over: none would ever write over it, and the worker would be shut out.
    """
    if not raw or len(name) > 128 or not name.isprintable():
        return None
    try:
        return Heartbeat.model_validate({_FIELDS[key]: raw[key].decode() for key in _FIELDS.keys() & raw.keys()})
    except (ValidationError, UnicodeDecodeError):
        return None

"""A worker's account of itself, as the text fields of its hash. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from broker.heartbeat import WorkerState
from workers.engines.base import Capacity, Load


@dataclass(frozen=True, slots=True)
class Identity:
    """What does not change while a worker lives: where it runs and what it runs."""

    engine: str
    model: str
    host: str
    pid: int


def heartbeat_fields(
    identity: Identity,
    state: WorkerState,
    capacity: Capacity,
    load: Load,
    rates: tuple[float, float],
    jobs_total: int,
    profile: str = "",
) -> dict[str, str]:
    """The heartbeat hash; ``broker.heartbeat.Heartbeat`` reads it.

    Args:
        rates: prompt and output tokens a second lately.
        jobs_total: jobs this process has ended.
        profile: measured step times as ``broker.profiles.profile_text`` writes them; empty where there are none.
    """
    values: dict[str, object] = {
        "state": state,
        "engine": identity.engine,
        "model": identity.model,
        "device": capacity.device,
        "version": capacity.version,
        "host": identity.host,
        "pid": identity.pid,
        "prompt_tokens_per_s": f"{rates[0]:.1f}",
        "output_tokens_per_s": f"{rates[1]:.1f}",
        "prompt_tokens_total": load.prompt_tokens_total,
        "output_tokens_total": load.output_tokens_total,
        "jobs_total": jobs_total,
        "kv_tokens_total": capacity.kv_tokens,
        "kv_tokens_free": max(0, capacity.kv_tokens - load.kv_tokens_used),
        "seats": capacity.seats,
        "context_tokens": capacity.context_tokens,
        "running": load.running,
        "waiting": load.waiting,
        "free_memory_bytes": load.free_memory_bytes,
        "steps_total": load.steps_total,
        "load_age_s": f"{load.age_s:.3f}",
        "max_batched_tokens": capacity.max_batched_tokens,
        "profile": profile,
    }
    return {name: str(value) for name, value in values.items()}

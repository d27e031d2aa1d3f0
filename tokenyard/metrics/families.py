"""Metrics of the queue from what was read of it. Pure.

Names and units: https://prometheus.io/docs/practices/naming/. Each family names its pool, none a tenant or a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from broker.heartbeat import Heartbeat
from tokenyard.views.devices import tokens_per_s

if TYPE_CHECKING:
    from broker.store.server import ServerMemory


@dataclass(frozen=True, slots=True)
class PoolState:
    """One pool at one moment.

    Attributes:
        name: its name.
        waiting: jobs that wait, by request stream.
        oldest_s: how long the oldest of each has waited, seconds; those where nothing waits are missing.
        workers: worker -> last heartbeat, None where it cannot be read.
        depths: worker -> jobs bound to it, queued and running.
        leads: whether some scheduler leads it.
        delayed: jobs that failed and are tried again later.
        dead_letters: jobs that failed for good.
        price_per_hour: of its plan's machines; None where not known.
        prices: worker -> its price an hour, by the plan; those that have none are missing.
        given_up: jobs that ever failed for good, by reason.
        bound_tokens_per_s: the most that the ready workers can compute of what ended lately; None where not known.
    """

    name: str
    waiting: Mapping[str, int]
    oldest_s: Mapping[str, float]
    workers: Mapping[str, Heartbeat | None]
    depths: Mapping[str, int]
    leads: bool
    delayed: int
    dead_letters: int
    price_per_hour: float | None = None
    prices: Mapping[str, float] = field(default_factory=dict[str, float])
    given_up: Mapping[str, int] = field(default_factory=dict[str, int])
    bound_tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class QueueState:
    """All pools at one moment; ``now`` is Redis' clock in seconds, ``memory`` None where the server does not tell."""

    now: float
    pools: Sequence[PoolState]
    memory: ServerMemory | None = None
    live_requests: int = 0


@dataclass(slots=True)
class _Families:
    """Families by their names, in the order in which they were first named."""

    found: dict[str, GaugeMetricFamily | CounterMetricFamily] = field(
        default_factory=dict[str, GaugeMetricFamily | CounterMetricFamily]
    )

    def gauge(self, name: str, text: str, value: float, **labels: str) -> None:
        """One value that goes up and down."""
        family = self.found.setdefault(name, GaugeMetricFamily(name, text, labels=list(labels)))
        family.add_metric(list(labels.values()), value)

    def counter(self, name: str, text: str, value: float, **labels: str) -> None:
        """One value that only grows; ``name`` without ``_total``."""
        family = self.found.setdefault(name, CounterMetricFamily(name, text, labels=list(labels)))
        family.add_metric(list(labels.values()), value)


def families_of(state: QueueState) -> Iterator[Metric]:
    """The metrics of a moment."""
    families = _Families()
    for pool in state.pools:
        _add_pool(families, pool)
        for name, beat in pool.workers.items():
            if beat is not None:
                _add_worker(families, {"pool": pool.name, "worker": name}, beat, state.now, pool.depths.get(name, 0))
    if state.memory is not None:
        families.gauge("tokenyard_redis_memory_bytes", "Memory that Redis uses.", state.memory.used)
        families.gauge("tokenyard_redis_memory_limit_bytes", "Memory that Redis may use, 0: any.", state.memory.limit)
    families.gauge(
        "tokenyard_gateway_live_requests", "Requests that clients of the gateway wait for.", state.live_requests
    )
    yield from families.found.values()


def _add_pool(families: _Families, pool: PoolState) -> None:
    name = pool.name
    for level, jobs in pool.waiting.items():
        families.gauge("tokenyard_queue_jobs", "Jobs that wait for a device.", jobs, pool=name, level=level)
        families.gauge(
            "tokenyard_queue_oldest_seconds",
            "How long the oldest job has waited.",
            pool.oldest_s.get(level, 0.0),
            pool=name,
            level=level,
        )
    families.gauge("tokenyard_delayed_jobs", "Jobs that failed and are tried again later.", pool.delayed, pool=name)
    families.gauge("tokenyard_dead_letters", "Jobs that failed for good.", pool.dead_letters, pool=name)
    families.gauge("tokenyard_scheduler_leads", "Whether some scheduler leads the pool.", int(pool.leads), pool=name)
    ready = sum(beat is not None and beat.state == "ready" for beat in pool.workers.values())
    families.gauge("tokenyard_ready_workers", "Workers that take jobs.", ready, pool=name)
    if pool.price_per_hour is not None:
        families.gauge(
            "tokenyard_plan_price_per_hour",
            "Price of the machines that the pool's plan uses, an hour.",
            pool.price_per_hour,
            pool=name,
        )
    for worker, price in pool.prices.items():
        text = "Price of a worker's devices, an hour, by the plan."
        families.gauge("tokenyard_worker_price_per_hour", text, price, pool=name, worker=worker)
    for reason, jobs in pool.given_up.items():
        text = "Jobs that failed for good since the pool began, by reason."
        families.counter("tokenyard_given_up_jobs", text, jobs, pool=name, reason=reason)
    if pool.bound_tokens_per_s is not None:
        _add_bound(families, pool, pool.bound_tokens_per_s)


def _add_bound(families: _Families, pool: PoolState, bound: float) -> None:
    rate = sum(tokens_per_s(beat) for beat in pool.workers.values() if beat is not None)
    text = "The most that the ready workers can compute of what ended lately."
    families.gauge("tokenyard_bound_tokens_per_second", text, bound, pool=pool.name)
    text = "Tokens that the workers compute a second, as a share of that."
    families.gauge("tokenyard_bound_share_ratio", text, rate / bound, pool=pool.name)


def _add_worker(families: _Families, labels: dict[str, str], beat: Heartbeat, now: float, depth: int) -> None:
    gauge, counter = families.gauge, families.counter
    about = {"state": beat.state, "device": beat.device, "model": beat.model, "engine": beat.engine}
    gauge("tokenyard_worker_info", "A worker and what it is.", 1, **labels, **about)
    age = max(now - beat.seen, 0.0)
    gauge("tokenyard_worker_heartbeat_age_seconds", "Time since the worker was heard.", age, **labels)
    gauge("tokenyard_worker_bound_jobs", "Jobs of a worker, queued and running.", depth, **labels)
    gauge("tokenyard_worker_running_requests", "Requests in the engine's batch.", beat.running, **labels)
    gauge("tokenyard_worker_seats", "Most requests that the engine runs at once.", beat.seats, **labels)
    used = max(beat.kv_tokens_total - beat.kv_tokens_free, 0)
    gauge("tokenyard_worker_kv_tokens", "Tokens that the KV cache holds.", beat.kv_tokens_total, **labels)
    gauge("tokenyard_worker_kv_used_tokens", "Tokens in the KV cache now.", used, **labels)
    counter("tokenyard_worker_jobs", "Jobs that the worker has ended.", beat.jobs_total, **labels)
    text = "Prompt tokens that the engine has computed."
    counter("tokenyard_worker_prompt_tokens", text, beat.prompt_tokens_total, **labels)
    counter("tokenyard_worker_output_tokens", "Tokens that the engine has made.", beat.output_tokens_total, **labels)

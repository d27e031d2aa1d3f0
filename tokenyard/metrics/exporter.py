"""The queue's metrics as a page for Prometheus: what Redis alone can tell, whichever processes run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from broker.client import Client
from broker.connection import RedisClient
from broker.store.dead import DeadLetterStore
from broker.store.monitor import MonitorStore
from broker.store.plans import PlanStore
from broker.store.server import server_memory
from tokenyard.device_prices import prices_of
from tokenyard.live.pool_bound import bound_tokens_per_s
from tokenyard.metrics.families import PoolState, QueueState, families_of
from tokenyard.metrics.process import process_registry

#: The bound is that of the jobs that ended in this time (seconds).
_MIX_S = 900.0
#: What Prometheus asks for.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Moment(Collector):
    """Metrics that were read already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Give them."""
        yield from self._families


async def queue_page(client: Client, live_requests: int = 0) -> bytes:
    """All pools of the server at this moment, in Prometheus' text format.

    Args:
        client: of that server.
        live_requests: requests that somebody waits for at the gateway that asks.
    """
    now = await MonitorStore(client.redis, "").clock()
    pools = [await _read_pool(client.redis, name, now) for name in await client.registry.pools()]
    state = QueueState(now, pools, await server_memory(client.redis), live_requests)
    return generate_latest(process_registry(_Moment(list(families_of(state)))))


async def _read_pool(redis: RedisClient, name: str, now: float) -> PoolState:
    monitor = MonitorStore(redis, name)
    workers = {worker: beat for worker, beat in (await monitor.heartbeats()).items() if worker.isprintable()}
    plans, letters = PlanStore(redis, name), DeadLetterStore(redis, name)
    plan = (await plans.read()).plan
    mix = await plans.recent_mix(_MIX_S)
    return PoolState(
        name=name,
        waiting=await monitor.waiting(),
        oldest_s={level: max(now - since, 0.0) for level, since in (await monitor.oldest()).items()},
        workers=workers,
        depths=await monitor.device_depths(list(workers)),
        leads=await monitor.lease_owner() is not None,
        delayed=await monitor.delayed(),
        dead_letters=await letters.count(),
        price_per_hour=plan.price_per_hour if plan else None,
        prices=prices_of(plan, workers),
        given_up=await letters.given_up(),
        bound_tokens_per_s=await asyncio.to_thread(bound_tokens_per_s, mix, list(workers.values())),
    )

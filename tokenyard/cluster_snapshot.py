"""What a cluster looks like at one moment: its pools with their workers, and its batches."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec

from broker.client import Client
from broker.errors import UnknownBatchError
from broker.heartbeat import Heartbeat
from broker.jobs import BatchCounts
from broker.pool_plan import PoolPlan, hosts_of
from broker.store.dead import DeadLetterStore
from broker.store.monitor import MonitorStore
from broker.store.plans import PlanStore
from broker.store.server import ServerMemory, server_memory


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """One pool.

    Attributes:
        name: its name.
        models: names that requests call its model by.
        scheduler: who places its jobs, None where nobody does.
        waiting: jobs that wait for a device, by request stream.
        workers: worker name -> last heartbeat, None where it expired or cannot be read.
        delayed: jobs that failed and are tried again later.
        dead_letters: jobs that failed for good and whose letter is kept.
        unwatched: hosts of its plan without a supervisor.
        depths: worker name -> jobs bound to it, queued and running.
        plan: what should run, None where there is no plan.
    """

    name: str
    models: tuple[str, ...]
    scheduler: str | None
    waiting: dict[str, int]
    workers: dict[str, Heartbeat | None]
    delayed: int = 0
    dead_letters: int = 0
    unwatched: tuple[str, ...] = ()
    depths: dict[str, int] = field(default_factory=dict[str, int])
    plan: PoolPlan | None = None


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """All pools of a server, and batches with their counts, the newest first; ``clock`` is Redis' in seconds.

    ``memory`` is None where the server does not tell.
    """

    clock: float
    pools: list[PoolSnapshot]
    batches: dict[str, BatchCounts]
    memory: ServerMemory | None = None


async def read_cluster(client: Client, batch_ids: list[str]) -> ClusterSnapshot:
    """Look at all pools, and at these batches."""
    models = await client.registry.models()
    pools = [await _read_pool(client, name, models) for name in await client.registry.pools()]
    clock = await MonitorStore(client.redis, "").clock()
    memory = await server_memory(client.redis)
    return ClusterSnapshot(clock, pools, await _read_counts(client, batch_ids), memory)


async def newest_batches(client: Client, limit: int) -> list[str]:
    """Ids of the batches there are, newest first. Scans all keys of the server: not for every second."""
    found: set[str] = set()
    for pool in await client.registry.pools():
        found.update(await MonitorStore(client.redis, pool).batches(limit))
    return sorted(found, reverse=True)[:limit]


async def devices_of(client: Client, pools: list[str]) -> dict[str, Heartbeat | None]:
    """The workers of some pools, named ``POOL/WORKER`` where there are several pools."""
    found: dict[str, Heartbeat | None] = {}
    for pool in pools:
        beats = await MonitorStore(client.redis, pool).heartbeats()
        found.update({name if len(pools) == 1 else f"{pool}/{name}": beat for name, beat in beats.items()})
    return found


def as_json(snapshot: ClusterSnapshot) -> dict[str, Any]:
    """The snapshot for machines: plain dicts, lists, numbers and texts."""
    return {
        "clock": snapshot.clock,
        "memory": _memory_as_json(snapshot.memory),
        "pools": [
            {
                "name": pool.name,
                "models": list(pool.models),
                "scheduler": pool.scheduler,
                "waiting": pool.waiting,
                "delayed": pool.delayed,
                "dead_letters": pool.dead_letters,
                "hosts_without_supervisor": list(pool.unwatched),
                "plan": msgspec.to_builtins(pool.plan),
                "workers": [
                    {
                        "name": name,
                        "queue": pool.depths.get(name, 0),
                        **(beat.model_dump() if beat else {"state": None}),
                    }
                    for name, beat in pool.workers.items()
                ],
            }
            for pool in snapshot.pools
        ],
        "batches": [batch_as_json(batch_id, counts) for batch_id, counts in snapshot.batches.items()],
    }


def _memory_as_json(memory: ServerMemory | None) -> dict[str, Any] | None:
    return {**asdict(memory), "full": memory.full} if memory else None


def batch_as_json(batch_id: str, counts: BatchCounts) -> dict[str, Any]:
    """A batch for machines."""
    return {
        "id": batch_id,
        "state": batch_state(counts),
        "total": counts.total,
        "done": counts.done,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
        "prompt_tokens": counts.prompt_tokens,
        "output_tokens": counts.output_tokens,
        "sealed": counts.sealed,
        "complete": counts.complete,
    }


def batch_state(counts: BatchCounts) -> str:
    """``open`` (requests may still come), ``running``, ``complete``, or ``cancelled`` or ``expired``: see below."""
    if counts.state == "cancelled":
        return "cancelled" if counts.complete else "cancelling"
    if counts.state == "expired":  # its completion window is over
        return "expired" if counts.complete else "expiring"
    if counts.complete:
        return "complete"
    return "running" if counts.sealed else "open"


async def _read_pool(client: Client, name: str, models: dict[str, str]) -> PoolSnapshot:
    store = MonitorStore(client.redis, name)
    workers = dict(sorted((await store.heartbeats()).items()))  # they come by their last heartbeat: rows would jump
    plans = PlanStore(client.redis, name)
    plan = (await plans.read()).plan
    return PoolSnapshot(
        name=name,
        models=tuple(sorted(model for model, pool in models.items() if pool == name)),
        scheduler=await store.lease_owner(),
        waiting=await store.waiting(),
        workers=workers,
        delayed=await store.delayed(),
        dead_letters=await DeadLetterStore(client.redis, name).count(),
        unwatched=() if plan is None else tuple(await plans.without_supervisor(hosts_of(plan))),
        depths=await store.device_depths(list(workers)),
        plan=plan,
    )


async def _read_counts(client: Client, batch_ids: list[str]) -> dict[str, BatchCounts]:
    counts: dict[str, BatchCounts] = {}
    for batch_id in batch_ids:
        try:
            counts[batch_id] = await client.counts(batch_id)
        except UnknownBatchError:  # its time to live ended meanwhile
            continue
    return counts

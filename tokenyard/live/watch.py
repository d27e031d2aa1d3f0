"""Looks at the cluster for the web page: once for all who look, and only while somebody does."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from broker.client import Client
from broker.concurrency import cancel_all
from broker.errors import UnknownBatchError
from broker.heartbeat import Heartbeat
from broker.store.monitor import MonitorStore
from broker.store.plans import PlanStore
from broker.tenant_names import tenant_of
from tokenyard.cluster_snapshot import ClusterSnapshot, PoolSnapshot, newest_batches, read_cluster
from tokenyard.device_prices import prices_of
from tokenyard.known_devices import device_name
from tokenyard.live.batch_line import BatchLine
from tokenyard.live.pool_bound import batch_bound
from tokenyard.live.pool_past import LOOK_BACK_S, PoolPast, past_of
from tokenyard.live.state import batch_json, cluster_json, line_json
from tokenyard.views.eta import Eta

#: A look serves whoever asks within this time; what changes slowly is looked at less often (seconds).
_LOOK_S = 1.0
_LOOK_BACK_S = 5.0
#: Batches that are looked for, of all tenants together, and batches whose results are remembered.
_BATCHES = 200
_FOLLOWED = 32
#: Results of a batch that are read in one call, and calls each time that somebody asks for it.
_READ_RESULTS = 250
_READS = 20


@dataclass(slots=True)
class _Followed:
    """A batch whose results are being read."""

    created: float
    line: BatchLine
    cursors: dict[str, str] = field(default_factory=dict[str, str])
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Watch:
    """The cluster as it is shown. Used from one event loop; errors of Redis pass through."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._looking: asyncio.Task[None] | None = None
        self._snapshot = ClusterSnapshot(0.0, [], {})
        self._looked_at = self._looked_back_at = float("-inf")
        self._batches: list[str] = []
        self._pasts: dict[str, PoolPast] = {}
        self._etas: dict[str, Eta] = {}
        self._left_s: dict[str, float | None] = {}
        self._followed: OrderedDict[str, _Followed] = OrderedDict()

    async def cluster(self, viewer: str | None) -> dict[str, Any]:
        """Pools, devices and the newest batches; ``viewer``: see ``cluster_json``."""
        await self._look()
        return cluster_json(self._snapshot, self._pasts, self._left_s, viewer)

    async def batch(self, batch_id: str, viewer: str | None) -> dict[str, Any]:
        """A batch and its time line, as far as its results were read: some thousands more with each call.

        Raises:
            UnknownBatchError: there is none of that id that this viewer may see.
        """
        if viewer is not None and tenant_of(batch_id) != viewer:
            raise UnknownBatchError(f"no batch {batch_id}")
        await self._look()
        counts = await self._client.counts(batch_id)
        pools = await self._client.pools_of(batch_id)
        followed = await self._follow(batch_id, pools)
        async with followed.lock:
            await self._read_on(followed, batch_id, pools)
        beats, prices = self._devices_of(pools)
        # A bound over several pools is none: each can do its own jobs alone.
        bound = batch_bound(followed.line.mix, beats.values()) if len(pools) == 1 else None
        return {
            **batch_json(batch_id, counts),
            "left_s": self._left_s.get(batch_id),
            "ended": counts.ended,
            "line": line_json(followed.line, bound, prices, operator=viewer is None),
        }

    async def close(self) -> None:
        """End a look that is under way."""
        if self._looking is not None:
            await cancel_all([self._looking])

    async def _look(self) -> None:
        """One look at a time, for all who ask meanwhile: a Redis that hangs gathers no crowd."""
        if self._looking is None or self._looking.done():
            if asyncio.get_running_loop().time() - self._looked_at < _LOOK_S:
                return
            self._looking = asyncio.ensure_future(self._look_now())
        await asyncio.shield(self._looking)

    async def _look_now(self) -> None:
        now = asyncio.get_running_loop().time()
        if look_back := now - self._looked_back_at >= _LOOK_BACK_S:
            self._batches = await newest_batches(self._client, _BATCHES)
        snapshot = await read_cluster(self._client, self._batches)
        if look_back:
            self._pasts = {pool.name: await self._past(pool, snapshot.clock) for pool in snapshot.pools}
            self._looked_back_at = now
        self._snapshot = snapshot
        self._reckon(now)
        self._looked_at = now

    async def _past(self, pool: PoolSnapshot, clock: float) -> PoolPast:
        """What ended in the pool in the last minutes, and the bound of that."""
        entries = await PlanStore(self._client.redis, pool.name).ended_since(clock - LOOK_BACK_S)
        return past_of(entries, clock, pool.workers.values())

    def _reckon(self, now: float) -> None:
        """How long the batches still take."""
        self._left_s = {}
        for batch_id, counts in self._snapshot.batches.items():
            if counts.complete:
                self._left_s[batch_id] = 0.0
            else:
                eta = self._etas.setdefault(batch_id, Eta())
                self._left_s[batch_id] = eta.update(now, counts.ended, counts.total)
        self._etas = {batch_id: eta for batch_id, eta in self._etas.items() if batch_id in self._left_s}

    async def _follow(self, batch_id: str, pools: list[str]) -> _Followed:
        """What was read of the batch; nothing where it is another one of the same id."""
        stores = [MonitorStore(self._client.redis, pool) for pool in pools]
        created = min([await store.created(batch_id) for store in stores], default=0.0)
        followed = self._followed.get(batch_id)
        if followed is None or followed.created != created:
            followed = self._followed[batch_id] = _Followed(created, BatchLine(created))
        self._followed.move_to_end(batch_id)
        while len(self._followed) > _FOLLOWED:
            self._followed.popitem(last=False)
        return followed

    async def _read_on(self, followed: _Followed, batch_id: str, pools: list[str]) -> None:
        for pool in pools:
            store = self._client.store(pool)
            for _ in range(_READS):
                after = followed.cursors.get(pool, "0")
                page = await store.results(batch_id, after, limit=_READ_RESULTS, block=0)
                if not page:
                    break
                now = await MonitorStore(self._client.redis, pool).clock()
                followed.line.add(page, now, pool if len(pools) > 1 else "")
                followed.cursors[pool] = page[-1].cursor

    def _devices_of(self, pools: list[str]) -> tuple[Mapping[str, Heartbeat | None], Mapping[str, float]]:
        """Last heartbeats and prices of these pools' devices, by the names that a time line has."""
        beats: dict[str, Heartbeat | None] = {}
        prices: dict[str, float] = {}
        for pool in self._snapshot.pools:
            if pool.name in pools:
                prefix = pool.name if len(pools) > 1 else ""
                beats |= {device_name(name, prefix): beat for name, beat in pool.workers.items()}
                found = prices_of(pool.plan, pool.workers)
                prices |= {device_name(name, prefix): price for name, price in found.items()}
        return beats, prices

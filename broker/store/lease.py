"""The lease of a pool: who holds it schedules, and the others' writes change nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from broker import scripts
from broker.connection import RedisClient
from broker.errors import LeaseLostError
from broker.store.monitor import MonitorStore

#: A lease that is not renewed for so many times its life has no owner, whatever Redis' clock says.
_ABANDONED = 1.25


class LeaseStore(MonitorStore):
    """One pool as a scheduler sees it that stands by. ``epoch`` fences the writes of one that leads."""

    def __init__(self, redis: RedisClient, pool: str, owner: str, *, lease_ttl_s: float) -> None:
        super().__init__(redis, pool)
        self.owner = owner
        self.epoch = 0
        self._lease_ttl_ms = int(lease_ttl_s * 1000)
        self._mark = b""  # of another's lease, and since when it has been that
        self._marked = 0.0
        self._scripts = {name: scripts.load(redis, name) for name in ("lease", "release")}

    async def hold_lease(self) -> bool:
        """Take or renew the lease; False where another scheduler holds it."""
        args = [self.keys.prefix, self.owner, self._lease_ttl_ms, self._abandoned()]
        answer = await self._scripts["lease"](args=args)
        if not isinstance(answer, list):
            self.epoch = int(answer)
            return True
        self.epoch = 0
        if answer[0] != self._mark:
            self._mark, self._marked = answer[0], asyncio.get_running_loop().time()
        return False

    def _abandoned(self) -> bytes:
        """The mark of a lease that nobody has renewed for longer than it lives, on our own clock."""
        unchanged_ms = 1000 * (asyncio.get_running_loop().time() - self._marked)
        return self._mark if unchanged_ms > _ABANDONED * self._lease_ttl_ms else b""

    async def release_lease(self) -> None:
        """Let a standby take over at once."""
        await self._scripts["release"](args=[self.keys.prefix, self.owner])

    def _check(self, answer: Any) -> None:
        if answer == -1:
            raise LeaseLostError(f"another scheduler took over pool {self.pool}")

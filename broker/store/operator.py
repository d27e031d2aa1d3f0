"""What an operator does to a pool: pause, resume and drain workers; move what waits to another priority."""

from __future__ import annotations

from enum import StrEnum

from redis.exceptions import ResponseError

from broker import keys, scripts
from broker.connection import RedisClient
from broker.jobs import Priority
from broker.tenant_names import DEFAULT_TENANT, tenant_of

#: An order that nobody reads is gone after that (seconds).
_ORDER_TTL_S = 60
#: Entries of a request stream that one call looks at.
_LOOK_AT = 1000


class WorkerOrder(StrEnum):
    """What a worker can be told."""

    PAUSE = "pause"
    RESUME = "resume"
    DRAIN = "drain"


class OperatorStore:
    """One pool as its operator sees it."""

    def __init__(self, redis: RedisClient, pool: str) -> None:
        self._redis = redis
        self.keys = keys.PoolKeys(pool)
        self._reprioritize = scripts.load(redis, "reprioritize")

    async def order(self, worker: str, order: WorkerOrder) -> None:
        """Tell a worker; it follows once it reads that, within moments where it lives."""
        control = self.keys.control(worker)
        pipe = self._redis.pipeline(transaction=False)
        pipe.xadd(control, {"order": order.value}, maxlen=1000, approximate=True)
        pipe.expire(control, _ORDER_TTL_S)
        await pipe.execute()

    async def reprioritize(self, batch_id: str, priority: Priority) -> int:
        """Let the waiting jobs of a batch be served at another priority. What devices have already stays.

        Returns how many waited at another one. What is submitted to the batch later comes as its client says.
        """
        tenant = tenant_of(batch_id)
        levels = {
            level.value: level.value if tenant == DEFAULT_TENANT else keys.tenant_level(level.value, tenant)
            for level in Priority
        }
        moved = 0
        for level, stream in levels.items():
            if level != priority.value:
                moved += await self._move_all(batch_id, stream, levels[priority.value], priority)
        return moved

    async def _move_all(self, batch_id: str, source: str, target: str, priority: Priority) -> int:
        moved, after = 0, "0-0"
        while after:
            args = [self.keys.prefix, batch_id, source, target, priority.value, after, _LOOK_AT]
            try:
                some, last = await self._reprioritize(args=args)
            except ResponseError as e:  # somebody made it another kind of value
                if "WRONGTYPE" not in str(e):
                    raise
                return moved
            moved, after = moved + int(some), scripts.text(last)
        return moved

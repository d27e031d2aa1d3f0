"""How the Redis server itself is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redis.exceptions import NoPermissionError

from broker.connection import RedisClient, is_cluster
from broker.keys import POOLS, PoolKeys

#: From this share of its limit on memory counts as full: a write of any size is refused soon, or is refused already.
_FULL = 0.99


@dataclass(frozen=True, slots=True)
class ServerMemory:
    """Memory of a Redis server in bytes; ``limit`` is 0 where there is none. ``policy`` is ``maxmemory-policy``."""

    used: int
    limit: int
    policy: str

    @property
    def full(self) -> bool:
        """Whether it refuses what needs more memory."""
        return self.limit > 0 and self.used >= _FULL * self.limit

    @property
    def evicts(self) -> bool:
        """Whether it throws keys away when it is full: jobs may be among them."""
        return self.limit > 0 and self.policy not in ("", "noeviction")


async def server_memory(redis: RedisClient, pool: str = "") -> ServerMemory | None:
    """The memory of the server (of a Cluster: of the one that has this pool); None where it does not tell."""
    key = PoolKeys(pool).prefix if pool else POOLS
    where = {"target_nodes": redis.get_node_from_key(key)} if is_cluster(redis) else {}
    try:
        info = await redis.execute_command("INFO", "memory", **where)
    except NoPermissionError:
        return None
    found: dict[str, Any] = info if isinstance(info, dict) else {}
    try:
        return ServerMemory(
            int(found["used_memory"]), int(found.get("maxmemory", 0)), str(found.get("maxmemory_policy", ""))
        )
    except (KeyError, ValueError):
        return None

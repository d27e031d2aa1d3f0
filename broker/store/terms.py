"""What an operator grants the tenants of a pool."""

from __future__ import annotations

from broker.connection import RedisClient
from broker.keys import PoolKeys
from broker.tenant_names import check_tenant
from broker.tenants import TenantTerms, parse_all_terms


class TermsStore:
    """What an operator grants the tenants of a pool."""

    def __init__(self, redis: RedisClient, pool: str) -> None:
        self._redis = redis
        self._key = PoolKeys(pool).terms

    async def all(self) -> tuple[dict[str, TenantTerms], list[str]]:
        """Terms by tenant, and a line for each that cannot be read."""
        return parse_all_terms(await self._redis.hgetall(self._key))

    async def grant(self, tenant: str, terms: TenantTerms) -> None:
        """Set a tenant's terms; the scheduler keeps to them within seconds.

        Raises:
            UsageError: a tenant cannot be called so.
        """
        text = f'{{"weight": {terms.weight:g}, "max_running": {terms.max_running}}}'
        await self._redis.hset(self._key, check_tenant(tenant), text)

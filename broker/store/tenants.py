"""What a scheduler reads of tenants."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterable
from typing import Any

from redis.exceptions import ResponseError

from broker import scripts
from broker.connection import RedisClient
from broker.keys import FRESH_LEVELS, tenant_level
from broker.store.scheduler import SchedulerStore
from broker.tenant_names import DEFAULT_TENANT, is_tenant
from broker.tenants import TenantTerms, parse_all_terms

log = logging.getLogger(__name__)

#: Names that are no tenant's: so many are remembered, so as to tell of them once.
_MOST_TOLD = 1000


class TenantStore(SchedulerStore):
    """The request streams of the tenants."""

    def __init__(self, redis: RedisClient, pool: str, owner: str, *, lease_ttl_s: float, result_ttl_s: int) -> None:
        super().__init__(redis, pool, owner, lease_ttl_s=lease_ttl_s, result_ttl_s=result_ttl_s)
        self._told: set[str] = set()  # names that are no tenant's

    async def tenants(self, most: int) -> set[str]:
        """Tenants (but the default one) that may have jobs in their streams; at most so many."""
        found = await unless_of_another_kind(self._redis.smembers(self.keys.tenants), self.keys.tenants)
        names = sorted(name.decode(errors="replace") for name in found or ())
        self._tell_of_no_tenants(name for name in names if not is_tenant(name))
        return set([name for name in names if is_tenant(name) and name != DEFAULT_TENANT][:most])

    def _tell_of_no_tenants(self, names: Iterable[str]) -> None:
        """Name what is no tenant's name, once."""
        if new := [name for name in names if name not in self._told][: _MOST_TOLD - len(self._told)]:
            shown = scripts.names([name.encode(errors="replace") for name in new])
            log.warning("%s: passed over what is no tenant: %s", self.keys.tenants, shown)
            self._told.update(new)

    async def terms(self) -> tuple[dict[str, TenantTerms], list[str]]:
        """Terms by tenant, and a line for each that cannot be read."""
        found = await unless_of_another_kind(self._redis.hgetall(self.keys.terms), self.keys.terms)
        return parse_all_terms(found or {})

    async def lengths(self, tenants: list[str]) -> dict[str, dict[str, int]]:
        """Jobs in each tenant's streams: tenant -> priority -> jobs read or not, that were not dispatched."""
        pipe = self._redis.pipeline(transaction=False)
        for tenant in tenants:
            for level in FRESH_LEVELS:
                pipe.xlen(self.keys.requests(tenant_level(level, tenant)))
        found = iter(await pipe.execute() if tenants else [])
        return {tenant: {level: next(found) for level in FRESH_LEVELS} for tenant in tenants}

    async def prepare(self, tenant: str = DEFAULT_TENANT) -> None:
        """Make a tenant's streams and their group, where they are not there yet."""
        if tenant == DEFAULT_TENANT:
            await super().prepare()
        else:
            await self._prepare([tenant_level(level, tenant) for level in FRESH_LEVELS])

    async def drop(self, tenant: str) -> bool:
        """Forget a tenant whose streams are empty; False where somebody has just submitted.

        Raises:
            LeaseLostError: another scheduler took over.
        """
        args = [self.keys.prefix, self.epoch, tenant]
        dropped = await self._scripts["drop_tenant"](args=args)
        self._check(dropped)
        return dropped == 1


async def unless_of_another_kind(answer: Awaitable[Any], key: str) -> Any:
    """What Redis answers; None, and a line in the log, where somebody made the key another kind of value."""
    try:
        return await answer
    except ResponseError as error:
        if not str(error).startswith("WRONGTYPE"):
            raise
        log.warning("%s is of another kind than it should be: delete it", key)
        return None

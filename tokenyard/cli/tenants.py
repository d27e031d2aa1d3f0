"""The command that shows and sets what the tenants of a pool are granted."""

from __future__ import annotations

from typing import Annotated

import orjson
import typer
from msgspec import structs

from broker.connection import connected
from broker.settings import Settings
from broker.store.terms import TermsStore
from broker.tenants import TenantTerms
from tokenyard.cli.runtime import PoolName, RedisUrl, err, redis_url_of, run, settings_of


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(tenants)


def tenants(
    tenant: Annotated[str | None, typer.Argument(help="Set this tenant's terms.", show_default=False)] = None,
    weight: Annotated[
        float | None, typer.Option(min=0.001, max=1000, help="Its share of device time; others have 1.")
    ] = None,
    max_running: Annotated[
        int | None, typer.Option(min=0, max=10**6, help="Most of its jobs on devices at a time; 0 for any number.")
    ] = None,
    pool: PoolName = None,
    redis_url: RedisUrl = None,
) -> None:
    """Show what tenants are granted, or grant one something. Prints a line of JSON a tenant."""
    settings = settings_of(redis_url=redis_url, pool=pool)
    run(_tenants(settings, tenant, weight, max_running), settings)


async def _tenants(settings: Settings, tenant: str | None, weight: float | None, max_running: int | None) -> None:
    async with connected(redis_url_of(settings)) as redis:
        store = TermsStore(redis, settings.pool)
        terms, problems = await store.all()
        for problem in problems:
            err.print(f"terms of tenant {problem}", markup=False, highlight=False)
        if tenant is not None:
            given = {"weight": weight, "max_running": max_running}
            changed = {name: value for name, value in given.items() if value is not None}
            granted = structs.replace(terms.get(tenant, TenantTerms()), **changed)
            if changed:
                await store.grant(tenant, granted)
            terms = {tenant: granted}
        for name, granted in sorted(terms.items()):
            typer.echo(orjson.dumps({"tenant": name, **structs.asdict(granted)}))

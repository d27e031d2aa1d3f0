"""Commands for single devices (their workers), and for the priority of a batch."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from broker.client import connect_client
from broker.errors import TokenyardError, UsageError
from broker.heartbeat import Heartbeat
from broker.jobs import Priority
from broker.settings import Settings
from broker.store.monitor import MonitorStore
from broker.store.operator import OperatorStore, WorkerOrder
from tokenyard.cli.runtime import PoolName, RedisUrl, redis_url_of, run, settings_of
from tokenyard.views.text import counted, printable

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the worker, as `tokenyard status` shows it.")]
BatchId = Annotated[str, typer.Argument(metavar="BATCH", help="Id of the batch.")]

#: A worker that lives has followed an order after this long (seconds).
_PATIENCE_S = 10.0
_LOOK_S = 0.05


class NotFollowedError(TokenyardError):
    """A worker does not do what it was told."""


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(no_args_is_help=True, help="Pause, resume and drain single devices.")
    group.command()(pause)
    group.command()(resume)
    group.command()(drain)
    app.add_typer(group, name="device")
    app.command()(prioritize)


def pause(name: Name, pool: PoolName = None, redis_url: RedisUrl = None) -> None:
    """Let a device take no more jobs: what runs ends, what has not started goes elsewhere. Its engine stays ready."""
    _order(name, WorkerOrder.PAUSE, settings_of(redis_url=redis_url, pool=pool))


def resume(name: Name, pool: PoolName = None, redis_url: RedisUrl = None) -> None:
    """Let a device that was paused take jobs again."""
    _order(name, WorkerOrder.RESUME, settings_of(redis_url=redis_url, pool=pool))


def drain(name: Name, pool: PoolName = None, redis_url: RedisUrl = None) -> None:
    """Let a worker finish what runs and leave, as SIGTERM does. A supervisor starts it again if the plan says so."""
    _order(name, WorkerOrder.DRAIN, settings_of(redis_url=redis_url, pool=pool))


def prioritize(batch: BatchId, priority: Annotated[Priority, typer.Argument()], redis_url: RedisUrl = None) -> None:
    """Serve what waits of a batch at another priority."""
    settings = settings_of(redis_url=redis_url)
    run(_prioritize(settings, batch, priority), settings)


async def _prioritize(settings: Settings, batch: str, priority: Priority) -> None:
    async with connect_client(redis_url_of(settings), settings.result_ttl_s) as client:
        await client.counts(batch)  # an unknown one is said
        pools = await client.pools_of(batch)
        moved = sum([await OperatorStore(client.redis, pool).reprioritize(batch, priority) for pool in pools])
    typer.echo(f"batch {batch}: {counted(moved, 'waiting job')} moved to {priority.value} priority")


def _order(name: str, order: WorkerOrder, settings: Settings) -> None:
    run(_give(settings, name, order), settings)


async def _give(settings: Settings, name: str, order: WorkerOrder) -> None:
    async with connect_client(redis_url_of(settings), settings.result_ttl_s) as client:
        monitor = MonitorStore(client.redis, settings.pool)
        known = await monitor.heartbeats()
        if name not in known:
            names = ", ".join(map(printable, sorted(known))) or "none"
            raise UsageError(f"pool {settings.pool} has no device {printable(name)}; it has: {names} (--pool names it)")
        await OperatorStore(client.redis, settings.pool).order(name, order)
        beat = await _followed(monitor, name, order)
    running = f", {counted(beat.running, 'job')} running" if beat is not None else ""
    typer.echo(f"device {printable(name)}: {beat.state if beat else 'left'}{running}")


async def _followed(monitor: MonitorStore, name: str, order: WorkerOrder) -> Heartbeat | None:
    """Its heartbeat once it has done as it was told; None where it has left.

    Raises:
        NotFollowedError: it does not.
    """
    end = asyncio.get_running_loop().time() + _PATIENCE_S
    while asyncio.get_running_loop().time() < end:
        beat = (await monitor.heartbeats()).get(name)
        if beat is None or _does(beat, order):
            return beat
        await asyncio.sleep(_LOOK_S)
    raise NotFollowedError(
        f"device {printable(name)} has not followed within {_PATIENCE_S:.0f} s: does its process run? An engine that"
        " starts follows later, if the order is younger than a minute"
    )


def _does(beat: Heartbeat, order: WorkerOrder) -> bool:
    match order:
        case WorkerOrder.PAUSE:
            return beat.state in ("paused", "draining")
        case WorkerOrder.RESUME:
            return beat.state != "paused"
        case WorkerOrder.DRAIN:
            return beat.state == "draining"

"""The commands ``planner`` and ``replan``: keep a pool's plan up to date, and ask for it now."""

from __future__ import annotations

import asyncio
import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker.concurrency import on_stop_signals, run_together
from broker.connection import connected
from broker.errors import UsageError
from broker.settings import Settings
from planner.resizing import ResizeTerms
from tokenyard.cli.request_options import Context, Dtypes, GpuMemory, Seats
from tokenyard.cli.runtime import MetricsPort, PoolName, RedisUrl, log_to_stderr, redis_url_of, run, settings_of
from tokenyard.metrics.process import metrics_served

if TYPE_CHECKING:
    from planner.replanning import LookTerms
    from tokenyard.inventory_planning import InventoryChoice

log = logging.getLogger(__name__)


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(planner)
    app.command()(replan)


def planner(
    inventory: Annotated[Path, typer.Argument(metavar="INVENTORY", help="Machines as TOML or JSON.")],
    model: Annotated[str, typer.Option(help="Folder or name of the model that the pool serves.")],
    served_name: Annotated[list[str] | None, typer.Option(help="Name that requests call it by (repeatable).")] = None,
    profiles: Annotated[list[Path] | None, typer.Option(metavar="PATH", help="Profiles beside the pool's own.")] = None,
    dtype: Dtypes = None,
    seats: Seats = None,
    gpu_memory_utilization: GpuMemory = 0.9,
    context: Context = 0,
    every_s: Annotated[float, typer.Option(min=5, max=3600, help="Look this often, seconds.")] = 120.0,
    mix_s: Annotated[float, typer.Option(min=10, help="Plan for the jobs that ended in so many seconds.")] = 1800.0,
    watch_s: Annotated[
        float, typer.Option(min=0, max=120, help="Watch the workers for so long, to see how fast they are now.")
    ] = 10.0,
    least_gain: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Change for no less: share of the time that it saves.")
    ] = 0.08,
    least_interval_s: Annotated[float, typer.Option(min=0, help="Seconds between two changes.")] = 600.0,
    looks: Annotated[int, typer.Option(min=1, help="Looks, one after another, that must see the gain.")] = 3,
    metrics_port: MetricsPort = None,
    pool: PoolName = None,
    redis_url: RedisUrl = None,
) -> None:
    """Plan again every few minutes for what the pool is asked lately, and write the plan where a change is worth it.

    Start it once, or twice: two do no harm. Supervisors carry the plan out.
    """
    from planner.replanning import LookTerms
    from tokenyard.inventory_planning import InventoryChoice

    settings = settings_of(redis_url=redis_url, pool=pool, metrics_port=metrics_port)
    log_to_stderr(settings)
    logging.getLogger("arq").setLevel(logging.WARNING)
    hold_s = 0.9 * every_s * (looks - 1)
    terms = ResizeTerms(least_gain=least_gain, least_interval_s=least_interval_s, looks=looks, hold_s=hold_s)
    choice = InventoryChoice(
        inventory,
        model,
        tuple(served_name or ()),
        tuple(profiles or ()),
        tuple(dtype or ()),
        tuple(seats or ()),
        gpu_memory_utilization,
        context,
    )
    run(_plan(settings, choice, every_s, LookTerms(mix_s, watch_s, terms)), settings)


async def _plan(settings: Settings, choice: InventoryChoice, every_s: float, look: LookTerms) -> None:
    from tokenyard.planner_process import planner_process  # brings scipy, which no other command waits for

    async with connected(redis_url_of(settings)) as client:
        process = planner_process(client, settings, choice, every_s=every_s, look=look)
        stop = asyncio.Event()
        on_stop_signals(lambda _name: stop.set())
        log.info("planning for pool %s every %.0f s", settings.pool, every_s)
        with metrics_served(settings):
            await run_together(process.run(), stop.wait())


def replan(
    measure: Annotated[
        str, typer.Option(help="First measure an engine on the planner's host: options of `tokenyard profile`.")
    ] = "",
    host: Annotated[str, typer.Option(help="Where --measure is to measure; of another host it says how.")] = "",
    timeout_s: Annotated[float, typer.Option(min=1, help="Wait so long for the planner's answer.")] = 120.0,
    pool: PoolName = None,
    redis_url: RedisUrl = None,
) -> None:
    """Ask the planner that runs to plan now: any gain is enough. Prints what it says."""
    settings = settings_of(redis_url=redis_url, pool=pool)
    run(_replan(settings, measure, host, timeout_s), settings)


async def _replan(settings: Settings, measure: str, host: str, timeout_s: float) -> int:
    from planner.tasks import ask  # arq, which no other command waits for

    try:
        options = shlex.split(measure)
    except ValueError as error:
        raise UsageError(f"--measure {measure!r}: {error}") from None
    if host and not options:
        raise UsageError("--host says where --measure is to measure: give that, too")
    async with connected(redis_url_of(settings)) as client:
        if options:
            said = await ask(client, settings.pool, "profile_device", options, host, timeout_s=timeout_s)
            typer.echo(said)
            if said.startswith("error:"):  # a plan would not be what was asked for
                return 1
        said = await ask(client, settings.pool, "replan", timeout_s=timeout_s)
    typer.echo(said)
    return 1 if said.startswith("error:") else 0

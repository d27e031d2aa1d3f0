"""The command ``ray``: keep a pool's workers on a Ray cluster as the plan says."""

from __future__ import annotations

import logging
import random
from contextlib import suppress
from typing import Annotated

import typer

from broker.connection import connected
from broker.errors import UsageError
from broker.settings import Settings
from planner.autoscaling import ScaleTerms
from tokenyard.cli.runtime import PoolName, RedisUrl, log_to_stderr, redis_url_of, run, settings_of
from tokenyard.cli.supervising import (
    CoolDownS,
    DrainS,
    MaxWorkers,
    MinWorkers,
    Models,
    Stopping,
    check_bounds,
    worker_environment,
)
from tokenyard.cli.worker_words import words_checker
from tokenyard.ray_terms import RAY_HOST
from tokenyard.supervisor import Supervisor, SupervisorTerms

log = logging.getLogger(__name__)


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(ray)


def ray(
    context: typer.Context,
    model: Models,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Host of the plan that runs on Ray (repeatable); all of them otherwise."),
    ] = None,
    address: Annotated[str, typer.Option(help="HOST:PORT of the Ray cluster; auto: the one of this node.")] = "auto",
    room_s: Annotated[
        float,
        typer.Option(min=1, help="A new worker that Ray has no room for makes one it replaces leave after so long."),
    ] = 30.0,
    min_workers: MinWorkers = 0,
    max_workers: MaxWorkers = 1000,
    drain_s: DrainS = 60.0,
    cool_down_s: CoolDownS = 300.0,
    pool: PoolName = None,
    redis_url: RedisUrl = None,
) -> None:
    """Keep a pool's workers on a Ray cluster as its plan says: each an actor, placed by Ray. One for a pool.

    Ctrl-C drains the workers; a second one hands back what they run.
    """
    settings = settings_of(redis_url=redis_url, pool=pool)
    log_to_stderr(settings)
    check_bounds(min_workers, max_workers)
    plan_file = settings.state_dir / f"ray-{settings.pool}.plan"
    scale = ScaleTerms(drain_s, cool_down_s)
    terms = SupervisorTerms(RAY_HOST, tuple(model), min_workers, max_workers, scale, plan_file)
    run(_supervise(settings, terms, tuple(host or ()), address, room_s, context.find_root().command), settings)


async def _supervise(
    settings: Settings, terms: SupervisorTerms, hosts: tuple[str, ...], address: str, room_s: float, group: object
) -> None:
    try:
        from tokenyard import ray_pool
    except ImportError:
        raise UsageError("Ray is not installed here: pip install 'tokenyard[ray]'") from None
    url = redis_url_of(settings)
    with suppress(OSError):  # a plan that cannot be kept is told of when it should be
        settings.state_dir.mkdir(parents=True, exist_ok=True)
    async with connected(url) as client:
        with ray_pool.ray_cluster(address, settings.pool):
            stopping = Stopping()  # Ray's own way with signals is over then
            holder = await stopping.unless_stopped(ray_pool.only_supervisor(log.info))
            if holder is None:
                return
            site = ray_pool.ray_site(terms.models, worker_environment(settings, url), hosts, room_s)
            check = words_checker(group)
            supervisor = Supervisor(client, settings.pool, terms, site=site, check_words=check, rng=random.Random())
            log.info("supervising pool %s on Ray", settings.pool)
            await stopping.run(supervisor)

"""The command ``supervisor``: keep this host's workers as the plan says."""

from __future__ import annotations

import logging
import random
import re
import socket
from contextlib import AsyncExitStack
from typing import Annotated

import typer

from broker.connection import connected
from broker.settings import Settings
from planner.autoscaling import ScaleTerms
from tokenyard.cli.runtime import MetricsPort, PoolName, RedisUrl, log_to_stderr, redis_url_of, run, settings_of
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
from tokenyard.host_lock import host_lock
from tokenyard.metrics.process import metrics_served
from tokenyard.supervisor import Supervisor, SupervisorTerms, log_folder
from tokenyard.worker_site import host_site

log = logging.getLogger(__name__)


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(supervisor)


def supervisor(
    context: typer.Context,
    model: Models,
    host: Annotated[str | None, typer.Option(help="This host's name in the plan; its own otherwise.")] = None,
    min_workers: MinWorkers = 0,
    max_workers: MaxWorkers = 64,
    drain_s: DrainS = 60.0,
    cool_down_s: CoolDownS = 300.0,
    metrics_port: MetricsPort = None,
    pool: PoolName = None,
    redis_url: RedisUrl = None,
) -> None:
    """Keep this host's workers of a pool as its plan says: start, drain, restart. One on each host.

    Ctrl-C drains the workers; a second one hands back what they run.
    """
    settings = settings_of(redis_url=redis_url, pool=pool, metrics_port=metrics_port)
    log_to_stderr(settings)
    check_bounds(min_workers, max_workers)
    scale = ScaleTerms(drain_s, cool_down_s)
    bounds = (min_workers, max_workers)
    group = context.find_root().command
    run(_supervise(settings, host or socket.gethostname(), tuple(model), bounds, scale, group), settings)


async def _supervise(
    settings: Settings, host: str, models: tuple[str, ...], bounds: tuple[int, int], scale: ScaleTerms, group: object
) -> None:
    url = redis_url_of(settings)
    logs = log_folder(settings.state_dir)
    own = settings.state_dir / re.sub(r"[^A-Za-z0-9._-]", "_", f"supervisor-{settings.pool}-{host}")
    plan_file, lock = own.with_name(f"{own.name}.plan"), own.with_name(f"{own.name}.lock")
    terms = SupervisorTerms(host, models, *bounds, scale, plan_file)
    stopping = Stopping()
    async with connected(url) as client, AsyncExitStack() as stack:
        descriptor = await stopping.unless_stopped(stack.enter_async_context(host_lock(lock, log.info)))
        if descriptor is None:
            return
        site = host_site(models, logs, worker_environment(settings, url), descriptor)
        check = words_checker(group)
        supervisor = Supervisor(client, settings.pool, terms, site=site, check_words=check, rng=random.Random())
        log.info("supervising host %s for pool %s", host, settings.pool)
        with metrics_served(settings):
            await stopping.run(supervisor)

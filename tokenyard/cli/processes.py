"""Commands that start a long-running process: scheduler, worker, redis."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from broker.concurrency import on_stop_signals, run_together
from broker.connection import connected
from broker.settings import Settings
from tokenyard.cli.engine_options import with_engine_options
from tokenyard.cli.runtime import MetricsPort, PoolName, RedisUrl, err, log_to_stderr, redis_url_of, run, settings_of
from tokenyard.embedded_server import EmbeddedServer
from tokenyard.engine_choice import EngineChoice
from tokenyard.metrics.process import metrics_served
from tokenyard.worker_process import run_worker

#: Those of ``broker.policies``, which takes long to import.
POLICY_NAMES = "capacity, least_outstanding, power_of_two, round_robin, throughput"


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(scheduler)
    app.command()(with_engine_options(worker))
    app.command()(redis)


def scheduler(
    pool: Annotated[list[str] | None, typer.Option(help="Serve only this pool (repeatable); all otherwise.")] = None,
    policy: Annotated[str | None, typer.Option(help=f"Placement policy: {POLICY_NAMES} [TOKENYARD_POLICY].")] = None,
    metrics_port: MetricsPort = None,
    redis_url: RedisUrl = None,
) -> None:
    """Place jobs on devices. Start two: the second stands by and takes over."""
    settings = settings_of(redis_url=redis_url, policy=policy, metrics_port=metrics_port)
    log_to_stderr(settings)
    run(_schedule(settings, pool or []), settings)


async def _schedule(settings: Settings, pools: list[str]) -> None:
    from tokenyard.scheduler_process import run_scheduler  # with NumPy and HiGHS, which no other command here needs

    async with connected(redis_url_of(settings)) as client:
        await _until_stopped(run_scheduler(client, settings, pools))


async def _until_stopped(main: object) -> None:
    stop = asyncio.Event()
    on_stop_signals(lambda _name: stop.set())
    await run_together(main, stop.wait())  # type: ignore[arg-type]


def worker(
    choice: EngineChoice,
    pool: PoolName = None,
    name: Annotated[str | None, typer.Option(help="Name of the worker; host and process id otherwise.")] = None,
    metrics_port: MetricsPort = None,
    redis_url: RedisUrl = None,
) -> None:
    """Run jobs on one device. Start it on any host, at any time: that is how one scales out."""
    settings = settings_of(redis_url=redis_url, pool=pool, metrics_port=metrics_port)
    log_to_stderr(settings)
    run(_work(settings, choice, name or f"{socket.gethostname()}-{os.getpid()}"), settings)


async def _work(settings: Settings, choice: EngineChoice, name: str) -> None:
    with metrics_served(settings):
        await run_worker(redis_url_of(settings), settings, choice, name)


def redis(
    data_dir: Annotated[Path, typer.Option(help="Where its data lives.")] = Path(".tokenyard/redis"),
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="TCP port; a Unix socket otherwise.")] = None,
    host: Annotated[str, typer.Option(help="Loopback address to bind the port to.")] = "127.0.0.1",
) -> None:
    """Run the embedded Redis-compatible server, for a cluster without one."""
    settings = settings_of()
    run(_serve_redis(data_dir, port, host), settings)


async def _serve_redis(data_dir: Path, port: int | None, host: str) -> None:
    server = EmbeddedServer(data_dir, port=port, host=host)
    await server.start()
    try:
        err.print(f"data in {server.data_dir}, log in {server.log_path}; Ctrl-C stops it", highlight=False)
        err.print(f"look at it with: {server.redis_cli_hint}", highlight=False)
        err.print(f'export TOKENYARD_REDIS_URL="{shell_address(server, host, port)}"', highlight=False, soft_wrap=True)
        stop = asyncio.Event()
        on_stop_signals(lambda _name: stop.set())
        await stop.wait()
    finally:
        await server.stop()


def shell_address(server: EmbeddedServer, host: str, port: int | None) -> str:
    """The server's address for a shell, which reads the password from its file: it is shown to nobody."""
    named = f"[{host}]" if ":" in host else host
    return server.url if port is None else f"redis://:$(cat {server.data_dir}/password)@{named}:{port}/0"

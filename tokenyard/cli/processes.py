"""Commands that start a long-running process: scheduler, worker, redis."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from pathlib import Path
from typing import Annotated

import typer

from broker.concurrency import on_stop_signals, run_together
from broker.connection import connected
from broker.policies import POLICIES, make_policy
from broker.scheduler_host import SchedulerHost
from broker.settings import Settings
from tokenyard.cli.runtime import PoolName, RedisUrl, err, log_to_stderr, redis_url_of, run, settings_of
from tokenyard.embedded_server import EmbeddedServer
from tokenyard.engine_choice import EngineChoice, EngineKind
from tokenyard.worker_process import run_worker


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(scheduler)
    app.command()(worker)
    app.command()(redis)


def scheduler(
    pool: Annotated[list[str] | None, typer.Option(help="Serve only this pool (repeatable); all otherwise.")] = None,
    policy: Annotated[
        str | None, typer.Option(help=f"Placement policy: {', '.join(sorted(POLICIES))} [TOKENYARD_POLICY].")
    ] = None,
    redis_url: RedisUrl = None,
) -> None:
    """Place jobs on devices. Start two: the second stands by and takes over."""
    settings = settings_of(redis_url=redis_url, policy=policy)
    log_to_stderr(settings)
    run(_schedule(settings, pool or []), settings)


async def _schedule(settings: Settings, pools: list[str]) -> None:
    make_policy(settings.policy)  # an unknown one is refused now, not when the first pool comes
    async with connected(redis_url_of(settings)) as client:
        owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        await _until_stopped(SchedulerHost(client, settings, owner=owner, pools=pools).run())


async def _until_stopped(main: object) -> None:
    stop = asyncio.Event()
    on_stop_signals(lambda _name: stop.set())
    await run_together(main, stop.wait())  # type: ignore[arg-type]


def worker(
    model: Annotated[str, typer.Option(help="Directory or hub name of the model; 'demo' for the demo's own.")],
    pool: PoolName = None,
    engine: Annotated[EngineKind, typer.Option(help="What runs the requests.")] = EngineKind.VLLM,
    name: Annotated[str | None, typer.Option(help="Name of the worker; host and process id otherwise.")] = None,
    served_name: Annotated[
        list[str] | None, typer.Option(help="Name that requests call the model by (repeatable).")
    ] = None,
    seats: Annotated[int | None, typer.Option(min=1, help="Most requests at once (max_num_seqs).")] = None,
    context: Annotated[int | None, typer.Option(min=2, help="Longest prompt plus output, tokens.")] = None,
    task: Annotated[str, typer.Option(help="vllm: generate or embed.")] = "generate",
    dtype: Annotated[str, typer.Option(help="vllm: auto, bfloat16, float16 or float32.")] = "auto",
    kv_gib: Annotated[float | None, typer.Option(min=0.01, help="vllm: GiB of KV cache.")] = None,
    cores: Annotated[str | None, typer.Option(help="vllm on CPU: cores to keep to, such as 0-3.")] = None,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="vllm: devices that share the model.")] = 1,
    gpu_memory_utilization: Annotated[
        float | None, typer.Option(min=0.05, max=1.0, help="vllm on GPU: share of the memory to use.")
    ] = None,
    eager: Annotated[bool, typer.Option(help="vllm: do not compile; starts sooner.")] = False,
    engine_arg: Annotated[
        list[str] | None, typer.Option(help="vllm: any other option as name=value (repeatable).")
    ] = None,
    url: Annotated[str | None, typer.Option(help="openai: address of the server.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="TOKENYARD_API_KEY", help="openai: key of the server.", show_default=False)
    ] = None,
    upstream_model: Annotated[str | None, typer.Option(help="openai: the server's own name for the model.")] = None,
    kv_tokens: Annotated[
        int | None, typer.Option(min=16, help="openai, simulated: KV cache, tokens, where it does not tell.")
    ] = None,
    profile: Annotated[Path | None, typer.Option(help="simulated: JSON file of a device profile.")] = None,
    speed: Annotated[float, typer.Option(min=1e-6, help="simulated: times faster than the profile.")] = 1.0,
    mean_output_tokens: Annotated[float, typer.Option(min=1, help="simulated: mean length of answers.")] = 128.0,
    redis_url: RedisUrl = None,
) -> None:
    """Run jobs on one device. Start it on any host, at any time: that is how one scales out."""
    settings = settings_of(redis_url=redis_url, pool=pool)
    log_to_stderr(settings)
    choice = EngineChoice(
        kind=engine,
        model=model,
        served_names=tuple(served_name or ()),
        seats=seats,
        context_tokens=context,
        task=task,
        dtype=dtype,
        kv_gib=kv_gib,
        cores=cores,
        tensor_parallel=tensor_parallel,
        gpu_memory_utilization=gpu_memory_utilization,
        eager=eager,
        engine_args=tuple(engine_arg or ()),
        url=url,
        api_key=api_key,
        upstream_model=upstream_model,
        kv_tokens=kv_tokens,
        profile=profile,
        speed=speed,
        mean_output_tokens=mean_output_tokens,
    )
    run(_work(settings, choice, name or f"{socket.gethostname()}-{os.getpid()}"), settings)


async def _work(settings: Settings, choice: EngineChoice, name: str) -> None:
    await run_worker(redis_url_of(settings), settings, choice, name)


def redis(
    data_dir: Annotated[Path, typer.Option(help="Where its data lives.")] = Path(".tokenyard/redis"),
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="TCP port; a Unix socket otherwise.")] = None,
    host: Annotated[str, typer.Option(help="Address to bind the port to.")] = "127.0.0.1",
) -> None:
    """Run the embedded Redis-compatible server, for a cluster without one."""
    settings = settings_of()
    run(_serve_redis(EmbeddedServer(data_dir, port=port, host=host)), settings)


async def _serve_redis(server: EmbeddedServer) -> None:
    await server.start()
    try:
        err.print(f"data in {server.data_dir}, log in {server.log_path}; Ctrl-C stops it", highlight=False)
        err.print(f"look at it with: {server.redis_cli_hint}", highlight=False)
        address = server.url if port_less(server.url) else f"the password is in {server.data_dir}/password"
        err.print(f"TOKENYARD_REDIS_URL: {address}", highlight=False)
        stop = asyncio.Event()
        on_stop_signals(lambda _name: stop.set())
        await stop.wait()
    finally:
        await server.stop()


def port_less(url: str) -> bool:
    """Whether the address is a socket: it holds no password then."""
    return url.startswith("unix://")

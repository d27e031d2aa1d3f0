"""The routers people use, each from PyPI in an environment of its own (``make bench-peers-setup``)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from benchmarks.cluster import BenchmarkError
from benchmarks.peers import ENVIRONMENTS
from benchmarks.routing.servers import Program, Server

_START_TIMEOUT_S = 60.0
_LOOK_S = 0.1
_TIMEOUT = aiohttp.ClientTimeout(total=5)

#: The words that start each router, and its own word for a quiet log.
_COMMANDS = {"vllm-router": (["vllm-router"], "warning"), "sglang-router": (["sglang-router", "launch"], "warn")}


@dataclass(frozen=True, slots=True)
class Router:
    """A router with one of its policies; all else as it comes.

    Attributes:
        package: its name on PyPI.
        policy: what it calls the policy.
    """

    package: str
    policy: str

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.package}:{self.policy}"

    @property
    def program(self) -> Path:
        """Where its program lies."""
        return ENVIRONMENTS / self.package / "bin" / self.package


ROUTERS = (
    Router("vllm-router", "round_robin"),
    Router("vllm-router", "power_of_two"),
    Router("vllm-router", "cache_aware"),
    Router("sglang-router", "cache_aware"),
)


def check_installed(routers: Sequence[Router]) -> None:
    """See that these routers are there.

    Raises:
        BenchmarkError: one is not.
    """
    missing = sorted({router.package for router in routers if not router.program.exists()})
    if missing:
        raise BenchmarkError(f"not installed: {', '.join(missing)}: run `make bench-peers-setup`, or choose --systems")


def installed_version(router: Router) -> str:
    """Its version, from the metadata of its package."""
    module = router.package.replace("-", "_")
    found = sorted((ENVIRONMENTS / router.package).glob(f"lib/python*/site-packages/{module}-*.dist-info"))
    return found[0].name.removesuffix(".dist-info").rpartition("-")[2] if found else "of unknown version"


@asynccontextmanager
async def running_router(router: Router, servers: Sequence[Server], folder: Path) -> AsyncGenerator[str]:
    """Start a router in front of the servers and wait until it finds all of them healthy; yields its address.

    Raises:
        BenchmarkError: it does not start.
    """
    (_, *words), quiet = _COMMANDS[router.package]
    port, metrics_port = _free_ports(2)
    words += ["--host", "127.0.0.1", "--port", str(port), "--prometheus-host", "127.0.0.1"]
    words += ["--prometheus-port", str(metrics_port), "--policy", router.policy, "--log-level", quiet]
    words += ["--worker-urls", *(server.url for server in servers)]
    program = Program(router.name.replace(":", "-"), [str(router.program), *words], log_dir=folder)
    await program.start()
    try:
        url = f"http://127.0.0.1:{port}"
        await _until_ready(program, url, len(servers))
        yield url
    finally:
        await program.stop()


async def _until_ready(program: Program, url: str, servers: int) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + _START_TIMEOUT_S
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
        while await _healthy(session, url) < servers:
            if program.ended or loop.time() > end:
                why = (
                    program.how_it_ended()
                    if program.ended
                    else f"no {servers} healthy servers (log: {program.log_path})"
                )
                raise BenchmarkError(f"{program.name} did not start: {why}")
            await asyncio.sleep(_LOOK_S)


async def _healthy(session: aiohttp.ClientSession, url: str) -> int:
    """Servers that the router has and finds healthy."""
    try:
        async with session.get(f"{url}/workers") as response:
            workers = (await response.json())["workers"]
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError):
        return 0
    return sum(worker["is_healthy"] for worker in workers)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports

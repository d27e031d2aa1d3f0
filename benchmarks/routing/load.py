"""Send requests straight to an address: to a router as a client does, or to the servers as one who knows it all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from benchmarks.cluster import BenchmarkError
from benchmarks.routing.longest_first import LongestFirst
from benchmarks.routing.servers import Server, Watch
from benchmarks.routing.workload import URL, Request
from broker.concurrency import cancel_all

_HEADERS = {"Content-Type": "application/json"}


async def through_router(watch: Watch, url: str, requests: Sequence[Request], in_flight: int) -> None:
    """Send all requests to one address, ``in_flight`` at a time, in their order.

    Raises:
        BenchmarkError: one was not answered as it should be.
    """
    rest = iter(requests)

    async with _session() as session:

        async def lane() -> None:
            for request in rest:
                await _post(session, url, request)

        async with watch:
            await _all([lane() for _ in range(in_flight)])


async def longest_first(watch: Watch, servers: Sequence[Server], requests: Sequence[Request], in_flight: int) -> None:
    """Send all requests, placed by ``LongestFirst``.

    Raises:
        BenchmarkError: one was not answered as it should be.
    """
    scheduler = LongestFirst(requests, [server.profile.kv_tokens for server in servers], in_flight)
    async with _session() as session:

        async def run(place: int, request: Request) -> None:
            await _post(session, servers[place].url, request)
            scheduler.ended(place, request)

        running: set[asyncio.Task[None]] = set()
        async with watch:
            try:
                while scheduler.waiting or running:
                    running |= {asyncio.ensure_future(run(*start)) for start in scheduler.take()}
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
            finally:
                await cancel_all(list(running))


async def _all(coroutines: Sequence[Coroutine[Any, Any, None]]) -> None:
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        await cancel_all(tasks)


@asynccontextmanager
async def _session() -> AsyncGenerator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)  # uvicorn closes an idle connection after 5 s
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        yield session


async def _post(session: aiohttp.ClientSession, url: str, request: Request) -> None:
    try:
        async with session.post(url + URL, data=request.body, headers=_HEADERS) as response:
            status, body = response.status, await response.read()
    except aiohttp.ClientError as error:
        raise BenchmarkError(f"{url} broke off request {request.custom_id}: {error or type(error).__name__}") from None
    if status != 200:
        raise BenchmarkError(f"{url} answers with status {status}: {body[:200].decode(errors='replace')}")
    answered = orjson.loads(body)["usage"]["completion_tokens"]
    if answered != request.output_tokens:
        raise BenchmarkError(f"{url} answered {answered} tokens instead of {request.output_tokens}: lengths got lost")

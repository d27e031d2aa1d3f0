"""The same requests through Tokenyard: a worker attached to each server, the real scheduler, the embedded server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.cluster import BenchmarkError
from benchmarks.routing.servers import Server, Watch
from benchmarks.routing.workload import MODEL, URL, Request
from broker.client import Client, connect_client, new_batch_id
from broker.concurrency import run_together
from broker.openai_batch import RequestLine
from broker.settings import load_settings
from broker.store.monitor import MonitorStore
from tokenyard.local_cluster import LocalCluster, WorkerSpec

_POOL = "routers"
_READY_TIMEOUT_S = 60.0
_LOOK_S = 0.05
_EXTRA_SHARE = 16


def seats_of(kv_tokens: Sequence[int], in_flight: int) -> list[int]:
    """``--seats`` of each worker: the requests in flight shared out by KV memory, so that no more are ever sent.

    A worker sends one request for every sixteen seats, and at least one, on top of its seats (``workers.worker``).
    """
    total = sum(kv_tokens)
    seats: list[int] = []
    for kv in kv_tokens:
        share = in_flight * kv // total
        fitting = (n for n in range(share, 0, -1) if n + max(1, n // _EXTRA_SHARE) <= share)
        seats.append(next(fitting, 1))
    return seats


async def through_tokenyard(
    watch: Watch,
    servers: Sequence[Server],
    requests: Sequence[Request],
    in_flight: int,
    policy: str,
    folder: Path,
    profiles: Mapping[str, Path],
    speed: float,
) -> None:
    """Run all requests as one batch; the clock goes from the submit of the first to the last result read.

    Args:
        watch: the clock.
        servers: one worker is attached to each.
        requests: the batch.
        in_flight: most requests on all servers together.
        policy: placement policy of the scheduler.
        folder: for data and logs.
        profiles: measured times of servers, by name; the others' are learned while they run.
        speed: times faster than real that the servers run: heartbeats come that much more often.

    Raises:
        BenchmarkError: a result is missing or wrong.
        TokenyardError: a process ended.
    """
    seats = seats_of([server.profile.kv_tokens for server in servers], in_flight)
    workers = [
        WorkerSpec(server.name, _worker_words(server, count, profiles.get(server.name)))
        for server, count in zip(servers, seats, strict=True)
    ]
    settings = load_settings(pool=_POOL, policy=policy, state_dir=folder / "tokenyard")
    beat_s = min(settings.heartbeat_interval_s / speed, 1.0)
    # A server of its own, whatever the environment says.
    settings = settings.model_copy(update={"redis_url": None, "heartbeat_interval_s": beat_s})
    async with (
        LocalCluster(settings, MODEL, workers, lambda _text: None) as cluster,
        connect_client(cluster.redis_url) as client,
    ):
        await cluster.start()

        async def measure() -> None:
            await _until_ready(MonitorStore(client.redis, _POOL), cluster, len(workers))
            async with watch:
                await _run(client, requests)

        await run_together(measure(), cluster.watch())


def _worker_words(server: Server, seats: int, profile: Path | None) -> tuple[str, ...]:
    words = ("--engine", "openai", "--url", server.url, "--seats", str(seats))
    return (*words, "--profile", str(profile)) if profile else words


async def _until_ready(store: MonitorStore, cluster: LocalCluster, count: int) -> None:
    """Wait until the scheduler leads and all workers take jobs."""
    loop = asyncio.get_running_loop()
    end = loop.time() + _READY_TIMEOUT_S
    ready = 0
    while ready < count or await store.lease_owner() is None:
        if loop.time() > end:
            raise BenchmarkError(f"{ready} of {count} workers are ready after {_READY_TIMEOUT_S:.0f} s")
        beats = await store.heartbeats()
        cluster.saw(beats)
        ready = sum(beat is not None and beat.state == "ready" for beat in beats.values())
        await asyncio.sleep(_LOOK_S)


async def _run(client: Client, requests: Sequence[Request]) -> None:
    batch = new_batch_id()
    expected = {request.custom_id: request.output_tokens for request in requests}
    lines = (RequestLine(r.custom_id, URL, MODEL, r.body, r.max_tokens, int(r.custom_id) + 1) for r in requests)
    await client.submit(lines, batch)
    await client.seal(batch)
    async for results in client.results(batch):
        for result in results:
            if not result.ok or expected.pop(result.custom_id, None) != result.output_tokens:
                why = result.error_message or f"status {result.status_code}, or a wrong or second answer"
                raise BenchmarkError(f"request {result.custom_id}: {why}")
    if expected:
        raise BenchmarkError(f"{len(expected)} of {len(requests)} requests did not come back")
    await client.forget(batch)

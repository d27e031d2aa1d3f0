"""A whole cluster in one process: scheduler hosts, workers, and an engine that does what the test says."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
import redis.exceptions as rex
from manual_engine import ManualEngine as ManualEngine
from manual_engine import instant_engine as instant_engine
from redis.asyncio import Redis

from benchmarks.waiting import until_true
from broker.client import Client, new_batch_id
from broker.concurrency import cancel_all
from broker.connection import OPTIONS, connect
from broker.heartbeat import Heartbeat
from broker.jobs import Priority, Result
from broker.keys import LEVELS, PoolKeys
from broker.openai_batch import RequestLine
from broker.scheduler_host import SchedulerHost
from broker.settings import Settings
from broker.store.monitor import MonitorStore
from broker.store.worker import WorkerStore
from workers.engines.base import Engine
from workers.membership import Membership
from workers.worker import Worker

CHAT = "/v1/chat/completions"
#: Longer than any condition takes on a busy machine; a test that waits this long has failed.
PATIENCE_S = 30.0


async def eventually(look: Callable[[], Any], what: str = "", timeout: float = PATIENCE_S) -> Any:
    """Look (a function, or one that returns an awaitable) until what is seen is true, and return it."""
    try:
        return await until_true(look, timeout)
    except TimeoutError:
        what = what or inspect.getsource(look).strip()
        raise AssertionError(f"did not come true within {timeout} s: {what}") from None


HEARTBEAT: dict[str, Any] = {
    "incarnation": "i",
    "state": "ready",
    "engine": "test",
    "model": "m",
    "device": "d",
    "version": "1",
    "prompt_tokens_per_s": 0.0,
    "output_tokens_per_s": 0.0,
    "kv_tokens_total": 100_000,
    "kv_tokens_free": 100_000,
    "seats": 4,
    "context_tokens": 4096,
    "running": 0,
    "waiting": 0,
    "free_memory_bytes": 0,
}


#: The same as a ready worker sends it.
READY = {name: str(value) for name, value in HEARTBEAT.items() if name != "incarnation"}


def heartbeat(**fields: Any) -> Heartbeat:
    """A sound heartbeat with these fields."""
    return Heartbeat(**(HEARTBEAT | fields))


class CuttableRedis(Redis):
    """A connection that the test cuts, freezes, or loses answers of."""

    _cut = False
    _frozen: asyncio.Event | None = None
    #: Asked about each command and its answer; the first answer for which it says yes gets lost on its way.
    lose: Callable[[tuple[Any, ...], Any], bool] | None = None
    #: Likewise; an answer for which it gives an event comes only once that is set.
    hold: Callable[[tuple[Any, ...], Any], asyncio.Event | None] | None = None

    async def cut(self) -> None:
        """From now on nothing gets through, and the server sees the connections end: a process that was killed."""
        self._cut = True
        pool: Any = self.connection_pool  # typed as the synchronous one
        await pool.disconnect(inuse_connections=True)

    def freeze(self) -> None:
        """Nothing goes on, and the server notices nothing: a process under SIGSTOP."""
        self._frozen = asyncio.Event()

    def thaw(self) -> None:
        """Everything goes on where it was."""
        if self._frozen is not None:
            self._frozen.set()

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        await self._pass()
        answer = await super().execute_command(*args, **options)
        await self._pass()
        if self.hold is not None and (event := self.hold(args, answer)):
            await event.wait()
        if self.lose is not None and self.lose(args, answer):
            self.lose = None
            raise rex.ConnectionError("the answer was lost by the test")
        return answer

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:
        self._refuse_if_cut()
        return super().pipeline(transaction, shard_hint)

    async def _pass(self) -> None:
        if self._frozen is not None:
            await self._frozen.wait()
        self._refuse_if_cut()

    def _refuse_if_cut(self) -> None:
        if self._cut:
            raise rex.ConnectionError("cut by the test")


def cuttable(url: str) -> CuttableRedis:
    """As ``broker.connection.connect``, but cuttable; several servers are not."""
    return connect(url) if "+" in url else CuttableRedis.from_url(url, **OPTIONS)


@dataclass(slots=True)
class RunningWorker:
    """A worker of the cluster, its connection, and the task it runs in."""

    worker: Worker
    member: Membership
    redis: CuttableRedis
    task: asyncio.Task[None]

    async def stop(self, *, at_once: bool = False) -> None:
        """Drain it (``at_once``: hand back what runs, too), and wait until it has left."""
        self.worker.stop("the test")
        if at_once:
            self.worker.stop("the test")
        await self.left()

    async def left(self) -> None:
        """Wait until it has left."""
        async with asyncio.timeout(PATIENCE_S):
            await self.task

    async def kill(self) -> None:
        """End it as ``kill -9`` does: it says nothing to anyone."""
        await self.redis.cut()
        await cancel_all([self.task])


@dataclass(slots=True)
class RunningScheduler:
    """A scheduler host of the cluster."""

    redis: CuttableRedis
    task: asyncio.Task[None]

    async def stop(self) -> None:
        """End it as SIGTERM does: it gives its lease up."""
        await cancel_all([self.task])

    async def kill(self) -> None:
        """End it as ``kill -9`` does: its lease runs out by itself."""
        await self.redis.cut()
        await cancel_all([self.task])


class Cluster:
    """One pool with a model of its own, on a server that other pools may use."""

    def __init__(self, url: str, pool: str, **settings: Any) -> None:
        self.url = url
        values: dict[str, Any] = {"pool": pool, "heartbeat_interval_s": 0.1, "retry_first_s": 0.01} | settings
        self.settings = Settings(**values)
        self.model = f"model-{pool}"
        self.batch = f"batch-{pool}"
        self.keys = PoolKeys(pool)
        self.redis = cuttable(url)
        self.client = Client(self.redis, self.settings.result_ttl_s)
        self.monitor = MonitorStore(self.redis, pool)
        self._connections = [self.redis]
        self._tasks: list[asyncio.Task[None]] = []

    async def close(self) -> None:
        """End what still runs."""
        await cancel_all(self._tasks)
        for connection in self._connections:
            await connection.aclose()

    def schedule(
        self, owner: str = "first", *, pools: Sequence[str] | None = None, **settings: Any
    ) -> RunningScheduler:
        """Start a scheduler host of this pool, or of those; with an empty list, of all there are."""
        connection = self._connect()
        mine = self.settings.model_copy(update=settings)
        host = SchedulerHost(connection, mine, owner=owner, pools=[mine.pool] if pools is None else pools)
        return RunningScheduler(connection, self._run(host.run()))

    async def leading(self, owner: str) -> None:
        """Wait until that scheduler holds the lease."""

        async def leads() -> bool:
            return await self.monitor.lease_owner() == owner

        await eventually(leads, f"{owner} leads")

    def start(self, name: str, engine: Engine) -> RunningWorker:
        """Start a worker, without waiting for it."""
        connection = self._connect()
        member = Membership(connection, self.settings, name=name, engine_kind="test", models=[self.model])
        worker = Worker(engine, member)
        return RunningWorker(worker, member, connection, self._run(worker.run()))

    async def join(self, name: str, engine: Engine) -> RunningWorker:
        """Start a worker, and wait until it is ready."""
        running = self.start(name, engine)
        await self.in_state(name, "ready")
        return running

    async def in_state(self, name: str, state: str | None) -> None:
        """Wait until the pool knows that worker to be in that state; None: it is not in the pool."""

        async def is_so() -> bool:
            beat = (await self.monitor.heartbeats()).get(name)
            return (beat.state if beat else None) == state

        await eventually(is_so, f"worker {name} is {state}")

    def requests(self, count: int, prefix: str = "r") -> list[RequestLine]:
        """Small requests with the custom_ids ``r0``, ``r1``, …"""
        body = orjson.dumps({"model": self.model, "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 3})
        return [RequestLine(f"{prefix}{i}", CHAT, self.model, body, 3, i + 1) for i in range(count)]

    async def submit(
        self, count: int, *, prefix: str = "r", batch: str = "", priority: Priority = Priority.NORMAL
    ) -> str:
        """Submit a sealed batch of small requests; returns its id. The pool must have been joined once."""
        batch = batch or new_batch_id()
        report = await self.client.submit(self.requests(count, prefix), batch, priority=priority)
        assert not report.refused
        await self.client.seal(batch)
        return batch

    async def register_model(self) -> None:
        """Make the pool known, as its first worker does."""
        await self.client.registry.add_pool(self.settings.pool, [self.model])

    async def write(self, key: str, **fields: str | int) -> None:
        """Write fields of a hash, as anybody may by hand."""
        await self.redis.execute_command("HSET", key, *(part for pair in fields.items() for part in pair))

    async def collect(self, batch: str, timeout: float = PATIENCE_S) -> list[Result]:
        """All results of a batch, once it is complete."""
        found: list[Result] = []
        async with asyncio.timeout(timeout):
            async for chunk in self.client.results(batch):
                found += chunk
        return found

    async def waiting(self) -> int:
        """Jobs in the request streams."""
        return sum((await self.monitor.waiting()).values())

    async def depth(self, worker: str) -> int:
        """Jobs in a worker's device queue."""
        return (await self.monitor.device_depths([worker]))[worker]

    async def done(self, batch: str, least: int) -> bool:
        """Whether so many jobs of the batch are done."""
        return (await self.client.counts(batch)).done >= least

    async def all_read(self, count: int) -> bool:
        """Whether the scheduler has read so many jobs that it has not dispatched."""
        try:
            pending = [await self.redis.xpending(self.keys.requests(level), "scheduler") for level in LEVELS]
        except rex.ResponseError:  # its first term has just begun: no group yet
            return False
        return sum(p["pending"] for p in pending) == count

    async def finish(self, batch: str, *engines: ManualEngine) -> None:
        """End requests as they come until the batch is complete."""

        async def complete() -> bool:
            for engine in engines:
                engine.finish()
            return (await self.client.counts(batch)).complete

        await eventually(complete, f"batch {batch} is complete")

    async def puppet(self, name: str = "w", **fields: str) -> WorkerStore:
        """A ready worker that beats when the test says, and takes nothing."""
        await self.register_model()
        pool = self.settings.pool
        worker = WorkerStore(self.redis, pool, name, result_ttl_s=60, dead_after_s=60, max_attempts=3)
        await worker.register("i", READY | fields, takeover=True)
        return worker

    def _connect(self) -> CuttableRedis:
        connection = cuttable(self.url)
        self._connections.append(connection)
        return connection

    def _run(self, main: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(main)
        self._tasks.append(task)
        return task


@asynccontextmanager
async def cluster_of(url: str, pool: str, **settings: Any) -> AsyncGenerator[Cluster]:
    """A cluster for the length of the block; ``settings`` replace the defaults."""
    cluster = Cluster(url, pool, **settings)
    try:
        yield cluster
    finally:
        await cluster.close()


def exactly_once(results: Sequence[Result], count: int, prefix: str = "r") -> None:
    """Every custom_id of ``submit`` has one result, and that one is good."""
    assert sorted(r.custom_id for r in results) == sorted(f"{prefix}{i}" for i in range(count))
    assert [r for r in results if not r.ok] == []

"""The planner as an arq worker: a cron job that re-plans, and what can be asked of it. The only module that knows arq.

Jobs and answers are JSON. A process that writes rubbish into arq's queue costs that job, not the planner: what arq
cannot go on with is removed, and it is started again. So it is when Redis was away, which arq's own worker does not
survive.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC
from typing import Any
from uuid import uuid4

import orjson
from arq.connections import ArqRedis
from arq.constants import abort_jobs_ss
from arq.cron import cron
from arq.jobs import Job, ResultNotFound, SerializationError
from arq.worker import Worker, func

from broker.connection import Pipeline, RedisClient, connect, connections_at, keep_trying, passes
from broker.errors import TokenyardError
from broker.keys import PoolKeys
from planner.replanning import Replanner

log = logging.getLogger(__name__)

#: A look, or a measurement, takes no longer (seconds).
_LOOK_S = 300
_MEASURE_S = 1800
#: Answers are kept for so long, and what nobody takes is dropped after so long (seconds).
_ANSWER_S = 600
_EXPIRES_MS = 3_600_000
_POLL_S = 0.5
#: After an error of arq's own: wait this long at first and at most (seconds).
_FIRST_S, _LONGEST_S = 0.5, 30.0

#: Measures an engine with these options of ``tokenyard profile``, on this host (empty: the planner's); says in one
#: line what it found.
Measure = Callable[[Sequence[str], str], Awaitable[str]]


def to_json(value: Any) -> bytes:
    """What arq keeps, as JSON; what has no JSON (an error) as its text."""
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)


def cron_times(every_s: float) -> dict[str, set[int]]:
    """When a cron job runs that shall run about every so many seconds, as arguments of arq's ``cron``.

    Below a minute it runs at these seconds; else at these minutes, at most once an hour.
    """
    if every_s < 60:
        return {"second": set(range(0, 60, max(round(every_s), 1)))}
    return {"minute": set(range(0, 60, min(round(every_s / 60), 60))), "second": {0}}


class PlannerTasks:
    """What the planner of one pool does, as arq calls it."""

    def __init__(self, replanner: Replanner, measure: Measure) -> None:
        self._replanner = replanner
        self._measure = measure
        self._one_at_a_time = asyncio.Lock()

    async def look(self, ctx: dict[Any, Any]) -> str:
        """The cron job."""
        del ctx
        return await self._say(self._look(at_once=False))

    async def replan(self, ctx: dict[Any, Any]) -> str:
        """Asked for: plan now."""
        del ctx
        return await self._say(self._look(at_once=True))

    async def profile_device(self, ctx: dict[Any, Any], options: Sequence[str], host: str = "") -> str:
        """Asked for: measure an engine with these options of ``tokenyard profile``.

        Only the planner's own host can be measured from here; of another the answer says what to run there.
        """
        del ctx
        return await self._say(self._measure(options, host))

    async def _look(self, *, at_once: bool) -> str:
        async with self._one_at_a_time:
            return await self._replanner.look(at_once=at_once)

    async def _say(self, work: Awaitable[str]) -> str:
        """What came of it; an error of ours is an answer, too, and no traceback."""
        pool = self._replanner.pool
        try:
            said = await work
        except TokenyardError as error:
            said = f"error: {error}"
        except Exception as error:
            if not passes(error):
                raise
            said = f"error: lost Redis ({error}); the next look comes by itself"
        log.info("pool %s: %s", pool, said)
        return said


class PlannerProcess:
    """Runs the planner of one pool until cancelled. Two at once do no harm: a cron job runs once, and a plan is written
    only over the one that was read."""

    def __init__(self, redis_url: str, pool: str, tasks: PlannerTasks, every_s: float) -> None:
        self._url = redis_url
        self._keys = PoolKeys(pool)
        self._tasks = tasks
        self._every_s = every_s

    async def run(self) -> None:
        """Serve for ever; Redis may come and go.

        Raises:
            RedisError: one that does not pass by itself, such as a wrong password.
        """
        delay = _FIRST_S
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await keep_trying(self._serve, log.warning)
            except Exception as error:
                if _is_refusal(error):
                    raise
                log.error("the queue %s holds what arq cannot read (%s): emptied", self._keys.arq, error)
                await keep_trying(self._empty, log.warning)
            if asyncio.get_running_loop().time() - began > 2 * _LONGEST_S:
                delay = _FIRST_S
            await asyncio.sleep(random.uniform(0, delay))
            delay = min(2 * delay, _LONGEST_S)

    async def _serve(self) -> None:
        redis = connect(self._url)
        try:
            async with arq_client(redis, self._keys.pool) as client:
                worker = self._worker(client)
                try:
                    await worker.async_run()
                finally:
                    await asyncio.shield(_end(worker))
        finally:
            await redis.aclose()

    async def _empty(self) -> None:
        redis = connect(self._url)
        try:
            await redis.delete(self._keys.arq)
        finally:
            await redis.aclose()

    def _worker(self, client: ArqRedis) -> Worker:
        tasks = self._tasks
        times: Any = cron_times(self._every_s)
        look = cron(tasks.look, name=f"{self._keys.prefix}look", timeout=_LOOK_S, run_at_startup=True, **times)
        functions: Any = [
            func(tasks.replan, name="replan", timeout=_LOOK_S, max_tries=1),
            func(tasks.profile_device, name="profile_device", timeout=_MEASURE_S, max_tries=1),
        ]
        return Worker(
            functions,
            cron_jobs=[look],
            queue_name=self._keys.arq,
            redis_pool=client,
            handle_signals=False,
            max_jobs=2,
            keep_result=_ANSWER_S,
            poll_delay=_POLL_S,
            job_serializer=to_json,
            job_deserializer=orjson.loads,
            expires_extra_ms=_EXPIRES_MS,
            timezone=UTC,
        )


class _Pipeline(Pipeline):
    """Leaves arq's list of jobs to abort alone: none is, and on a Cluster that key is on another server."""

    def zrem(self, name: Any, *values: Any) -> Any:
        return self if name == abort_jobs_ss else super().zrem(name, *values)


class _ArqOfPool(ArqRedis):
    """arq's client, all of whose keys lie where the pool's do: the ids of jobs, which end them, begin with its name."""

    def __init__(self, connections: Any, keys: PoolKeys) -> None:
        super().__init__(
            connections,
            job_serializer=to_json,
            job_deserializer=orjson.loads,
            default_queue_name=keys.arq,
            expires_extra_ms=_EXPIRES_MS,
        )
        self._connections, self._prefix = connections, keys.prefix

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        return _Pipeline(self._connections, self.response_callbacks, transaction, shard_hint)

    async def ask(self, function: str, *arguments: Any) -> Job:
        """Enqueue a job."""
        job = await self.enqueue_job(function, *arguments, _job_id=f"{self._prefix}asked:{uuid4().hex}")
        assert job is not None, "its id is new"
        return job


@asynccontextmanager
async def arq_client(redis: RedisClient, pool: str) -> AsyncGenerator[_ArqOfPool]:
    """arq's client over a connection of ours, for the length of the block."""
    keys = PoolKeys(pool)
    async with connections_at(redis, keys.arq) as connections:
        yield _ArqOfPool(connections, keys)


async def ask(redis: RedisClient, pool: str, function: str, *arguments: Any, timeout_s: float) -> str:
    """Ask the planner of a pool for something, and wait for what it says.

    Raises:
        TokenyardError: it has not answered in time.
    """
    try:
        async with arq_client(redis, pool) as client:
            job = await client.ask(function, *arguments)
            return str(await job.result(timeout=timeout_s, poll_delay=0.2))
    except TimeoutError:
        why = f"the planner of pool {pool} has not answered in {timeout_s:.0f} s: does `tokenyard planner` run?"
        raise TokenyardError(why) from None
    except (ResultNotFound, SerializationError) as error:
        raise TokenyardError(f"the planner of pool {pool} could not do that: {error}; its log says more") from None


async def _end(worker: Worker) -> None:
    """Cancel what it still does, and wait for it."""
    tasks = [task for task in worker.tasks.values() if not task.done()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _is_refusal(error: Exception) -> bool:
    """Whether Redis refuses us: trying again changes nothing."""
    name = type(error).__name__
    return name in ("AuthenticationError", "AuthorizationError", "NoPermissionError")

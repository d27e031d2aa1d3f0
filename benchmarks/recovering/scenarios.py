"""What is done to each queue, and what is seen."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaotic.redis_process import RedisProcess
from benchmarks.cluster import BenchmarkError
from benchmarks.peers.recovery_job import KILLER
from benchmarks.recovering.systems import System
from benchmarks.recovering.worker import SEATS

JOBS = 100
GOOD_JOBS = 20
_JOB_S = 0.5
_LOOK_S = 0.05
#: Before anything is broken all must be at work within so many seconds.
_WARM_UP_S = 60.0
#: How often they may be started together until they are.
_STARTS = 3
#: After the last job has ended, so long what would run again may do so.
_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of the good jobs.

    Attributes:
        done: that ended.
        lost: that have not.
        doubled: ends over one a job.
        seconds: from what was done to the last first end; None where some are lost.
        note: what else.
    """

    done: int
    lost: int
    doubled: int
    seconds: float | None
    note: str = ""


class _NotTogetherError(BenchmarkError):
    """One worker had done all jobs before the other was there."""


async def worker_killed(system: System, redis: RedisProcess, patience_s: float) -> Seen:
    """``kill -9`` one of two workers in the midst of 100 jobs; nobody starts it again."""
    del redis
    names = [f"job{n}" for n in range(JOBS)]
    victim, _ = system.start_worker("first"), system.start_worker("second")
    await system.submit(names, _JOB_S)
    await _at_work(system)
    victim.kill()
    return await _outcome(system, names, patience_s)


async def redis_restarted(system: System, redis: RedisProcess, patience_s: float) -> Seen:
    """``kill -9`` Redis in the midst of 100 jobs, and start it again after a second; nobody starts workers again."""
    names = [f"job{n}" for n in range(JOBS)]
    workers = [system.start_worker("first"), system.start_worker("second")]
    await system.submit(names, _JOB_S)
    await _at_work(system)
    redis.kill()
    await asyncio.sleep(1)
    await redis.restart()
    seen = await _outcome(system, names, patience_s)
    alive = sum(worker.poll() is None for worker in workers)
    return Seen(seen.done, seen.lost, seen.doubled, seen.seconds, f"{alive} of 2 workers live")


async def crash_loop(system: System, redis: RedisProcess, patience_s: float) -> Seen:
    """A job that kills its worker, 20 good ones behind it; the worker is started again each time."""
    del redis
    names = [f"job{n}" for n in range(GOOD_JOBS)]
    await system.submit([KILLER, *names], _JOB_S)
    keeping = asyncio.ensure_future(_keep(system))
    try:
        seen = await _outcome(system, names, patience_s)
    finally:
        keeping.cancel()
    tries = system.counts("began")[KILLER]
    return Seen(seen.done, seen.lost, seen.doubled, seen.seconds, f"the killer was tried {tries} times")


SCENARIOS = {"worker killed": worker_killed, "Redis restarted": redis_restarted, "crash loop": crash_loop}


async def measure(scenario: str, name: str, folder: Path, port: int, patience_s: float) -> Seen:
    """One scenario with one queue, on a server of its own; again, where its workers did not start together.

    Raises:
        BenchmarkError: they never do.
    """
    for number in range(_STARTS):
        place = folder / str(number)
        place.mkdir()
        with suppress(_NotTogetherError):
            return await _measure(scenario, name, place, port, patience_s)
    raise BenchmarkError(f"{name}: its two workers were never both at work")


async def _measure(scenario: str, name: str, folder: Path, port: int, patience_s: float) -> Seen:
    redis = RedisProcess(folder, port, "everysec", embedded=True)
    system = System(name, redis.url, folder)
    try:
        await redis.start()
        system.begin()
        return await SCENARIOS[scenario](system, redis, patience_s)
    finally:
        system.end()
        await redis.end()


async def _at_work(system: System) -> None:
    """Wait until a fifth has ended, and both workers are in the midst of all the jobs that they run at once."""

    def busy() -> bool:
        began, ended = system.counts("began").total(), system.counts("ended").total()
        return ended >= JOBS // 5 and began - ended >= 2 * SEATS

    def over() -> bool:
        return system.counts("ended").total() >= JOBS

    if not await _until(lambda: busy() or over(), _WARM_UP_S) or over():
        raise _NotTogetherError(f"{system.name}: its two workers were never both at work")
    await asyncio.sleep(_JOB_S / 4)


async def _keep(system: System) -> None:
    """Start the worker again whenever it ended, under the same name."""
    worker: subprocess.Popen[bytes] | None = None
    while True:
        if worker is None or worker.poll() is not None:
            worker = system.start_worker("only")
        await asyncio.sleep(_LOOK_S)


async def _outcome(system: System, names: Sequence[str], patience_s: float) -> Seen:
    began = time.monotonic()
    complete = await _until(lambda: set(names) <= system.counts("ended").keys(), patience_s)
    seconds = time.monotonic() - began if complete else None
    await asyncio.sleep(_AFTER_S)
    ended = system.counts("ended")
    done = sum(name in ended for name in names)
    return Seen(done, len(names) - done, ended.total() - len(ended), seconds)


async def _until(look: Callable[[], bool], patience_s: float) -> bool:
    """Whether it came true in time."""
    end = time.monotonic() + patience_s
    while not look():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(_LOOK_S)
    return True

"""Carries faults out, and times how long it takes until what they struck is served again."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import redis.exceptions as rex

from benchmarks.chaotic.clients import BatchClient
from benchmarks.chaotic.faults import Fault, between, choose
from benchmarks.chaotic.flaky_server import FlakyServer, Mood
from benchmarks.chaotic.redis_process import RedisProcess
from benchmarks.chaotic.service import Service
from benchmarks.chaotic.site import Kept, Site

_WAIT_S = 15.0
_LOOK_S = 0.1
#: A process that is started again is at work after so long (seconds).
_START_S = 4.0


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault that came.

    Attributes:
        fault: which.
        target: what it struck.
        recovery_s: seconds from it until all was served again; None where there was nothing to see, or never.
        recovered: false where it never was.
        recovered_at: when that was seen (seconds, monotonic).
        lasts_s: seconds after that in which what was struck is still away or stopped.
    """

    fault: Fault
    target: str
    recovery_s: float | None
    recovered: bool = True
    recovered_at: float = field(default_factory=time.monotonic)
    lasts_s: float = 0.0

    @property
    def struck(self) -> float:
        """When it came (seconds, monotonic)."""
        return self.recovered_at - (self.recovery_s or 0.0)

    @property
    def over(self) -> float:
        """When all that it struck was back (seconds, monotonic)."""
        return self.recovered_at + self.lasts_s


class Injector:
    """Breaks a site."""

    def __init__(
        self,
        site: Site,
        redis: RedisProcess,
        service: Service,
        clients: Sequence[BatchClient],
        servers: Sequence[FlakyServer] = (),
    ) -> None:
        self._site = site
        self._servers = servers
        self._redis = redis
        self._service = service
        self._clients = clients
        self._ways: dict[str, Callable[[Fault], Awaitable[Injected | None]]] = {
            "worker killed": self._kill_worker,
            "worker stopped, shorter than it may be silent": self._stop_worker_shortly,
            "worker stopped, declared dead, resumed": self._stop_worker,
            "leading scheduler killed": self._kill_leader,
            "leading scheduler stopped and resumed": self._stop_leader,
            "standby scheduler killed": self._kill_standby,
            "client killed": self._kill_client,
            "Redis killed, restarted on its file": self._kill_redis,
            "Redis replaced by its replica": self._replace_redis,
            "Redis stopped and resumed": self._stop_redis,
            "Redis stutters": self._stutter,
            "Redis out of memory": self._fill_memory,
            "Redis' disk full": self._fill_disk,
            "Redis' clock forward": self._clock_forward,
            "Redis' clock back": self._clock_back,
            "engine answers 500": self._spoil(Mood.ERROR),
            "engine overloaded (503)": self._spoil(Mood.OVERLOADED),
            "engine limits the rate (429)": self._spoil(Mood.RATE_LIMITED),
            "engine breaks connections off": self._spoil(Mood.RESET),
            "engine sends half an answer": self._spoil(Mood.TRUNCATE),
            "engine killed, restarted": self._spoil(Mood.GONE),
        }
        self._clock_s = 0.0

    async def inject(self, fault: Fault) -> Injected | None:
        """Carry a fault out and wait until it is overcome; None where there was nobody to strike."""
        injected = await self._ways[fault.kind](fault)
        if injected is None:
            return None
        return replace(injected, lasts_s=max(injected.lasts_s, time.monotonic() - injected.recovered_at))

    # Workers

    async def _kill_worker(self, fault: Fault) -> Injected | None:
        worker = await self._somebody(fault, self._site.workers)
        if worker is None:
            return None
        bound = await self._service.bound(worker.name)
        worker.kill(between(fault, 0.0, 10.0))
        return await self._until_left(fault, worker, bound)

    async def _stop_worker_shortly(self, fault: Fault) -> Injected | None:
        return await self._stop_worker_for(fault, between(fault, 0.5, 4.0))

    async def _stop_worker(self, fault: Fault) -> Injected | None:
        return await self._stop_worker_for(fault, between(fault, 7.0, 15.0))

    async def _stop_worker_for(self, fault: Fault, seconds: float) -> Injected | None:
        worker = await self._somebody(fault, self._site.workers)
        if worker is None:
            return None
        bound = await self._service.bound(worker.name)
        worker.stop()
        resume = asyncio.ensure_future(self._resume_later(worker, seconds))
        injected = await self._until_left(fault, worker, bound)
        await resume
        return injected

    async def _resume_later(self, process: Kept, seconds: float) -> None:
        await asyncio.sleep(seconds)
        process.resume()

    async def _until_left(self, fault: Fault, worker: Kept, bound: dict[str, str]) -> Injected:
        """Until the jobs that it had ended, or wait or run elsewhere."""
        began = time.monotonic()
        if not bound:
            return Injected(fault, worker.name, None)

        async def left() -> bool:
            return not await self._service.still_bound(worker.name, bound)

        return self._overcome(fault, worker.name, await self._service.seconds_until(left, began))

    # Servers that workers are attached to

    def _spoil(self, mood: Mood) -> Callable[[Fault], Awaitable[Injected | None]]:
        async def spoil(fault: Fault) -> Injected | None:
            number = self._servers.index(choose(fault, self._servers))
            worker = self._site.workers[number - len(self._servers)]  # the last workers are attached
            bound = await self._service.bound(worker.name)

            async def fail() -> None:
                async with self._servers[number].in_mood(mood):
                    await asyncio.sleep(between(fault, 0.5, 4.0))

            failing = asyncio.ensure_future(fail())
            injected = await self._until_left(fault, worker, bound)
            await failing
            return injected

        return spoil

    # Schedulers

    async def _kill_leader(self, fault: Fault) -> Injected | None:
        leader = await self._scheduler(fault, leading=True)
        if leader is None:
            return None
        leader.kill(away := between(fault, 0.0, 6.0))
        return await self._until_back(away, self._until_flows(fault, leader.name, time.monotonic()))

    async def _stop_leader(self, fault: Fault) -> Injected | None:
        leader = await self._scheduler(fault, leading=True)
        if leader is None:
            return None
        leader.stop()
        resume = asyncio.ensure_future(self._resume_later(leader, between(fault, 1.0, 10.0)))
        injected = await self._until_flows(fault, leader.name, time.monotonic())
        await resume
        return injected

    async def _kill_standby(self, fault: Fault) -> Injected | None:
        standby = await self._scheduler(fault, leading=False)
        if standby is None:
            return None
        standby.kill()
        return await self._until_back(standby.away_s, self._until_flows(fault, standby.name, time.monotonic()))

    async def _until_back(self, away_s: float, overcoming: Awaitable[Injected]) -> Injected:
        """The same, with the time until there are two schedulers again."""
        began = time.monotonic()
        injected = await overcoming
        return replace(injected, lasts_s=max(began + away_s + _START_S - injected.recovered_at, 0.0))

    async def _scheduler(self, fault: Fault, *, leading: bool) -> Kept | None:
        """The scheduler that leads, or one that does not; the owner of the lease is named by its process id."""
        for _ in range(int(_WAIT_S / _LOOK_S)):
            with suppress(rex.RedisError, OSError):
                owner = await self._service.monitor.lease_owner() or ""
                found = [s for s in self._site.schedulers if s.alive and (_leads(s, owner) == leading)]
                if owner and found:
                    return choose(fault, found)
            await asyncio.sleep(_LOOK_S)
        return None

    # Clients

    async def _kill_client(self, fault: Fault) -> Injected | None:
        alive = [client for client in self._clients if client.alive]
        if not alive:
            return None
        client = choose(fault, alive)
        runs = client.runs
        client.kill()
        ended = await self._service.ended(client.batch.name)

        async def goes_on() -> bool:
            return client.done or (client.runs > runs and client.lines() >= ended)

        seconds = await self._service.seconds_until(goes_on, time.monotonic())
        return self._overcome(fault, client.batch.name, seconds)

    # Redis

    async def _kill_redis(self, fault: Fault) -> Injected | None:
        async with self._redis.faulty:
            began = time.monotonic()
            self._redis.kill()
            await asyncio.sleep(between(fault, 0.0, 3.0))
            await self._redis.restart()
            return await self._until_flows(fault, "redis", began)

    async def _replace_redis(self, fault: Fault) -> Injected | None:
        async with self._redis.faulty:
            began = time.monotonic()
            await self._redis.replace()
            return await self._until_flows(fault, "redis", began)

    async def _stop_redis(self, fault: Fault) -> Injected | None:
        async with self._redis.faulty:
            began = time.monotonic()
            self._redis.send(signal.SIGSTOP)
            await asyncio.sleep(between(fault, 0.5, 6.0))
            self._redis.send(signal.SIGCONT)
            return await self._until_flows(fault, "redis", began)

    async def _stutter(self, fault: Fault) -> Injected | None:
        """As over a slow disk: it stands still again and again."""
        async with self._redis.faulty:
            began = time.monotonic()
            for _ in range(10):
                self._redis.send(signal.SIGSTOP)
                await asyncio.sleep(between(fault, 0.05, 0.4))
                self._redis.send(signal.SIGCONT)
                await asyncio.sleep(0.1)
            return await self._until_flows(fault, "redis", began)

    async def _fill_memory(self, fault: Fault) -> Injected | None:
        async with self._redis.faulty:
            began = time.monotonic()
            await self._redis.limit_memory(0.5)
            await asyncio.sleep(between(fault, 0.5, 3.0))
            await self._redis.limit_memory(0.0)
            return await self._until_flows(fault, "redis", began)

    async def _fill_disk(self, fault: Fault) -> Injected | None:
        async with self._redis.faulty:
            began = time.monotonic()
            self._redis.limit_files(full=True)
            await asyncio.sleep(between(fault, 1.0, 4.0))
            if self._redis.alive:
                self._redis.limit_files(full=False)
            else:  # with appendfsync always it ends rather than not keep its word
                await self._redis.restart()
            return await self._until_flows(fault, "redis", began)

    async def _clock_forward(self, fault: Fault) -> Injected | None:
        return await self._jump(fault, between(fault, 10.0, 120.0))

    async def _clock_back(self, fault: Fault) -> Injected | None:
        return await self._jump(fault, -between(fault, 10.0, 120.0))

    async def _jump(self, fault: Fault, seconds: float) -> Injected | None:
        async with self._redis.faulty:
            began = time.monotonic()
            self._clock_s += seconds
            self._redis.move_clock(self._clock_s)
            return await self._until_flows(fault, f"redis {seconds:+.0f} s", began)

    # All

    async def _until_flows(self, fault: Fault, target: str, began: float) -> Injected:
        """Until a job was dispatched and one completed after the fault."""
        before = None

        def over() -> bool:
            return all(client.done for client in self._clients)

        async def flows() -> bool:
            nonlocal before
            flow = await self._service.flow()
            before = before or flow
            return over() or flow.goes_on_since(before)

        seconds = await self._service.seconds_until(flows, began)
        return Injected(fault, target, None) if over() else self._overcome(fault, target, seconds)

    async def _somebody(self, fault: Fault, among: Sequence[Kept]) -> Kept | None:
        """One that is alive; waits a while where none is."""
        for _ in range(int(_WAIT_S / _LOOK_S)):
            if alive := [one for one in among if one.alive]:
                return choose(fault, alive)
            await asyncio.sleep(_LOOK_S)
        return None

    def _overcome(self, fault: Fault, target: str, seconds: float | None) -> Injected:
        return Injected(fault, target, seconds, recovered=seconds is not None)


def _leads(scheduler: Kept, owner: str) -> bool:
    assert scheduler.process is not None, "it is alive"
    return f"-{scheduler.process.pid}-" in owner

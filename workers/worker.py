"""A worker process: one engine, one device queue, from joining the pool to leaving it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from broker.concurrency import Pacer, cancel_all, run_together
from broker.connection import PASSING
from workers.engines.base import Engine, EngineStartError, EngineUnavailableError
from workers.executor import Executor
from workers.membership import Membership

log = logging.getLogger(__name__)

#: Most new jobs taken in one call, and most of those that were given before: there must be none left out.
_TAKE = 250
_TAKE_AGAIN = 100_000
#: What was generated is told at most this often (seconds).
_TELL_S = 0.005
#: A failed engine is started again after this long, doubled each time up to the longest (seconds).
_RESTART_FIRST_S = 1.0
_RESTART_LONGEST_S = 60.0


class Worker:
    """Runs what comes into its device queue; drains when told to."""

    def __init__(self, engine: Engine, membership: Membership) -> None:
        self._engine = engine
        self._member = membership
        self._store = membership.store
        self._executor = Executor(engine, retry_first_s=membership.retry_first_s)
        self._stopping = asyncio.Event()
        self._give_up = asyncio.Event()
        self._sending = asyncio.Lock()
        self._resting = False  # paused by ourselves
        membership.on_gone(self._drop_all)

    def stop(self, reason: str) -> None:
        """Drain: take no more, finish what runs, hand back the rest. A second call hands back what runs, too."""
        if self._stopping.is_set():
            log.warning("%s again: handing back %d running jobs", reason, self._executor.running)
            self._give_up.set()
        else:
            log.info("%s: draining, %d jobs are running", reason, self._executor.running)
            self._stopping.set()
            self._member.set_state("draining")

    async def run(self) -> None:
        """Work until ``stop``.

        Raises:
            EngineStartError: the engine cannot start the first time.
            UsageError: the name or the model belongs to another worker or pool.
        """
        await run_together(self._member.join(), self._stopping.wait())
        if not self._store.incarnation:
            return  # told to stop while Redis was away
        tasks = [
            asyncio.ensure_future(self._member.keep(self._beat)),
            asyncio.ensure_future(self._serve()),
            asyncio.ensure_future(self._stopping.wait()),
        ]
        try:
            await _first_of(tasks)
            tasks.append(asyncio.ensure_future(run_together(self._drain(), self._give_up.wait())))
            await _first_of([*tasks[:2], tasks[-1]])
        finally:
            await cancel_all(tasks)
            with suppress(*PASSING, TimeoutError):
                async with asyncio.timeout(5):
                    await self._store.leave()
            await self._drop_all()
            await self._engine.stop()
            log.info("worker %s left after %d jobs", self._store.worker, self._executor.jobs_total)

    async def _beat(self) -> None:
        await self._member.beat(lambda: (self._executor.load(), self._executor.jobs_total))

    # Serving

    async def _serve(self) -> None:
        """Start the engine and run jobs; an engine that dies is started again, its jobs go back."""
        delay = _RESTART_FIRST_S
        started = False
        while True:
            try:
                await self._start_engine()
                started, delay = True, _RESTART_FIRST_S
                await self._run_jobs()
            except (EngineStartError, EngineUnavailableError) as e:
                if not started:
                    raise
                log.error("the engine of worker %s failed: %s; starting it again", self._store.worker, e)
                await self._recover()
                await asyncio.sleep(delay)
                delay = min(2 * delay, _RESTART_LONGEST_S)

    async def _start_engine(self) -> None:
        capacity = await self._engine.start()
        log.info(
            "worker %s is ready: %s on %s, %d seats, %d KV tokens",
            self._store.worker,
            capacity.version,
            capacity.device,
            capacity.seats,
            capacity.kv_tokens,
        )
        await self._member.learn_profile(capacity)
        self._member.started(capacity, draining=self._stopping.is_set())

    async def _recover(self) -> None:
        self._member.set_state("starting")
        await self._drop_all()
        await self._engine.stop()

        async def give_back() -> None:
            await self._store.hand_back(also_running=True)

        await self._member.keep(give_back)
        self._executor.renew()

    async def _run_jobs(self) -> None:
        keep = self._member.keep
        await run_together(
            keep(self._take),
            keep(self._send),
            keep(self._tell_tokens),
            keep(self._follow_orders),
            keep(self._rest),
            self._executor.until_engine_fails(),
        )

    async def _take(self) -> None:
        """Take what can run now, again and again. First what was given before, in case an answer got lost."""
        position = "0-0"
        async with self._sending:  # what is being sent just now would look as if it had been lost
            for delivery in await self._store.take(_TAKE_AGAIN, again=True):
                position = delivery.entry_id
                if not self._executor.holds(delivery):
                    self._executor.start(delivery)
        pacer = Pacer()
        while True:
            await self._executor.until(lambda: self._room() > 0)
            await pacer.pause()
            if (room := self._room()) <= 0:  # told meanwhile to take no more
                continue
            taken = await self._store.take(min(room, _TAKE))
            for delivery in taken:
                position = delivery.entry_id
                self._executor.start(delivery)
            if not taken:
                position = await self._store.wait_for_job(position)

    def _room(self) -> int:
        """Jobs that can start now: free seats, and a few more that the engine starts in the very step one ends."""
        if self._stopping.is_set() or self._member.paused:
            return 0
        if self._executor.breaker.trying:
            return 1 - self._executor.running
        seats = self._member.capacity.seats
        return seats + max(1, seats // 16) - self._executor.running

    async def _send(self) -> None:
        pacer = Pacer()
        while True:
            await self._executor.done.wait()
            await pacer.pause()
            async with self._sending:
                await self._executor.tokens.flush(self._store.tell_tokens)  # a result is the last that one hears
                await self._executor.flush(self._store.complete)

    async def _tell_tokens(self) -> None:
        """What jobs that are followed generate, while they run."""
        pacer = Pacer(_TELL_S)
        while True:
            await self._executor.tokens.some.wait()
            await pacer.pause()
            await self._executor.tokens.flush(self._store.tell_tokens)

    async def _follow_orders(self) -> None:
        position = "0"
        while True:
            position, orders = await self._store.orders(position)
            for order in orders:
                match order:
                    case {"order": "pause"}:
                        await self._pause()
                    case {"order": "resume"}:
                        self._resume()
                    case {"order": "drain"}:
                        self.stop("an operator's order")
                    case {"order": "cancel", "batch": batch}:
                        self._executor.cancel_batch(batch)
                    case {"order": "expire", "batch": batch}:
                        self._executor.cancel_batch(batch, expired=True)
                    case {"order": "cancel_job", "job": job, "entry": entry}:
                        self._executor.cancel_job(job, entry)
                    case _:
                        log.warning("worker %s: order %.200r is none that it knows, skipped", self._store.worker, order)

    async def _rest(self) -> None:
        """While the engine fails whatever it is asked, take no more for a while: others may do better."""
        while True:
            await self._executor.until(lambda: self._executor.breaker.tripped)
            seconds = self._executor.breaker.rest()
            if self._stopping.is_set() or self._member.paused:
                continue
            log.error("the engine of worker %s fails whatever it is asked; resting", self._store.worker)
            self._resting = True
            self._member.pause(True)
            try:
                await self._store.hand_back(also_running=False, paused=True)
                await asyncio.sleep(seconds)
            finally:
                if self._resting:  # no operator has paused it meanwhile
                    self._resting = False
                    self._resume()

    async def _pause(self) -> None:
        """Finish what runs, hand back the rest, take no more until told to."""
        if self._stopping.is_set():
            return
        log.info("paused by an operator's order, %d jobs are running", self._executor.running)
        self._resting = False
        self._member.pause(True)
        await self._store.hand_back(also_running=False, paused=True)

    def _resume(self) -> None:
        log.info("taking jobs again")
        self._member.pause(False)
        self._executor.look_again()

    # Leaving

    async def _drain(self) -> None:
        async def give_back() -> None:
            returned = await self._store.hand_back(also_running=False)
            log.info("handed back %d jobs that had not started", returned)

        await self._member.keep(give_back)
        await self._executor.until(lambda: self._executor.idle)

    async def _drop_all(self) -> None:
        await self._executor.drop_all()


async def _first_of(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Wait for the first to end and raise what it raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()

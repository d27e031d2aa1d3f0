"""Being part of a pool: join, say how one is, and join anew after having been declared dead."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence

from broker.concurrency import wait_at_most
from broker.connection import RedisClient, keep_trying
from broker.errors import UsageError, WorkerGoneError
from broker.heartbeat import WorkerState
from broker.profiles import profile_text
from broker.settings import Settings
from broker.store.client import Registry
from broker.store.worker import WorkerStore
from broker.throughput import Profile
from workers.engines.base import NO_LOAD, Capacity, Load
from workers.heartbeat import Identity, heartbeat_fields
from workers.rates import RateWindow

log = logging.getLogger(__name__)

#: Another worker of our name is alive when it was heard this often; by hand one writes a heartbeat once.
_BEATS_OF_THE_LIVING = 2

#: Where the profile of an engine that has just started is found; None where there is none.
ProfileSource = Callable[[Capacity], Awaitable[Profile | None]]


async def known_to_engine(capacity: Capacity) -> Profile | None:
    """The profile that the engine itself knows of."""
    return capacity.profile


class Membership:
    """One worker's place in its pool."""

    def __init__(
        self,
        redis: RedisClient,
        settings: Settings,
        *,
        name: str,
        engine_kind: str,
        models: Sequence[str],
        find_profile: ProfileSource = known_to_engine,
    ) -> None:
        self.store = WorkerStore(
            redis,
            settings.pool,
            name,
            result_ttl_s=settings.result_ttl_s,
            dead_after_s=settings.dead_after_s,
            max_attempts=settings.max_attempts,
        )
        self.capacity = Capacity(device="", model=models[0], kv_tokens=0, seats=0, context_tokens=0, version="")
        self._registry = Registry(redis)
        self._settings = settings
        self._models = tuple(models)
        self._identity = Identity(engine_kind, models[0], socket.gethostname(), os.getpid())
        self._state: WorkerState = "starting"
        self._paused = False
        self._rates = RateWindow()
        self._find_profile = find_profile
        self._profile = ""
        self._beat_now = asyncio.Event()
        self._joining = asyncio.Lock()
        self._gone: Callable[[], Awaitable[None]] | None = None

    @property
    def retry_first_s(self) -> float:
        """Seconds after which a job whose first attempt failed is tried again."""
        return self._settings.retry_first_s

    def on_gone(self, drop: Callable[[], Awaitable[None]]) -> None:
        """What to do when the pool has given this worker up: abort what it runs, it is others' now."""
        self._gone = drop

    async def join(self) -> None:
        """Join the pool, as a worker that starts. Redis may come and go.

        Raises:
            UsageError: another pool serves one of the models.
        """

        async def attempt() -> None:
            await self._registry.add_pool(self._settings.pool, self._models)
            await self._register(takeover=True)

        await keep_trying(attempt, log.warning)

    def set_state(self, state: WorkerState) -> None:
        """Tell the pool at once."""
        self._state = state
        self._beat_now.set()

    @property
    def paused(self) -> bool:
        """Whether an operator wants no more jobs to go here."""
        return self._paused

    def pause(self, paused: bool) -> None:
        """Take no more jobs, or take them again. It outlives the engine and the connection, not the process."""
        self._paused = paused
        self._beat_now.set()

    async def learn_profile(self, capacity: Capacity) -> None:
        """Find the profile of an engine that has just started: every heartbeat carries it from now on."""

        async def look() -> None:
            profile = await self._find_profile(capacity)
            self._profile = profile_text(profile) if profile else ""

        await keep_trying(look, log.warning)

    def started(self, capacity: Capacity, *, draining: bool) -> None:
        """The engine is ready."""
        self.capacity = capacity
        self.set_state("draining" if draining else "ready")

    async def beat(self, account: Callable[[], tuple[Load, int]]) -> None:
        """Say how this worker is, at every interval and at every change of its state, for ever.

        Args:
            account: the engine's load and the number of jobs ended.

        Raises:
            WorkerGoneError: declared dead.
        """
        while True:
            load, jobs_total = account() if self._state != "starting" else (NO_LOAD, 0)
            await self.store.heartbeat(self._fields(load, jobs_total))
            await wait_at_most(self._beat_now, self._settings.heartbeat_interval_s)
            self._beat_now.clear()

    async def keep(self, step: Callable[[], Awaitable[None]]) -> None:
        """Run ``step`` to its end while Redis comes and goes and the pool gives this worker up and takes it back.

        Raises:
            UsageError: another worker has this one's name now.
        """

        async def attempt() -> None:
            while True:
                incarnation = self.store.incarnation
                try:
                    return await step()
                except WorkerGoneError as e:
                    await self._rejoin(incarnation, str(e))

        await keep_trying(attempt, log.warning)

    async def _rejoin(self, incarnation: str, why: str) -> None:
        """Once for each time the pool gave this worker up, however many of its loops noticed."""
        async with self._joining:
            if self.store.incarnation != incarnation:
                return
            log.warning("%s; joining anew", why)
            if self._gone is not None:
                await self._gone()
            await self._registry.add_pool(self._settings.pool, self._models)  # the server may have lost its data
            await self._reclaim()

    async def _reclaim(self) -> None:
        """Take our name back. Whoever has it meanwhile beats, if it lives; one who does not was written by hand.

        Raises:
            UsageError: another living worker has it.
        """
        now = asyncio.get_running_loop().time
        beats, seen, since = 0, await self.store.seen(), now()
        while True:
            try:
                return await self._register(takeover=now() - since > self._settings.dead_after_s)
            except UsageError:
                if beats >= _BEATS_OF_THE_LIVING:
                    raise
            await asyncio.sleep(self._settings.heartbeat_interval_s / 2)
            if (latest := await self.store.seen()) != seen:
                beats, seen, since = beats + 1, latest, now()

    async def _register(self, *, takeover: bool) -> None:
        await self.store.register(secrets.token_hex(4), self._fields(NO_LOAD, 0), takeover=takeover)

    def _fields(self, load: Load, jobs_total: int) -> dict[str, str]:
        now = asyncio.get_running_loop().time()
        rates = self._rates.add(now - load.age_s, load.prompt_tokens_total, load.output_tokens_total)
        state = "paused" if self._paused and self._state == "ready" else self._state
        return heartbeat_fields(self._identity, state, self.capacity, load, rates, jobs_total, self._profile)

"""What a worker does: join, beat, take, complete, hand back, leave."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from broker import keys, scripts
from broker.connection import BLOCK_S, RedisClient
from broker.errors import UsageError, WorkerGoneError
from broker.jobs import Delivery, Outcome
from broker.token_news import MOST_ENTRIES, TTL_S, TokenNews, news_text

log = logging.getLogger(__name__)

#: A heartbeat outlives a silent worker by this many times the time after which it is declared dead.
_HEARTBEAT_TTL_FACTOR = 3
#: A job may not be given more seconds than that; more means any time.
_MOST_SECONDS = 10**7
#: Of a number of tokens.
_MOST_DIGITS = 10


class WorkerStore:
    """One worker's view of its pool. ``incarnation`` is new for every registration: it fences off earlier ones."""

    def __init__(
        self, redis: RedisClient, pool: str, worker: str, *, result_ttl_s: int, dead_after_s: float, max_attempts: int
    ) -> None:
        self._redis = redis
        self.keys = keys.PoolKeys(pool)
        self.worker = worker
        self.incarnation = ""
        self._ttl = result_ttl_s
        self._heartbeat_ttl_ms = int(dead_after_s * _HEARTBEAT_TTL_FACTOR * 1000)
        self._max_attempts = max_attempts
        self._scripts = {
            name: scripts.load(redis, name)
            for name in ("register", "heartbeat", "take", "complete", "hand_back", "remove_worker")
        }

    async def register(self, incarnation: str, fields: Mapping[str, str], *, takeover: bool) -> None:
        """Join the pool under this worker's name. Jobs of whoever bore the name before go back.

        Raises:
            UsageError: another living worker has the name and ``takeover`` is false.
        """
        args = [self.keys.prefix, self.worker, incarnation, self._heartbeat_ttl_ms, self._ttl, self._max_attempts]
        joined = await self._scripts["register"](args=[*args, int(takeover), *_flat(fields)])
        if not joined:
            raise UsageError(
                f"another worker of this pool is named {self.worker!r}: start this one with another --name"
            )
        self.incarnation = incarnation

    async def heartbeat(self, fields: Mapping[str, str]) -> None:
        """Say how this worker is.

        Raises:
            WorkerGoneError: it was declared dead; what it held belongs to others.
        """
        args = [self.keys.prefix, self.worker, self.incarnation, self._heartbeat_ttl_ms, *_flat(fields)]
        self._check(await self._scripts["heartbeat"](args=args), gone=0)

    async def seen(self) -> bytes | None:
        """When the pool last heard of a worker of this name, whichever it is; None where it knows none."""
        return await self._redis.hget(self.keys.worker(self.worker), "seen")

    async def wait_for_job(self, after: str) -> str:
        """Wait (at most ``BLOCK_S`` seconds) for an entry after ``after``; returns the newest id seen."""
        stream = self.keys.device(self.worker)
        found = await self._redis.xread({stream: after}, count=1, block=int(BLOCK_S * 1000))
        return found[0][1][0][0].decode() if found else after

    async def take(self, count: int, *, again: bool = False) -> list[Delivery]:
        """Take up to ``count`` jobs: they are running from here on.

        With ``again``, those this incarnation was given before and has not ended: after a lost answer.

        Raises:
            WorkerGoneError: declared dead.
        """
        args = [self.keys.prefix, self.worker, self.incarnation, count, self._ttl, "0" if again else ">"]
        started, taken, bad = self._check(await self._scripts["take"](args=args), gone=-1)
        if bad:
            entries = b" ".join(bad).decode()
            log.warning("%s: removed entries that are no jobs: %s", self.keys.device(self.worker), entries)
        return [_delivery(started, row) for row in taken]

    async def tell_tokens(self, batch_id: str, news: Sequence[TokenNews]) -> None:
        """Tell those who follow jobs of a batch what was generated; the oldest are dropped where nobody reads them."""
        key = self.keys.tokens(batch_id)
        pipe = self._redis.pipeline(transaction=False)
        pipe.xadd(key, {"news": news_text(news)}, maxlen=MOST_ENTRIES, approximate=True)
        pipe.expire(key, TTL_S)
        await pipe.execute()

    async def complete(self, outcomes: Sequence[Outcome]) -> list[bool]:
        """End attempts; False for each that came late and changed nothing.

        A failure with a ``retry_s`` is no end while the job has attempts left: it waits so long and runs again.

        The first result of a job that runs twice wins, but for a failure that the other side may not have (a 5xx
        status). The other's outcome counts as wasted tokens: an estimate (``aborted``) or a result that came second.

        Raises:
            WorkerGoneError: declared dead.
        """
        rows = [
            (
                o.delivery.entry_id,
                o.delivery.job_id,
                o.delivery.batch_id,
                o.delivery.custom_id,
                o.delivery.attempt,
                o.delivery.submitted,
                o.delivery.started,
                o.state.value,
                o.status_code,
                scripts.text(o.body),
                o.prompt_tokens,
                o.output_tokens,
                o.cached_tokens,
                o.error_code,
                o.error_message,
                o.retry_s,
            )
            for o in outcomes
        ]
        args = [self.keys.prefix, self.worker, self.incarnation, self._ttl, self._max_attempts, scripts.pack(rows)]
        return [flag == 1 for flag in self._check(await self._scripts["complete"](args=args), gone=-1)]

    async def hand_back(self, *, also_running: bool, paused: bool = False) -> int:
        """Give back what was not started (it drains, or is ``paused``), or everything (its engine starts again).

        It gets no more until a heartbeat says that it is ready. Returns how many jobs went back.

        Raises:
            WorkerGoneError: declared dead.
        """
        state = "starting" if also_running else "paused" if paused else "draining"
        args = [self.keys.prefix, self.worker, self.incarnation]
        args += [self._ttl, int(also_running), self._max_attempts, state]
        return int(self._check(await self._scripts["hand_back"](args=args), gone=-1))

    async def leave(self) -> None:
        """Leave the pool; whatever is still held goes back. Nothing happens where the pool forgot this worker."""
        args = [self.keys.prefix, self.worker, "incarnation", self.incarnation, self._ttl, self._max_attempts]
        await self._scripts["remove_worker"](args=args)

    async def orders(self, after: str) -> tuple[str, list[dict[str, str]]]:
        """Wait (at most ``BLOCK_S`` seconds) for orders after ``after``; returns the new position and the orders."""
        found = await self._redis.xread({self.keys.control(self.worker): after}, count=100, block=int(BLOCK_S * 1000))
        if not found:
            return after, []
        entries = found[0][1]
        orders = [{scripts.text(k): scripts.text(v) for k, v in fields.items()} for _, fields in entries]
        return entries[-1][0].decode(), orders

    def _check(self, answer: Any, *, gone: int) -> Any:
        if answer == gone:
            raise WorkerGoneError(f"worker {self.worker} was declared dead; its jobs went to others")
        return answer


def _delivery(started: bytes, row: Sequence[bytes]) -> Delivery:
    entry, job, batch, custom_id, attempt, submitted, url, body, prompt_tokens, max_tokens, timeout, follow = row
    return Delivery(
        entry_id=entry.decode(),
        job_id=scripts.text(job),
        batch_id=scripts.text(batch),
        custom_id=scripts.text(custom_id),
        attempt=_tokens(attempt),
        submitted=scripts.text(submitted),
        started=started.decode(),
        url=scripts.text(url),
        body=body,
        prompt_tokens=_tokens(prompt_tokens),
        max_tokens=_tokens(max_tokens),
        timeout_s=_seconds(timeout),
        follow=follow == b"1",
    )


def _tokens(text: bytes) -> int:
    """A number of tokens that helps to estimate; 0 where it is none (anyone can write to Redis)."""
    return int(text) if text.isdigit() and len(text) <= _MOST_DIGITS else 0


def _seconds(text: bytes) -> float:
    """How long a job may run; 0 (any time) where it is no number of seconds."""
    try:
        seconds = float(text or 0)
    except ValueError:
        return 0.0
    return seconds if 0 < seconds <= _MOST_SECONDS else 0.0


def _flat(fields: Mapping[str, str]) -> list[str]:
    return [text for pair in fields.items() for text in pair]

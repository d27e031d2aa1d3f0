"""Runs deliveries on the engine and hands their outcomes back, many at a time."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import orjson

from broker.concurrency import cancel_all
from broker.delivery import may_pass, retry_s
from broker.jobs import ABORTED, BATCH_CANCELLED, BATCH_EXPIRED, REQUEST_TIMEOUT, Delivery, Outcome
from workers.breaker import Breaker
from workers.engines.base import (
    NO_LOAD,
    Engine,
    EngineRequest,
    EngineResponse,
    EngineUnavailableError,
    Load,
    StreamingEngine,
)
from workers.progress import Progress
from workers.token_feed import TokenFeed

log = logging.getLogger(__name__)

#: A call to Redis carries at most this many outcomes and about this many bytes.
_CHUNK = 250
_CHUNK_BYTES = 2 * 2**20

#: Cancelled batches and deliveries remembered, for jobs that were under way from Redis when the order came.
_BATCHES_KEPT = 100
_DELIVERIES_KEPT = 1000


class Executor:
    """The jobs of one worker that run now. An outcome stays here until Redis has it, also while Redis is away.

    All is kept by the device queue's entry: a job may come here again while the engine still aborts its last attempt.
    """

    def __init__(self, engine: Engine, *, retry_first_s: float = 1.0, rng: random.Random | None = None) -> None:
        """Args:
        engine: runs the requests.
        retry_first_s: seconds after which a job whose first attempt failed is to be tried again.
        rng: scatters these times.
        """
        self._engine = engine
        self._retry_first_s = retry_first_s
        self._rng = rng or random.Random()
        self._tasks: dict[str, asyncio.Task[Outcome | None]] = {}
        self._deliveries: dict[str, Delivery] = {}
        self._progress = Progress()
        self._instead: dict[str, Outcome] = {}  # what a task ends as once it is cancelled
        self._cancelled_batches: dict[str, None] = {}  # the latest
        self._expired_batches: dict[str, None] = {}  # those of them that were not cancelled
        self._cancelled_entries: dict[str, None] = {}  # likewise
        self._outcomes: list[Outcome] = []
        self.done = asyncio.Event()  # an outcome is there to be sent
        self.tokens = TokenFeed()
        self.breaker = Breaker(retry_first_s)
        self.jobs_total = 0
        self._load = NO_LOAD
        self._changed = asyncio.Event()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def running(self) -> int:
        """Jobs under way."""
        return len(self._tasks)

    @property
    def idle(self) -> bool:
        """Whether nothing runs and every outcome was sent."""
        return not self._tasks and not self._outcomes

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds; it is looked at whenever a job ended or an outcome was sent."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def look_again(self) -> None:
        """What ``until`` waits for may hold now for another reason."""
        self._changed.set()

    async def until_engine_fails(self) -> None:
        """Wait for ever, or until a job found the engine dead.

        Raises:
            EngineUnavailableError: it is.
        """
        await asyncio.shield(self._failure)

    def renew(self) -> None:
        """The engine is to be started again: its failure is past."""
        self._failure = asyncio.get_running_loop().create_future()

    def holds(self, delivery: Delivery) -> bool:
        """Whether this very attempt runs here, or ended and waits to be sent."""
        entry = delivery.entry_id
        return entry in self._tasks or any(o.delivery.entry_id == entry for o in self._outcomes)

    def load(self) -> Load:
        """The engine's load. Looked at now and then, it tells how fast requests get on; or that the engine died."""
        try:
            self._load = self._engine.load()
            self._progress.look(_now(), self._load.output_tokens_total)
        except EngineUnavailableError as e:
            self._fail(e)
        return self._load

    def start(self, delivery: Delivery) -> None:
        """Run a delivery."""
        entry = delivery.entry_id
        self._deliveries[entry] = delivery
        task = asyncio.ensure_future(self._outcome(delivery))
        self._tasks[entry] = task
        task.add_done_callback(partial(self._ended, delivery))
        if entry in self._cancelled_entries:
            self.cancel_job(delivery.job_id, entry)
        if delivery.batch_id in self._cancelled_batches:
            self.cancel_batch(delivery.batch_id, expired=delivery.batch_id in self._expired_batches)

    def cancel_batch(self, batch_id: str, *, expired: bool = False) -> None:
        """Abort the batch's jobs in the engine; they end as cancelled. So does one that was on its way here.

        With ``expired``, they end as expired: the batch's completion window is over.
        """
        _remember(self._cancelled_batches, batch_id, _BATCHES_KEPT)
        if expired:
            _remember(self._expired_batches, batch_id, _BATCHES_KEPT)
        for delivery in [d for d in self._deliveries.values() if d.batch_id == batch_id]:
            self._stop(delivery, _expired_outcome(delivery) if expired else _cancelled_outcome(delivery))

    def cancel_job(self, job_id: str, entry_id: str) -> None:
        """Abort one delivery in the engine: its job ended elsewhere. What it had computed is reported as wasted."""
        _remember(self._cancelled_entries, entry_id, _DELIVERIES_KEPT)
        delivery = self._deliveries.get(entry_id)
        if delivery is not None and delivery.job_id == job_id:
            self._stop(delivery, self._aborted_outcome(delivery))

    async def drop_all(self) -> None:
        """Abort everything and forget it: these jobs are others' now."""
        self._instead.clear()
        self._cancelled_entries.clear()
        while self._tasks:
            await cancel_all(list(self._tasks.values()))
            await asyncio.sleep(0)  # their callbacks run
        self._outcomes = []  # a flush under way keeps the old list

    async def flush(self, send: Callable[[Sequence[Outcome]], Awaitable[list[bool]]]) -> None:
        """Send the outcomes there are. They leave this list only after Redis took them."""
        outcomes = self._outcomes
        while outcomes:
            chunk = _chunk(outcomes)
            flags = await send(chunk)
            del outcomes[: len(chunk)]
            late = flags.count(False)
            if late:
                log.warning("%d results came late and were dropped: their jobs are others' now", late)
        if not self._outcomes:
            self.done.clear()
        self._changed.set()

    def _ended(self, delivery: Delivery, task: asyncio.Task[Outcome | None]) -> None:
        """A callback, not the task's own end: a task that is cancelled before it began runs none of its code."""
        entry = delivery.entry_id
        instead = self._instead.pop(entry, None)
        outcome = instead if task.cancelled() else task.result()
        if self._tasks.get(entry) is task:
            del self._tasks[entry], self._deliveries[entry]
        if outcome is not None:
            self._outcomes.append(outcome)
            self.jobs_total += outcome.error_code != ABORTED
            self.done.set()
        self._changed.set()

    async def _outcome(self, delivery: Delivery) -> Outcome | None:
        entry = delivery.entry_id
        self._progress.begin(entry, _now())
        request = EngineRequest(f"{delivery.job_id}-{entry}", delivery.url, delivery.body)
        limit = asyncio.timeout(delivery.timeout_s or None)
        try:
            async with limit:
                response = await self._run(request, delivery)
        except EngineUnavailableError as e:
            self._fail(e)
            return None
        except Exception as e:  # one request must never take its worker along
            if limit.expired():
                return self._failed(delivery, 0, b"", REQUEST_TIMEOUT)
            # Its words may hold the prompt, so they stay out of the log.
            log.error("job %s failed in the engine: %s", delivery.job_id, type(e).__name__)
            log.debug("job %s", delivery.job_id, exc_info=True)
            self.breaker.answered(failed=True)
            return self._failed(delivery, 500, _error_body(e))
        finally:
            self._progress.end(entry, _now())
        self.breaker.answered(failed=may_pass(response.status_code))
        return Outcome(
            delivery,
            response.status_code,
            response.body,
            response.prompt_tokens,
            response.output_tokens,
            cached_tokens=response.cached_tokens,
            retry_s=self._retry_s(delivery, response.status_code),
        )

    async def _run(self, request: EngineRequest, delivery: Delivery) -> EngineResponse:
        if delivery.follow and isinstance(self._engine, StreamingEngine):
            return await self._engine.run_telling(request, self.tokens.teller(delivery))
        return await self._engine.run(request)

    def _fail(self, error: EngineUnavailableError) -> None:
        if not self._failure.done():
            self._failure.set_exception(error)

    def _failed(self, delivery: Delivery, status_code: int, body: bytes, error_code: str = "") -> Outcome:
        why = f"The request ran longer than the {delivery.timeout_s:g} s it may." if error_code else ""
        after_s = self._retry_s(delivery, status_code, error_code)
        return Outcome(delivery, status_code, body, error_code=error_code, error_message=why, retry_s=after_s)

    def _retry_s(self, delivery: Delivery, status_code: int, error_code: str = "") -> float:
        """When to try the job again after this attempt; 0: never."""
        return retry_s(status_code, error_code, delivery.attempt, self._rng, self._retry_first_s)

    def _stop(self, delivery: Delivery, outcome: Outcome) -> None:
        """Cancel what runs; it ends as ``outcome``, unless its response was there already."""
        self._instead.setdefault(delivery.entry_id, outcome)
        self._tasks[delivery.entry_id].cancel()

    def _aborted_outcome(self, delivery: Delivery) -> Outcome:
        """What was computed in vain, as an estimate: engines do not tell how far a single request is.

        The prompt counts in full, as long as predicted, once the engine was given the request: it comes first. The
        output is estimated from the engine's total (see ``Progress``), and is never more than the request allows.
        """
        entry = delivery.entry_id
        if not self._progress.has_begun(entry):
            return Outcome(delivery, 0, b"", error_code=ABORTED)
        output = self._progress.output_tokens(entry, _now(), self.load().output_tokens_total)
        output = min(output, delivery.max_tokens) if delivery.max_tokens else output
        return Outcome(delivery, 0, b"", delivery.prompt_tokens, output, ABORTED)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _remember(latest: dict[str, None], name: str, limit: int) -> None:
    """Add to the latest, and forget the oldest."""
    latest[name] = None
    while len(latest) > limit:
        del latest[next(iter(latest))]


def _cancelled_outcome(delivery: Delivery) -> Outcome:
    message = "The batch was cancelled while this request ran."
    return Outcome(delivery, 0, b"", error_code=BATCH_CANCELLED, error_message=message)


def _expired_outcome(delivery: Delivery) -> Outcome:
    message = "The batch's completion window was over while this request ran."
    return Outcome(delivery, 0, b"", error_code=BATCH_EXPIRED, error_message=message)


def _chunk(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The first outcomes that fit into one call; at least one."""
    chunk: list[Outcome] = []
    size = 0
    for outcome in outcomes[:_CHUNK]:
        size += len(outcome.body)
        if chunk and size > _CHUNK_BYTES:
            break
        chunk.append(outcome)
    return chunk


def _error_body(error: Exception) -> bytes:
    detail: dict[str, Any] = {
        "message": f"{type(error).__name__} in the engine",
        "type": "internal_server_error",
        "param": None,
        "code": 500,
    }
    return orjson.dumps({"error": detail})

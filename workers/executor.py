"""Runs deliveries on the engine and hands their outcomes back, many at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson

from broker.concurrency import cancel_all
from broker.jobs import Delivery, Outcome
from workers.engines.base import Engine, EngineRequest, EngineUnavailableError

log = logging.getLogger(__name__)

#: Outcomes sent in one call.
_CHUNK = 250


class Executor:
    """The jobs of one worker that run now. An outcome stays here until Redis has it, also while Redis is away."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._deliveries: dict[str, Delivery] = {}
        self._cancelled: set[str] = set()
        self._outcomes: list[Outcome] = []
        self.done = asyncio.Event()  # an outcome is there to be sent
        self.jobs_total = 0
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
        return delivery.job_id in self._tasks or any(o.entry_id == delivery.entry_id for o in self._outcomes)

    def start(self, delivery: Delivery) -> None:
        """Run a delivery."""
        self._deliveries[delivery.job_id] = delivery
        self._tasks[delivery.job_id] = asyncio.ensure_future(self._run(delivery))

    def cancel_batch(self, batch_id: str) -> None:
        """Abort the batch's jobs in the engine; they end as cancelled."""
        for delivery in [d for d in self._deliveries.values() if d.batch_id == batch_id]:
            self._cancelled.add(delivery.job_id)
            self._tasks[delivery.job_id].cancel()

    async def drop_all(self) -> None:
        """Abort everything and forget it: these jobs are others' now."""
        tasks = list(self._tasks.values())
        await cancel_all(tasks)
        self._tasks.clear()
        self._deliveries.clear()
        self._outcomes.clear()
        self._cancelled.clear()

    async def flush(self, send: Callable[[Sequence[Outcome]], Awaitable[list[bool]]]) -> None:
        """Send the outcomes there are. They leave this list only after Redis took them."""
        while self._outcomes:
            chunk = self._outcomes[:_CHUNK]
            flags = await send(chunk)
            del self._outcomes[: len(chunk)]
            late = flags.count(False)
            if late:
                log.warning("%d results came late and were dropped: their jobs are others' now", late)
        self.done.clear()
        self._changed.set()

    async def _run(self, delivery: Delivery) -> None:
        outcome: Outcome | None = None
        try:
            outcome = await self._outcome(delivery)
        except asyncio.CancelledError:
            if delivery.job_id not in self._cancelled:
                raise
            outcome = _without_response(delivery, "batch_cancelled", "The batch was cancelled while this request ran.")
        finally:
            self._tasks.pop(delivery.job_id, None)
            self._deliveries.pop(delivery.job_id, None)
            self._cancelled.discard(delivery.job_id)
            if outcome is not None:
                self._outcomes.append(outcome)
                self.jobs_total += 1
                self.done.set()
            self._changed.set()

    async def _outcome(self, delivery: Delivery) -> Outcome | None:
        request = EngineRequest(f"{delivery.job_id}-{delivery.attempt}", delivery.url, delivery.body)
        try:
            response = await self._engine.run(request)
        except EngineUnavailableError as e:
            if not self._failure.done():
                self._failure.set_exception(e)
            return None
        except Exception as e:  # one request must never take its worker along
            log.exception("job %s failed in the engine", delivery.job_id)
            return Outcome(delivery.job_id, delivery.entry_id, delivery.attempt, 500, _error_body(e))
        return Outcome(
            delivery.job_id,
            delivery.entry_id,
            delivery.attempt,
            response.status_code,
            response.body,
            response.prompt_tokens,
            response.output_tokens,
        )


def _without_response(delivery: Delivery, code: str, message: str) -> Outcome:
    return Outcome(delivery.job_id, delivery.entry_id, delivery.attempt, 0, b"", error_code=code, error_message=message)


def _error_body(error: Exception) -> bytes:
    detail: dict[str, Any] = {
        "message": f"{type(error).__name__} in the engine",
        "type": "internal_server_error",
        "param": None,
        "code": 500,
    }
    return orjson.dumps({"error": detail})

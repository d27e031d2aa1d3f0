"""The client for asyncio; ``tokenyard.client.sync_client`` is the same without."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager, suppress
from typing import Any, Literal, Self

from broker import client as queue
from broker.concurrency import cancel_all
from broker.connection import RedisError, address, translate
from broker.errors import TokenyardError, UsageError
from broker.jobs import Priority, Result
from broker.settings import load_settings
from broker.submission import SubmitOptions
from tokenyard.client.batch_keys import batch_id_of
from tokenyard.client.batch_result import BatchResult, BatchStatus, SubmitReport, public, status_of
from tokenyard.client.items import Item, RequestMaker, only_model
from tokenyard.client.reading import as_they_end, in_input_order, in_order_of
from tokenyard.client.reading_ahead import ReadingAhead, while_running
from tokenyard.client.submission import BatchSubmission, in_chunks
from tokenyard.cluster_snapshot import batch_state

#: ``completion``: as they end; ``input``: in the order in which the requests were submitted, for requests without
#: custom_ids of their own; or custom_ids in the order wanted.
Order = Literal["completion", "input"] | Iterable[str]
#: A batch that is read while it is submitted is looked for this often (seconds).
_LOOK_S = 0.02


class AsyncClient:
    """Submits batches and reads their results. An async context manager.

    A batch's *key* makes a pipeline's step repeatable: submitted again under the same key, what is there is not run
    again, and what is missing is queued. Cancelled or killed at any time, nothing is lost; the same call goes on.

    Args:
        url: address of Redis; None: TOKENYARD_REDIS_URL.
        model: for requests that name none; None: the only one that is served, whatever its names.
        tenant: whose the batches are; None: TOKENYARD_TENANT.
        durable: ``submit`` returns once the requests are on Redis' disk.
        wait: where the backlog is full, ``submit`` waits until there is room; without, that is an error.
        outage_s: reading results goes on after Redis was away, for at most so many seconds.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        model: str | None = None,
        tenant: str | None = None,
        durable: bool = True,
        wait: bool = True,
        outage_s: float = 60.0,
    ) -> None:
        self._settings = load_settings(redis_url=url, tenant=tenant)
        if not self._settings.redis_url:
            raise UsageError("no Redis: set TOKENYARD_REDIS_URL or give the address")
        self._url = self._settings.redis_url.get_secret_value()
        self._model = model
        self._durable = durable
        self._wait = wait
        self._outage_s = outage_s
        self._stack = AsyncExitStack()
        self._client: queue.Client | None = None

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            RedisUnavailableError: nobody answers at that address.
            RedisRefusedError: it wants a password, or refuses.
        """
        connected = queue.connect_client(self._url, self._settings.result_ttl_s)
        self._client = await self._stack.enter_async_context(connected)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client = None
        await self._stack.aclose()

    async def submit(
        self,
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        batch: str | None = None,
        model: str | None = None,
        system: str = "",
        priority: Priority | str = Priority.NORMAL,
        timeout_s: float = 0.0,
        completion_window_s: float = 0.0,
        seal: bool = True,
        traceparent: str | None = None,
        **parameters: Any,
    ) -> SubmitReport:
        """Queue a batch.

        Args:
            items: prompts, bodies of OpenAI's API or lines of its Batch API, any number: they are taken some hundreds
                at a time. A plain iterable is run in the event loop.
            batch: its key, up to 100 letters, digits, '.', '_' and '-'; None: a new one that nobody can guess.
            model: for requests that name none.
            system: system message before each prompt.
            priority: requests of a higher level go first.
            timeout_s: seconds that an attempt of a request may run; 0: any.
            completion_window_s: seconds after which what has not ended of the batch expires; 0: never.
            seal: the batch is complete with these; without, more may come by another call, and the last must seal it.
            traceparent: the caller's span as a W3C header: the traces of the requests hang under it. What is no such
                header is ignored.
            parameters: for every request that does not have them itself: ``max_tokens``, ``temperature``, …

        Raises:
            RequestError: an item is no request, or nobody serves its model. Those before it may be queued: the batch
                stays open, and the corrected input under the same key goes on with it.
            UsageError: the batch is cancelled, or its completion window is over.
            QueueFullError: the backlog is full, and this client does not wait.
            NotDurableError: the server lost requests meanwhile: submit again, nothing runs twice.
            RedisUnavailableError: Redis went away: likewise.
        """
        submission = await self.begin(
            batch=batch,
            model=model,
            system=system,
            priority=priority,
            timeout_s=timeout_s,
            completion_window_s=completion_window_s,
            traceparent=traceparent,
            **parameters,
        )
        return await self._feed(submission, items, seal=seal)

    async def begin(
        self,
        *,
        batch: str | None = None,
        model: str | None = None,
        system: str = "",
        priority: Priority | str = Priority.NORMAL,
        timeout_s: float = 0.0,
        completion_window_s: float = 0.0,
        remember: bool = False,
        traceparent: str | None = None,
        **parameters: Any,
    ) -> BatchSubmission:
        """A submission that is fed by hand; arguments and errors as in ``submit``.

        ``remember``: it can tell which requests it was given (6 bytes each, 12 to 36 with custom_ids of one's own).
        """
        settings = self._settings
        options = SubmitOptions(
            durable=self._durable,
            durable_replicas=settings.durable_replicas,
            wait=self._wait,
            max_backlog_jobs=settings.max_backlog_jobs,
            max_backlog_bytes=settings.max_backlog_bytes,
            timeout_s=timeout_s,
            completion_window_s=completion_window_s,
            traceparent=traceparent or "",
        )
        with self._translated():
            served = await self._connected.registry.models()
        default = model or self._model or only_model(served)
        maker = RequestMaker(default, system, parameters, settings.max_request_bytes)
        level = _priority(priority)
        return BatchSubmission(self._connected, self.batch_id(batch), maker, level, options, remember=remember)

    async def add_to(self, submission: BatchSubmission, items: Iterable[Item]) -> None:
        """Feed a submission; errors as in ``submit``."""
        with self._translated():
            await submission.add(items)

    async def finish(self, submission: BatchSubmission, *, seal: bool = True) -> SubmitReport:
        """The submission has all its items; arguments and errors as in ``submit``."""
        with self._translated():
            return await submission.finish(seal=seal)

    async def results(self, batch: str, *, order: Order = "completion") -> AsyncGenerator[BatchResult]:
        """The results of a batch, from any process, from the first to the last, each once.

        Ends when the batch has all its requests and all have ended; until then it waits. Leaving the loop early changes
        nothing; it may be read again as long as results are kept (a week, TOKENYARD_RESULT_TTL_S).

        Args:
            batch: its id or key.
            order: in which order, see ``Order``. ``input`` holds back what ended before its turn: a place (some 200
                bytes) each.

        Raises:
            UnknownBatchError: there is none.
            UsageError: ``order`` does not fit the batch.
            RedisUnavailableError: Redis was away for too long.
        """
        async with aclosing(self.result_chunks(batch, order=order)) as chunks:
            async for chunk in chunks:
                for result in chunk:
                    yield result

    async def result_chunks(self, batch: str, *, order: Order = "completion") -> AsyncGenerator[list[BatchResult]]:
        """As ``results``, some at a time: as many as there are."""
        batch_id = self.batch_id(batch)
        with self._translated():
            async with aclosing(self._chunks(batch_id, order)) as chunks:
                async for chunk in chunks:
                    yield [public(result) for result in chunk]

    async def map(
        self,
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        batch: str | None = None,
        order: Order = "input",
        **options: Any,
    ) -> AsyncGenerator[BatchResult]:
        """Submit and read at once: the results, in the order of the items.

        Left early, a batch without a key is cancelled: nobody could find it. One with a key goes on, and the same call
        finds what has ended meanwhile.

        Args:
            items: as in ``submit``.
            batch: likewise; one key for one input.
            order: as in ``results``.
            options: as in ``submit``.

        Raises:
            RequestFailedError: never: a request that failed is a result that is not ``ok``.
            TokenyardError: as ``submit`` and ``results``.
        """
        submission = await self.begin(batch=batch, remember=batch is not None, **options)
        batch_id = submission.batch_id
        is_new = batch is None or not await self._exists(batch_id)
        submitting = asyncio.ensure_future(self._feed(submission, items, seal=True))
        complete = False
        try:
            if await self._is_there(batch_id, submitting, is_new=is_new):
                chunks = self.result_chunks(batch_id, order=order)
                async with aclosing(while_running(chunks, submitting)) as found:
                    async for chunk in found:
                        for result in filter(lambda r: submission.has(r.custom_id), chunk):
                            yield result
            complete = True
        finally:
            await cancel_all([submitting])
            if not complete and batch is None:
                await self.abandon(batch_id)

    async def read_ahead(self, submission: BatchSubmission, *, order: Order, is_new: bool) -> ReadingAhead:
        """The results of a batch that is being fed by hand; ``is_new``: nobody fed it before.

        A batch that was there before may be sealed, or have results of another input: it is read when all is submitted.
        """
        batch_id = submission.batch_id
        new = is_new or not await self._exists(batch_id)

        async def is_there() -> bool:
            return new and await self._exists(batch_id)

        return ReadingAhead(self.result_chunks(batch_id, order=order), is_there)

    async def status(self, batch: str) -> BatchStatus:
        """How far a batch is.

        Raises:
            UnknownBatchError: there is none.
        """
        batch_id = self.batch_id(batch)
        with self._translated():
            counts = await self._connected.counts(batch_id)
        return status_of(batch_id, counts, batch_state(counts))

    async def cancel(self, batch: str, custom_ids: Sequence[str] = ()) -> BatchStatus:
        """Cancel a batch, or only these of its requests: what runs is aborted, what waits does not start.

        Raises:
            UnknownBatchError: there is none.
        """
        batch_id = self.batch_id(batch)
        with self._translated():
            if custom_ids:
                await self._connected.cancel_jobs(batch_id, custom_ids)
            else:
                await self._connected.cancel(batch_id)
        return await self.status(batch_id)

    def batch_id(self, key: str | None) -> str:
        """The id of the batch of this key; a new one for None.

        Raises:
            UsageError: no batch can be called so, or it is another tenant's.
        """
        tenant = self._settings.tenant
        return queue.new_batch_id(tenant) if key is None else batch_id_of(key, tenant)

    @property
    def _connected(self) -> queue.Client:
        if self._client is None:
            raise UsageError("the client is not connected: use it as `async with AsyncClient() as client`")
        return self._client

    async def _chunks(self, batch_id: str, order: Order) -> AsyncGenerator[list[Result]]:
        client, outage_s = self._connected, self._outage_s
        if order == "completion":
            async with aclosing(as_they_end(client, batch_id, outage_s)) as read:
                async for _, results in read:
                    yield results
            return
        in_order = (
            in_input_order(client, batch_id, outage_s)
            if isinstance(order, str)
            else in_order_of(client, batch_id, order, outage_s)
        )
        async with aclosing(in_order) as chunks:
            async for results in chunks:
                yield results

    async def _feed(
        self, submission: BatchSubmission, items: Iterable[Item] | AsyncIterable[Item], *, seal: bool
    ) -> SubmitReport:
        async for chunk in in_chunks(items):
            await self.add_to(submission, chunk)
        return await self.finish(submission, seal=seal)

    async def _exists(self, batch_id: str) -> bool:
        with self._translated():
            return bool(await self._connected.pools_of(batch_id))

    async def _is_there(self, batch_id: str, submitting: asyncio.Task[SubmitReport], *, is_new: bool) -> bool:
        """Wait until there is something to read; False where there was nothing to queue.

        A batch that was there before may be sealed, or have results of another input: all is submitted first.
        """
        while not submitting.done():
            if is_new and await self._exists(batch_id):
                return True
            await asyncio.wait([submitting], timeout=_LOOK_S if is_new else None)
        report = submitting.result()
        return report.accepted + report.known > 0

    async def abandon(self, batch_id: str) -> None:
        """Cancel a batch, where there is one."""
        with suppress(TokenyardError):  # nothing was queued, or Redis is away: then it cannot be helped
            await self.cancel(batch_id)

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except RedisError as e:
            raise translate(e, address(self._url)) from e


def _priority(level: Priority | str) -> Priority:
    try:
        return Priority(level)
    except ValueError:
        raise UsageError(f"priority {level!r}: use high, normal or low") from None

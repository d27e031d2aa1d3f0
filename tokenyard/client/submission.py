"""A batch on its way into the queue, fed in pieces, so that any number of requests passes in bounded memory."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable

from broker.client import Client
from broker.jobs import Priority
from broker.submission import SubmitOptions
from tokenyard.client.batch_result import SubmitReport
from tokenyard.client.given_ids import GivenIds
from tokenyard.client.items import Item, RequestError, RequestMaker, position_of

#: Items that are made into requests at once: about as many as a call to Redis carries.
CHUNK_ITEMS = 250


class BatchSubmission:
    """One submission of a batch. Dropped before ``finish``, the batch stays open; the same again goes on with it.

    Attributes:
        batch_id: id of the batch.
    """

    def __init__(
        self,
        client: Client,
        batch_id: str,
        maker: RequestMaker,
        priority: Priority,
        options: SubmitOptions,
        *,
        remember: bool = False,
    ) -> None:
        self.batch_id = batch_id
        self._remember = remember
        self._client = client
        self._maker = maker
        self._submitting = client.submission(batch_id, priority, options)
        self._models: dict[str, str] = {}
        self._position = 0
        self._given = GivenIds()

    async def add(self, items: Iterable[Item]) -> None:
        """Queue items.

        Raises:
            RequestError: one is no request, names a model that nobody serves, or has the custom_id of another. Those
                before it may be queued.
            UsageError: the batch is cancelled, or its completion window is over.
            QueueFullError: the backlog is full, and the options say not to wait.
        """
        for item in items:
            request = self._maker.request(self._position, item)
            self._position += 1
            if self._remember or position_of(request.custom_id) is None:
                self._check_new(request.custom_id)
            await self._submitting.add(await self._pool_of(request.model), request)

    def has(self, custom_id: str) -> bool:
        """Whether it was given with this custom_id; one that does not remember all says yes."""
        return not self._remember or custom_id in self._given

    async def finish(self, *, seal: bool) -> SubmitReport:
        """Queue what is left, see to it that all is safe where that was asked for, and seal the batch.

        Raises:
            NotDurableError: the server lost jobs meanwhile, or its disk is too slow.
        """
        report = await self._submitting.finish([])
        if seal:
            await self._client.seal(self.batch_id)
        return SubmitReport(self.batch_id, report.accepted, report.known, report.on_disk, report.promise)

    def _check_new(self, custom_id: str) -> None:
        position = self._position - 1
        first = self._given.first_position(custom_id, position)
        if first != position:
            raise RequestError(f"item {position}: custom_id {custom_id[:64]!r} is that of item {first}: make it unique")

    async def _pool_of(self, model: str) -> str:
        pool = self._models.get(model)
        if pool is None:  # a pool may have come since
            self._models = await self._client.registry.models()
            pool = self._models.get(model)
        if pool is None:
            known = ", ".join(sorted(self._models)) or "none: no worker has joined yet"
            raise RequestError(f"item {self._position - 1}: no pool serves model {model!r}; served here: {known}")
        return pool


async def in_chunks(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[list[Item]]:
    """Items some at a time."""
    chunk: list[Item] = []
    if isinstance(items, AsyncIterable):
        async for item in items:
            chunk.append(item)
            if len(chunk) == CHUNK_ITEMS:
                yield chunk
                chunk = []
    else:
        for item in items:
            chunk.append(item)
            if len(chunk) == CHUNK_ITEMS:
                yield chunk
                chunk = []
    if chunk:
        yield chunk

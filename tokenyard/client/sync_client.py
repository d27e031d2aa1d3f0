"""The client for code without asyncio. What it does is ``AsyncClient``'s doing, in a thread of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Self

from tokenyard.client.async_client import AsyncClient, Order
from tokenyard.client.batch_result import BatchResult, BatchStatus, SubmitReport
from tokenyard.client.items import Item
from tokenyard.client.portal import Portal
from tokenyard.client.submission import CHUNK_ITEMS, BatchSubmission


class Client:
    """Submits batches and reads their results; a context manager, or ``close`` it. Arguments as of ``AsyncClient``.

    The caller's iterables are run in the caller's thread. After a fork it is of no use: make it where it is needed.

    Raises:
        RedisUnavailableError: nobody answers at that address.
        RedisRefusedError: it wants a password, or refuses.
        UsageError: no address is known.
    """

    def __init__(self, url: str | None = None, **options: Any) -> None:
        self._async = AsyncClient(url, **options)
        self._portal = Portal()
        try:
            self._portal.run(self._async.__aenter__())
        except BaseException:
            self._portal.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect. A second time: does nothing."""
        if not self._portal.closed:
            self._portal.run(self._async.__aexit__())
            self._portal.close()

    def submit(
        self, items: Iterable[Item], *, batch: str | None = None, seal: bool = True, **options: Any
    ) -> SubmitReport:
        """As ``AsyncClient.submit``."""
        return self._feed(self._portal.run(self._async.begin(batch=batch, **options)), items, seal=seal)

    def results(self, batch: str, *, order: Order = "completion") -> Generator[BatchResult]:
        """As ``AsyncClient.results``."""
        chunks = self._async.result_chunks(batch, order=order)
        try:
            while (chunk := self._portal.run(_next(chunks))) is not None:
                yield from chunk
        finally:
            if not self._portal.closed:
                self._portal.run(chunks.aclose())

    def map(
        self, items: Iterable[Item], *, batch: str | None = None, order: Order = "input", **options: Any
    ) -> Generator[BatchResult]:
        """As ``AsyncClient.map``, but all is submitted before the first result comes."""
        submission = self._portal.run(self._async.begin(batch=batch, remember=True, **options))
        batch_id = submission.batch_id
        complete = False
        try:
            report = self._feed(submission, items, seal=True)
            if report.accepted + report.known:
                yield from (r for r in self.results(batch_id, order=order) if submission.has(r.custom_id))
            complete = True
        finally:
            if not complete and batch is None and not self._portal.closed:
                self._portal.run(self._async.abandon(batch_id))

    def status(self, batch: str) -> BatchStatus:
        """As ``AsyncClient.status``."""
        return self._portal.run(self._async.status(batch))

    def cancel(self, batch: str, custom_ids: Sequence[str] = ()) -> BatchStatus:
        """As ``AsyncClient.cancel``."""
        return self._portal.run(self._async.cancel(batch, custom_ids))

    def _feed(self, submission: BatchSubmission, items: Iterable[Item], *, seal: bool) -> SubmitReport:
        for chunk in _chunks_of(items):
            self._portal.run(self._async.add_to(submission, chunk))
        return self._portal.run(self._async.finish(submission, seal=seal))


def _chunks_of(items: Iterable[Item]) -> Iterator[list[Item]]:
    left = iter(items)
    while chunk := list(islice(left, CHUNK_ITEMS)):
        yield chunk


async def _next(chunks: AsyncGenerator[list[BatchResult]]) -> list[BatchResult] | None:
    return await anext(chunks, None)

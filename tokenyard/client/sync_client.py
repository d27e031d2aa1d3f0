"""The client for code without asyncio. What it does is ``AsyncClient``'s doing, in a thread of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Self

from tokenyard.client.async_client import AsyncClient, Order
from tokenyard.client.batch_result import BatchResult, BatchStatus, SubmitReport
from tokenyard.client.items import Item
from tokenyard.client.portal import Portal
from tokenyard.client.reading_ahead import ReadingAhead
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
        """As ``AsyncClient.map``: after each 250 items that it takes, what has ended by then is handed out.

        A caller that takes its time over results slows the submission down; what is queued by then runs on.
        """
        submission = self._portal.run(self._async.begin(batch=batch, remember=batch is not None, **options))
        ahead = self._portal.run(self._async.read_ahead(submission, order=order, is_new=batch is None))
        complete = False
        try:
            for chunk in self._chunks_while(items, submission, ahead):
                yield from (result for result in chunk if submission.has(result.custom_id))
            complete = True
        finally:
            if not self._portal.closed:
                self._portal.run(ahead.close())
                if not complete and batch is None:
                    self._portal.run(self._async.abandon(submission.batch_id))

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

    def _chunks_while(
        self, items: Iterable[Item], submission: BatchSubmission, ahead: ReadingAhead
    ) -> Iterator[list[BatchResult]]:
        """Feed the submission; the results that come meanwhile, and then the rest."""
        for chunk in _chunks_of(items):
            self._portal.run(self._async.add_to(submission, chunk))
            yield self._portal.run(ahead.come())
        report = self._portal.run(self._async.finish(submission, seal=True))
        if report.accepted + report.known:
            while (found := self._portal.run(ahead.next())) is not None:
                yield found


def _chunks_of(items: Iterable[Item]) -> Iterator[list[Item]]:
    left = iter(items)
    while chunk := list(islice(left, CHUNK_ITEMS)):
        yield chunk


async def _next(chunks: AsyncGenerator[list[BatchResult]]) -> list[BatchResult] | None:
    return await anext(chunks, None)

"""A batch that is read while it is fed: by a task beside, or between two pieces of its input."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from broker.concurrency import cancel_all
from tokenyard.client.batch_result import BatchResult

Chunk = list[BatchResult]


class ReadingAhead:
    """For a caller that feeds and reads in turns: asks for one chunk ahead, so that it has come when it is looked for.

    Args:
        chunks: the results of the batch.
        is_there: whether there is a batch yet: only then they are asked for.
    """

    def __init__(self, chunks: AsyncGenerator[Chunk], is_there: Callable[[], Awaitable[bool]]) -> None:
        self._chunks = chunks
        self._is_there = is_there
        self._begun = False
        self._coming: asyncio.Task[Chunk | None] | None = None

    async def come(self) -> Chunk:
        """What has come by now: nothing, or one chunk. Errors as of the results."""
        if not self._begun and not await self._is_there():
            return []
        coming = self._ask()
        return (await self.next() or []) if coming.done() else []

    async def next(self) -> Chunk | None:
        """The next chunk, waited for; None where there is none any more. Errors as of the results."""
        coming = self._ask()
        await asyncio.wait([coming])  # whoever waits may be cancelled: what comes is not lost by that
        found = coming.result()
        if found is not None:
            self._coming = None
            self._ask()
        return found

    async def close(self) -> None:
        """Read no more."""
        if self._coming is not None:
            await cancel_all([self._coming])
            if not self._coming.cancelled():
                self._coming.exception()  # looked at, or asyncio complains that nobody did
        await self._chunks.aclose()

    def _ask(self) -> asyncio.Task[Chunk | None]:
        self._begun = True
        if self._coming is None:
            self._coming = asyncio.ensure_future(anext(self._chunks, None))
        return self._coming


async def while_running(chunks: AsyncGenerator[Chunk], submitting: asyncio.Task[Any]) -> AsyncGenerator[Chunk]:
    """The chunks; where the submission fails meanwhile, its error."""
    try:
        while True:
            coming = asyncio.ensure_future(anext(chunks, None))
            try:
                if not submitting.done():
                    await asyncio.wait([coming, submitting], return_when=asyncio.FIRST_COMPLETED)
                if submitting.done():
                    submitting.result()
                chunk = await coming
            finally:
                await cancel_all([coming])
            if chunk is None:
                return
            yield chunk
    finally:
        await chunks.aclose()

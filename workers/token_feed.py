"""News of jobs that are followed, from their engine to Redis: many pieces a call."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from broker.jobs import Delivery
from broker.token_news import TokenNews

#: Pieces kept while Redis is away; more are dropped: the result has all.
_MOST_WAITING = 20_000

Send = Callable[[str, Sequence[TokenNews]], Awaitable[None]]


class TokenFeed:
    """What jobs that are followed generated and nobody was told. It is told before their results are."""

    def __init__(self) -> None:
        self.some = asyncio.Event()
        self._waiting: defaultdict[str, list[TokenNews]] = defaultdict(list)  # by batch
        self._count = 0
        self._flushing = asyncio.Lock()

    def teller(self, delivery: Delivery) -> Callable[[bytes], None]:
        """For the engine: takes the ``choices`` of a chunk, a JSON list."""
        number = 0

        def tell(choices: bytes) -> None:
            nonlocal number
            if self._count < _MOST_WAITING:
                news = TokenNews(delivery.job_id, delivery.entry_id, number, msgspec.Raw(choices))
                self._waiting[delivery.batch_id].append(news)
                self._count += 1
                self.some.set()
            number += 1  # a gap tells the reader that some are missing

        return tell

    async def flush(self, send: Send) -> None:
        """Tell what there is. Pieces leave only after Redis took them; whoever comes second waits for the first."""
        if not self._count:
            return
        async with self._flushing:
            for batch_id in list(self._waiting):
                pieces = self._waiting[batch_id]
                count = len(pieces)
                await send(batch_id, pieces[:count])
                del pieces[:count]
                self._count -= count
                if not pieces:
                    del self._waiting[batch_id]
            if not self._count:
                self.some.clear()

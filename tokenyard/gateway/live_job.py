"""A request that somebody waits for, as its caller sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from broker.jobs import Result
from broker.token_news import TokenNews

#: News of a request that nobody fetched; more of them are a gap, and the result has all.
_MOST_NEWS = 10_000


@dataclass(slots=True, eq=False)
class LiveJob:
    """A request under way: its news while it runs, and its ``result``.

    ``leave`` is to be called when nobody waits for it any more: where it has not ended, it is aborted. ``heard`` counts
    its pieces that have come, told or about to be.
    """

    job_id: str
    result: asyncio.Future[Result]
    leave: Callable[[], None]
    heard: int = 0
    _news: list[TokenNews] = field(default_factory=list[TokenNews])
    _waiter: asyncio.Future[None] | None = None

    def tell(self, piece: TokenNews) -> None:
        """There is news."""
        if len(self._news) < _MOST_NEWS:
            self._news.append(piece)
            self.wake()

    def wake(self) -> None:
        """Whoever waits in ``news`` is to look around."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def news(self) -> list[TokenNews]:
        """What was told since the last call, all of it; waits for some. None: it has ended, or was woken.

        For one caller at a time.
        """
        if not self._news and not self.result.done():
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        news, self._news = self._news, []
        return news

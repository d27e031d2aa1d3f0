"""Who hears of what first, where an engine's step brings a token for each of a thousand streams."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping

from broker.concurrency import cancel_all
from broker.jobs import Result
from broker.store.live import LiveNews
from broker.token_news import TokenNews
from tokenyard.gateway.live_job import LiveJob

#: A request's first pieces (a chat's role, its first token) go ahead of what others have had more of.
_FIRST_PIECES = 2
#: So many others are handed out before whatever else waits gets its turn, first tokens that come meanwhile above all.
_SLICE = 64
#: Nothing more is read while so many wait to be handed out.
_MOST_WAITING = 20_000


class HandingOut:
    """Pieces and results on their way to those who wait for them.

    First pieces are told at once, all else in the order in which it came: a result after all pieces of its job.
    """

    def __init__(self, end: Callable[[Result], None]) -> None:
        """Args:
        end: called with each result.
        """
        self._end = end
        self._later: deque[tuple[LiveJob, TokenNews] | Result] = deque()
        self._working: asyncio.Task[None] | None = None

    async def take(self, jobs: Mapping[str, LiveJob], news: LiveNews) -> None:
        """Hand out what was read, to these jobs by their ids; some of it only after this returns."""
        for piece in news.tokens:
            job = jobs.get(piece.job_id)
            if job is None:
                continue
            job.heard += 1
            if job.heard <= _FIRST_PIECES:
                job.tell(piece)
            else:
                self._later.append((job, piece))
        self._later.extend(news.results)
        if self._later and (self._working is None or self._working.done()):
            self._working = asyncio.ensure_future(self._work())
        if len(self._later) > _MOST_WAITING:
            await self.done()

    async def done(self) -> None:
        """Wait until all is handed out."""
        if self._working is not None:
            await asyncio.shield(self._working)

    async def close(self) -> None:
        """Hand out nothing more."""
        if self._working is not None:
            await cancel_all([self._working])

    async def _work(self) -> None:
        while self._later:
            for _ in range(min(_SLICE, len(self._later))):
                match self._later.popleft():
                    case (job, piece):
                        job.tell(piece)
                    case result:
                        self._end(result)
            await asyncio.sleep(0)

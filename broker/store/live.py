"""What a client sees of jobs that it waits for: their tokens while they run, and their results."""

from __future__ import annotations

import logging
from typing import NamedTuple

from broker import keys
from broker.connection import RedisClient
from broker.jobs import Result
from broker.result_record import parse_result
from broker.token_news import TokenNews, parse_news

log = logging.getLogger(__name__)

#: Entries read of each of the two streams in one call.
_MOST_READ = 500


class LivePosition(NamedTuple):
    """How far a reader is in a batch's two streams."""

    results: str = "0"
    tokens: str = "0"


class LiveNews(NamedTuple):
    """What there is new; each result comes after all news of its run."""

    position: LivePosition
    tokens: list[TokenNews]
    results: list[Result]


async def read_live(
    redis: RedisClient, pool: keys.PoolKeys, batch_id: str, after: LivePosition, block_s: float
) -> LiveNews:
    """Read on in a batch's tokens and results, both at one moment; where there is nothing, wait up to ``block_s``."""
    results_key, tokens_key = pool.results(batch_id), pool.tokens(batch_id)
    positions = {results_key: after.results, tokens_key: after.tokens}
    found = await redis.xread(positions, count=_MOST_READ, block=int(block_s * 1000) or None)
    entries = {name.decode(): of_stream for name, of_stream in found}
    told = entries.get(tokens_key, [])
    # Where more tokens are there than were read, the results wait: their last tokens may be among them.
    ended = entries.get(results_key, []) if len(told) < _MOST_READ else []
    news = [(entry, parse_news(fields)) for entry, fields in told]
    read = [(entry, parse_result(entry, fields)) for entry, fields in ended]
    _tell_of_bad(tokens_key, "news", [entry for entry, found in news if not found])
    _tell_of_bad(results_key, "results", [entry for entry, found in read if found is None])
    return LiveNews(
        LivePosition(
            ended[-1][0].decode() if ended else after.results,
            told[-1][0].decode() if told else after.tokens,
        ),
        [one for _, found in news for one in found],
        [result for _, result in read if result is not None],
    )


def _tell_of_bad(key: str, what: str, entries: list[bytes]) -> None:
    if entries:
        log.warning("%s: skipped entries that are no %s: %s", key, what, b" ".join(entries).decode())

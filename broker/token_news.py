"""What a job has generated so far, on its way from a worker to a client that follows it. Pure.

A worker writes the news of all jobs of a batch that are followed as one stream entry every few milliseconds. News are
only that: they may be lost, repeated, or come from two runs of one job. The result is what counts, and it comes after
all news of its run in the order of writing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec

#: A batch's stream keeps about so many entries, so long after the last (seconds).
MOST_ENTRIES = 2000
TTL_S = 600

_MOST_BYTES = 8 * 2**20


class TokenNews(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A piece of what a run of a job generated.

    Attributes:
        job_id: id of the job.
        run: entry of the device queue: one for each run of a job.
        number: 0 for the run's first piece, then 1, 2, …
        choices: the ``choices`` of an OpenAI stream chunk, a JSON list.
    """

    job_id: Annotated[str, msgspec.Meta(max_length=512)]
    run: Annotated[str, msgspec.Meta(max_length=64)]
    number: Annotated[int, msgspec.Meta(ge=0, le=10**9)]
    choices: msgspec.Raw


_decode = msgspec.json.Decoder(list[TokenNews]).decode
_encode = msgspec.json.Encoder().encode


def news_text(news: Sequence[TokenNews]) -> bytes:
    """News as an entry holds them."""
    return _encode(news)


def parse_news(raw: Mapping[bytes, bytes]) -> list[TokenNews]:
    """The news of a stream entry; none where it holds no such (anyone can write to Redis)."""
    text = raw.get(b"news", b"")
    if len(text) > _MOST_BYTES:
        return []
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []

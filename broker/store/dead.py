"""Dead letters of a pool: list, read, drop."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from typing import Any

from redis.exceptions import ResponseError

from broker import keys
from broker.connection import RedisClient
from broker.dead_letters import DeadLetter, parse_letter
from broker.store.monitor import count_members

log = logging.getLogger(__name__)

#: All fields of a letter but its body.
_FIELDS = (
    "batch",
    "custom_id",
    "url",
    "priority",
    "submitted",
    "died",
    "status_code",
    "error_code",
    "error_message",
    "max_tokens",
    "timeout_s",
    "prefix",
    "history",
)
#: A word on why jobs were given up, and a number of them; and so many reasons are read.
_REASON = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_COUNT = re.compile(rb"\d{1,15}")
_MOST_REASONS = 101
#: Letters read in one call.
_READ_LETTERS = 200


class DeadLetterStore:
    """The dead letters of one pool."""

    def __init__(self, redis: RedisClient, pool: str) -> None:
        self._redis = redis
        self.keys = keys.PoolKeys(pool)

    async def ids(self) -> list[str]:
        """Jobs that have a letter, newest first."""
        try:
            found = await self._redis.zrevrange(self.keys.dead, 0, -1)
        except ResponseError as e:  # somebody made it another kind of value
            if not str(e).startswith("WRONGTYPE"):
                raise
            return []
        return [name.decode(errors="surrogateescape") for name in found]

    async def count(self) -> int:
        """Jobs that have a letter."""
        return await count_members(self._redis, self.keys.dead)

    async def given_up(self) -> dict[str, int]:
        """How many jobs ever failed for good, by reason: an error code, or ``status_`` and the answer's status."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.hgetall(self.keys.given_up)
        [found] = await pipe.execute(raise_on_error=False)
        if isinstance(found, Exception):
            if not str(found).startswith("WRONGTYPE"):
                raise found
            return {}
        counts = {name.decode(errors="replace"): count for name, count in found.items()}
        sound = {
            name: int(count) for name, count in counts.items() if _REASON.fullmatch(name) and _COUNT.fullmatch(count)
        }
        return dict(sorted(sound.items())[:_MOST_REASONS])

    async def letters(self, job_ids: Sequence[str]) -> list[DeadLetter]:
        """Their letters, without those that are gone or cannot be read."""
        found: list[DeadLetter] = []
        for start in range(0, len(job_ids), _READ_LETTERS):
            some = job_ids[start : start + _READ_LETTERS]
            pipe = self._redis.pipeline(transaction=False)
            for job_id in some:
                pipe.hmget(self.keys.letter(job_id), *_FIELDS)
                pipe.hexists(self.keys.letter(job_id), "body")
            answers: list[Any] = await pipe.execute(raise_on_error=False)
            for job_id, values, has_body in zip(some, answers[::2], answers[1::2], strict=True):
                letter = _letter(job_id, values, has_body=has_body)
                if letter is not None:
                    found.append(letter)
                elif isinstance(values, Exception) or any(value is not None for value in values):
                    log.warning("%.200r is no dead letter: skipped", self.keys.letter(job_id))
        return found

    async def without_letter(self, found: Collection[DeadLetter]) -> list[str]:
        """Jobs on the list whose letter is gone, or cannot be read: somebody deleted it by hand, or wrote over it.

        ``found``: the letters that were read, of all jobs on the list.
        """
        known = {letter.job_id for letter in found}
        missing = [job for job in await self.ids() if job not in known]
        come = {letter.job_id for letter in await self.letters(missing)}  # since those were read
        return [job for job in missing if job not in come]

    async def body(self, job_id: str) -> bytes | None:
        """The request of a letter; None where it is not kept."""
        return await self._redis.hget(self.keys.letter(job_id), "body")

    async def drop(self, job_ids: Sequence[str]) -> int:
        """Delete letters, and take their jobs off the list. The jobs' results stay. Returns how many there were."""
        dropped = 0
        for start in range(0, len(job_ids), _READ_LETTERS):
            pipe = self._redis.pipeline(transaction=False)
            for job_id in job_ids[start : start + _READ_LETTERS]:
                pipe.zrem(self.keys.dead, job_id)
                pipe.delete(self.keys.letter(job_id))
            answers = await pipe.execute()
            dropped += sum(max(listed, there) for listed, there in zip(answers[::2], answers[1::2], strict=True))
        return dropped


def _letter(job_id: str, values: Any, *, has_body: Any) -> DeadLetter | None:
    if isinstance(values, Exception) or isinstance(has_body, Exception):
        return None
    raw = {name.encode(): value for name, value in zip(_FIELDS, values, strict=True) if value is not None}
    if has_body:
        raw[b"body"] = b""
    return parse_letter(job_id, raw) if raw else None

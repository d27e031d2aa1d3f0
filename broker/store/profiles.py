"""Measured profiles, kept with the pool that they belong to."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Any

import redis.exceptions as rex

from broker.connection import RedisClient
from broker.errors import UsageError
from broker.keys import PoolKeys
from broker.profiles import ProfileRecord

log = logging.getLogger(__name__)

#: A record is about a kilobyte; what is longer than this is none (bytes).
_LONGEST = 16_384


class ProfileStore:
    """The profiles of one pool, one for each configuration of an engine."""

    def __init__(self, redis: RedisClient, pool: str) -> None:
        self._redis = redis
        self._key = PoolKeys(pool).profiles

    async def save(self, record: ProfileRecord) -> None:
        """Keep a record, in place of an earlier one of the same configuration."""
        await self._redis.hset(self._key, record.configuration, record.to_json())

    async def find(self, configuration: str) -> ProfileRecord | None:
        """The record of this configuration; None where there is none, or none that can be read."""
        return self._read(configuration, await self._look(self._redis.hget(self._key, configuration)))

    async def all(self) -> list[ProfileRecord]:
        """All records that can be read."""
        found = await self._look(self._redis.hgetall(self._key)) or {}
        records = [self._read(name.decode(errors="replace"), text) for name, text in found.items()]
        return [record for record in records if record]

    async def _look(self, answer: Awaitable[Any]) -> Any:
        """What Redis answers; None where somebody made the key another kind of value."""
        try:
            return await answer
        except rex.ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            log.warning("%s is no hash: delete it, and profiles will be kept again", self._key)
            return None

    def _read(self, configuration: str, text: bytes | None) -> ProfileRecord | None:
        if text is None:
            return None
        try:
            record = ProfileRecord.from_json(text) if len(text) <= _LONGEST else None
        except UsageError as error:
            log.warning("%s: skipped the profile of %r: %s", self._key, configuration[:200], error)
            return None
        if record is None or record.configuration != configuration:
            log.warning("%s: skipped the profile of %r: it is of something else", self._key, configuration[:200])
            return None
        return record

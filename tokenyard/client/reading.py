"""Results of a batch, as they come or in the order of the input; outages of Redis are waited through."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from itertools import islice

from broker.client import Client
from broker.connection import RedisError, passes
from broker.errors import UsageError
from broker.jobs import Result, job_id
from tokenyard.client.input_order import InputOrder, Place
from tokenyard.client.items import position_of

#: Results handed over at once, and ids looked up at once.
_CHUNK = 200
#: Results that are kept whole until it is their turn; of more, just the place, and they are read once more.
_KEPT = 2000
#: After an outage, and where a result is waited for, one looks again after this long, doubled up to the longest (s).
_FIRST_S = 0.02
_LONGEST_S = 0.5


async def as_they_end(client: Client, batch_id: str, outage_s: float) -> AsyncGenerator[tuple[str, list[Result]]]:
    """Pool and results, in the order in which they ended, from the first to the last.

    Args:
        client: connected.
        batch_id: the batch.
        outage_s: where Redis is away for longer than so many seconds, that is an error.

    Raises:
        UnknownBatchError: no pool has it.
    """
    after: dict[str, str] = {}
    patience = _Patience(outage_s)
    while True:
        try:
            async with aclosing(client.results_by_pool(batch_id, after)) as chunks:
                async for pool, results in chunks:
                    patience.renew()
                    after[pool] = results[-1].cursor
                    yield pool, results
            return
        except (RedisError, OSError) as e:
            patience.bear(e)
        await patience.pause()


async def in_input_order(client: Client, batch_id: str, outage_s: float) -> AsyncGenerator[list[Result]]:
    """Results in the order in which their requests were submitted; otherwise as ``as_they_end``.

    Raises:
        UsageError: its requests have custom_ids of their own, which tell no order.
    """
    order = InputOrder()
    kept: dict[Place, Result] = {}
    async with aclosing(as_they_end(client, batch_id, outage_s)) as chunks:
        async for pool, results in chunks:
            for result in results:
                place = _place_of(result, pool)
                order.add(place)
                if len(kept) < _KEPT:
                    kept[place] = result
            while places := order.due(_CHUNK):
                yield await _fetch(client, batch_id, places, kept)
    while places := order.due(_CHUNK, is_end=True):
        yield await _fetch(client, batch_id, places, kept)


async def in_order_of(
    client: Client, batch_id: str, custom_ids: Iterable[str], outage_s: float
) -> AsyncGenerator[list[Result]]:
    """The results of these requests, in this order, each waited for.

    Raises:
        UnknownBatchError: no pool has the batch.
        UsageError: the batch has ended without one of them.
    """
    waiting = iter(custom_ids)
    while wanted := list(islice(waiting, _CHUNK)):
        found: dict[str, Result] = {}
        patience = _Patience(outage_s)
        while missing := [name for name in wanted if name not in found]:
            try:
                complete = (await client.counts(batch_id)).complete
                new = await _look_up(client, batch_id, missing)
            except (RedisError, OSError) as e:
                patience.bear(e)
            else:
                patience.seen()
                found |= new
                if complete and (gone := next((name for name in missing if name not in new), None)) is not None:
                    raise UsageError(f"batch {batch_id} has ended without a request {gone[:64]!r}: was it submitted?")
            if len(found) < len(set(wanted)):
                await patience.pause()
        yield [found[name] for name in wanted]


class _Patience:
    """How long one waits, and for how long Redis may be away."""

    def __init__(self, outage_s: float) -> None:
        self._outage_s = outage_s
        self._delay = _FIRST_S
        self._lost_at: float | None = None

    def seen(self) -> None:
        """Redis is there."""
        self._lost_at = None

    def renew(self) -> None:
        """It is, and it had what was waited for."""
        self._lost_at, self._delay = None, _FIRST_S

    def bear(self, error: Exception) -> None:
        """Redis is not there. Raises the error where that does not pass, or lasts too long."""
        now = asyncio.get_running_loop().time()
        self._lost_at = now if self._lost_at is None else self._lost_at
        if not passes(error) or now - self._lost_at > self._outage_s:
            raise error

    async def pause(self) -> None:
        """Wait, longer each time."""
        await asyncio.sleep(random.uniform(self._delay / 2, self._delay))
        self._delay = min(2 * self._delay, _LONGEST_S)


async def _look_up(client: Client, batch_id: str, custom_ids: Sequence[str]) -> dict[str, Result]:
    """Those that have ended, by custom_id."""
    identities = {job_id(batch_id, name): name for name in custom_ids}
    found: dict[str, Result] = {}
    for pool in await client.pools_of(batch_id):
        cursors = await client.store(pool).cursors(list(identities))
        for result in await client.store(pool).results_at(batch_id, [c for c in cursors if c]):
            if result.job_id in identities:
                found[identities[result.job_id]] = result
    return found


async def _fetch(client: Client, batch_id: str, places: Sequence[Place], kept: dict[Place, Result]) -> list[Result]:
    found = {place: kept.pop(place) for place in places if place in kept}
    for pool in {place.pool for place in places if place not in found}:
        again = {place.cursor: place for place in places if place.pool == pool and place not in found}
        for result in await client.store(pool).results_at(batch_id, list(again)):
            found[again[result.cursor]] = result
    return [found[place] for place in places if place in found]


def _place_of(result: Result, pool: str) -> Place:
    position = position_of(result.custom_id)
    if position is None:
        raise UsageError(
            f"request {result.custom_id[:64]!r} has a custom_id of its own, which tells no order: give the custom_ids"
            " in the order wanted (order=[…])"
        )
    return Place(position, pool, result.cursor)

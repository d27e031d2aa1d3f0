"""Connections to Redis, and its errors as one clear line each."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import redis.exceptions as rex
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline as RedisPipeline

from broker.cancellable import make_cancellable
from broker.errors import RedisRefusedError, RedisUnavailableError, TokenyardError
from broker.redis_address import many_servers, tls_options, without_password
from broker.redis_many import ClusterClient, connect_many

#: redis-py annotates its sync and its async client with one type, which fits neither; ours is always the async one.
RedisClient = Any

#: Commands that go together, of a client of one server.
Pipeline = RedisPipeline

#: What every error of redis-py is; see ``translate``.
RedisError = rex.RedisError

#: How long a blocking read waits on the server, and how long the client waits for that answer (seconds).
BLOCK_S = 5.0
READ_TIMEOUT_S = 15.0

OPTIONS: dict[str, Any] = {
    "socket_timeout": READ_TIMEOUT_S,
    "socket_connect_timeout": 5.0,
    # Names in Redis may be any bytes: what we read with surrogates, we can name again.
    "encoding_errors": "surrogateescape",
}


def connect(url: str) -> RedisClient:
    """A client with a pool of connections; nothing is sent yet.

    Raises:
        RedisUnavailableError: the address cannot be read.
    """
    try:
        many, options = many_servers(url), OPTIONS | tls_options(url)
        return make_cancellable(Redis.from_url(url, **options)) if many is None else connect_many(many, options)
    except (TypeError, ValueError) as e:
        raise RedisUnavailableError(f"TOKENYARD_REDIS_URL is not an address: {e}") from None


def address(url: str) -> str:
    """The address without its password, for messages."""
    return without_password(url)


def is_cluster(redis: RedisClient) -> bool:
    """Whether this is a client of a Redis Cluster."""
    return isinstance(redis, ClusterClient)


@asynccontextmanager
async def connections_at(redis: RedisClient, key: str) -> AsyncGenerator[Any]:
    """A pool of connections to the server that holds ``key``, for clients of single servers within the block.

    Raises:
        redis.exceptions.ConnectionError: the server holds it no more: a Cluster's keys move at a fail-over.
    """
    if not isinstance(redis, ClusterClient):
        yield redis.connection_pool
        return
    found = await redis.connections_at(key)
    try:
        yield found
    except rex.AskError as e:
        if e.slot_id != redis.keyslot(key):
            raise
        raise rex.ConnectionError(f"the keys of {key} have moved ({e})") from e
    finally:
        await found.disconnect()


async def clock(redis: RedisClient, key: str) -> float:
    """Seconds since the epoch on the clock of the server that holds ``key``: each of a Cluster has its own."""
    seconds, micros = await (redis.time_at(key) if isinstance(redis, ClusterClient) else redis.time())
    return seconds + micros / 1e6


def translate(error: Exception, where: str) -> TokenyardError:
    """The error of redis-py as ours."""
    text = str(error).partition(" : <")[0]  # what no Sentinel answered ends with redis-py's own objects
    if isinstance(error, rex.NoPermissionError):
        return RedisRefusedError(f"Redis at {where} does not permit this user: {text}")
    if isinstance(error, rex.AuthenticationError | rex.AuthorizationError) or "NOAUTH" in text:
        return RedisRefusedError(
            f"Redis at {where} needs a password, or refused the one it got: put it into TOKENYARD_REDIS_URL"
            " (redis://user:password@host:port/0)"
        )
    if out_of_memory(error):
        return RedisRefusedError(f"Redis at {where} is out of memory (maxmemory): free some or raise the limit")
    if isinstance(error, rex.AskError):
        return RedisRefusedError(
            f"Redis at {where} is a node of a Cluster: begin TOKENYARD_REDIS_URL with redis+cluster://"
        )
    if isinstance(error, rex.BusyLoadingError):
        return RedisUnavailableError(f"Redis at {where} is still loading its data: try again shortly")
    if isinstance(error, rex.ConnectionError | rex.TimeoutError | OSError):
        return RedisUnavailableError(
            f"cannot reach Redis at {where} ({text or type(error).__name__}):"
            " is it running, is TOKENYARD_REDIS_URL right?"
        )
    return RedisRefusedError(f"Redis at {where} refused: {text}")


def out_of_memory(error: Exception) -> bool:
    """Whether Redis refused a write because its memory is full (``maxmemory`` with ``noeviction``)."""
    return isinstance(error, rex.OutOfMemoryError) or str(error).startswith("OOM ")


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[RedisClient]:
    """A checked connection for the length of the block; redis-py's errors leave it translated.

    Raises:
        RedisUnavailableError: nobody answers at that address.
        RedisRefusedError: it wants a password, or refuses.
    """
    client = connect(url)
    where = address(url)
    try:
        await _say_hello(client)
        yield client
    except rex.RedisError as e:  # an OSError is not of Redis: redis-py turns those of its own into its ConnectionError
        raise translate(e, where) from e
    finally:
        await client.aclose()


async def _say_hello(client: RedisClient) -> None:
    """Raises where nobody answers, or we are refused. A server that is sick for a while, its disk full, is there."""
    try:
        await client.ping()
    except rex.ResponseError as e:
        if not passes(e):
            raise


#: What goes away by itself: a restart, a fail-over, a full memory that is being freed.
PASSING = (
    rex.ConnectionError,
    rex.TimeoutError,
    rex.ReadOnlyError,
    rex.OutOfMemoryError,
    rex.ClusterError,
    rex.TryAgainError,
    ConnectionError,
    OSError,
)
#: Likewise, by the first word of an error that redis-py has no class for: a fail-over, a full disk, a long script.
_PASSING_CODES = ("BUSY", "CLUSTERDOWN", "MASTERDOWN", "MISCONF", "NOREPLICAS", "TRYAGAIN", "UNBLOCKED")


def passes(error: Exception) -> bool:
    """Whether an error goes away by itself."""
    if isinstance(error, rex.AuthenticationError | rex.AuthorizationError):
        return False
    return isinstance(error, PASSING) or str(error).partition(" ")[0] in _PASSING_CODES


async def keep_trying(
    step: Callable[[], Awaitable[object]],
    report: Callable[[str], None],
    *,
    first_s: float = 0.05,
    longest_s: float = 1.0,
) -> None:
    """Run ``step`` again and again while Redis comes and goes: full-jitter backoff, one report an outage.

    Returns when ``step`` returns. Errors that do not pass by themselves (a wrong password) leave at once.
    """
    delay = first_s
    down = False

    async def attempt() -> bool:
        nonlocal delay, down
        started = asyncio.get_running_loop().time()
        try:
            await step()
            return True
        except (rex.RedisError, OSError) as e:
            if not passes(e):
                raise
            if asyncio.get_running_loop().time() - started > 2 * longest_s:
                delay, down = first_s, False  # it had worked for a while: a new outage
            if not down:
                report(f"lost Redis ({e}); trying again until it is back")
            down = True
            return False

    while not await attempt():
        await asyncio.sleep(random.uniform(0, delay))
        delay = min(delay * 2, longest_s)

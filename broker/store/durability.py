"""Whether what was written is on disk."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ResponseError

from broker.connection import RedisClient, is_cluster
from broker.errors import NotDurableError

#: The server is asked again after this long (milliseconds): shorter than a connection waits for an answer.
_ASK_MS = 5000
#: Seconds that the fence stays.
_FENCE_S = 60
#: A disk that takes longer (seconds) is not waited for.
_PATIENCE_S = 60.0


async def on_disk(redis: RedisClient, fence: str, replicas: int = 0) -> str:
    """Wait until all that was written to the server before now is on disk, in its append-only file, and at replicas.

    A key is written and waited for (WAITAOF, Redis 7.2 or Valkey): the file has what was written in its order, so what
    came before it, over whatever connection, is there, too. With ``appendfsync everysec`` it takes up to a second. So
    it is with replicas (WAIT). On a Cluster it is the server that holds the key, and with it all keys of the pool.

    Args:
        redis: the server.
        fence: the key.
        replicas: so many replicas must have it in their memory: a fail-over to one of them loses nothing.

    Returns:
        Nothing; or where the server cannot say it, one line on what is promised instead.

    Raises:
        NotDurableError: the disk is too slow, or so many replicas do not follow.
    """
    end = asyncio.get_running_loop().time() + _PATIENCE_S
    while True:
        answer = await _ask(redis, fence, replicas)
        if answer.written and answer.replicas >= replicas:
            return _with_replicas(answer.promise, replicas)
        if asyncio.get_running_loop().time() >= end:
            raise NotDurableError(_too_few(answer.replicas, replicas) if answer.written else _too_slow())


class _Answer(NamedTuple):
    """Whether it is on disk (or what is promised instead), and how many replicas have it."""

    written: bool
    promise: str
    replicas: int


async def _ask(redis: RedisClient, fence: str, replicas: int) -> _Answer:
    where = {"target_nodes": redis.get_node_from_key(fence)} if is_cluster(redis) else {}
    pipe = redis.pipeline(transaction=False)
    pipe.set(fence, 1, ex=_FENCE_S)
    pipe.execute_command("WAITAOF", 1, 0, _ASK_MS, **where)
    if replicas:
        pipe.execute_command("WAIT", replicas, _ASK_MS, **where)
    written, waited, *had = await pipe.execute(raise_on_error=False)
    for answer in (written, *had):
        if isinstance(answer, Exception):
            raise answer
    reached = int(had[0]) if had else 0
    if isinstance(waited, Exception):
        return _Answer(True, _instead(waited), reached)
    return _Answer(int(waited[0]) >= 1, "", reached)


def _with_replicas(promise: str, replicas: int) -> str:
    return f"{promise}; {replicas} of its replicas have them, too" if promise and replicas else promise


def _too_slow() -> str:
    return (
        f"the jobs are queued, but Redis has not written them to disk in {_PATIENCE_S:.0f} s: look at its disk"
        " (INFO persistence), or submit with --no-durable"
    )


def _too_few(had: int, replicas: int) -> str:
    return (
        f"the jobs are queued, but after {_PATIENCE_S:.0f} s {had} of {replicas} replicas have them: look at Redis'"
        " replicas (INFO replication), or lower TOKENYARD_DURABLE_REPLICAS"
    )


def _instead(error: Exception) -> str:
    """What is promised where the server refused to wait."""
    text = str(error)
    if not isinstance(error, ResponseError) or isinstance(error, RedisConnectionError):
        raise error
    if isinstance(error, NoPermissionError):
        return "this Redis user may not ask whether they are on disk (WAITAOF): they are in Redis' memory"
    if "unknown command" in text:
        return (
            "this Redis cannot say whether they are on disk (7.2 or Valkey can): they are in its memory,"
            " and with `appendonly yes` on disk within about a second"
        )
    if "appendonly" in text:
        return (
            "this Redis keeps no append-only file (`appendonly no`): they are in its memory,"
            " and a crash loses what its last snapshot has not"
        )
    raise error

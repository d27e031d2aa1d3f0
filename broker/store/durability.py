"""Whether what was written is on disk."""

from __future__ import annotations

import asyncio

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


async def on_disk(redis: RedisClient, fence: str) -> str:
    """Wait until all that was written to the server before now is in its append-only file, on disk.

    A key is written and waited for (WAITAOF, Redis 7.2 or Valkey): the file has what was written in its order, so what
    came before it, over whatever connection, is there, too. With ``appendfsync everysec`` it takes up to a second.

    Args:
        redis: the server.
        fence: the key.

    Returns:
        Nothing; or where the server cannot say it, one line on what is promised instead.

    Raises:
        NotDurableError: the disk is too slow.
    """
    where = {"target_nodes": redis.get_node_from_key(fence)} if is_cluster(redis) else {}
    end = asyncio.get_running_loop().time() + _PATIENCE_S
    while asyncio.get_running_loop().time() < end:
        pipe = redis.pipeline(transaction=False)
        pipe.set(fence, 1, ex=_FENCE_S)
        pipe.execute_command("WAITAOF", 1, 0, _ASK_MS, **where)
        written, waited = await pipe.execute(raise_on_error=False)
        if isinstance(written, Exception):
            raise written
        if isinstance(waited, Exception):
            return _instead(waited)
        if int(waited[0]) >= 1:
            return ""
    raise NotDurableError(
        f"the jobs are queued, but Redis has not written them to disk in {_PATIENCE_S:.0f} s: look at its disk"
        " (INFO persistence), or submit with --no-durable"
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

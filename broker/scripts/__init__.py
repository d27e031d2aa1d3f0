"""The Lua scripts, each loaded with the shared moves of ``lib.lua`` before it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

from broker.connection import RedisClient

#: Arguments that carry many values travel as one msgpack string, which Lua unpacks in C.
pack = msgspec.msgpack.Encoder().encode


def text(body: bytes) -> str:
    """A JSON body as text: Redis' msgpack knows no byte strings. What is not UTF-8 is marked, not refused."""
    return body.decode("utf-8", "replace")


def names(found: Sequence[bytes]) -> str:
    """Names from Redis for a line of a log: the first of them, each cut to a bearable length."""
    shown = [repr(name[:100].decode("utf-8", "replace")) for name in found[:20]]
    return ", ".join(shown) + (f" and {len(found) - 20} more" if len(found) > 20 else "")


#: What brings new work is refused where Redis' memory is full (``maxmemory``); what brings work to its end never is:
#: that is what frees memory. (A script is refused as a whole, before its first write.)
_NEEDS_MEMORY = frozenset({"submit", "write_plan"})


@cache
def source(name: str) -> str:
    """The text of a script, shared moves included."""
    folder = files(__name__)
    flags = "" if name in _NEEDS_MEMORY else "#!lua flags=allow-oom\n"
    return flags + (folder / "lib.lua").read_text() + (folder / f"{name}.lua").read_text()


#: A script bound to a connection: ``await script(args=[...])``; what it answers is written in its Lua file.
Script = Callable[..., Awaitable[Any]]


def load(redis: RedisClient, name: str) -> Script:
    """A script bound to a connection; it is sent by its hash, and in full where the server does not have it.

    Its first argument is the prefix of the pool's keys. That is its one declared key, too: it holds the pool's hash
    tag, so a Cluster sends the call where all keys are that the script makes of the prefix.
    """
    script = redis.register_script(source(name))

    async def call(args: Sequence[Any]) -> Any:
        return await script(keys=[args[0]], args=args)

    return call

"""The Lua scripts, each loaded with the shared moves of ``lib.lua`` before it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
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


@cache
def source(name: str) -> str:
    """The text of a script, shared moves included."""
    folder = files(__name__)
    return (folder / "lib.lua").read_text() + (folder / f"{name}.lua").read_text()


#: A script bound to a connection: ``await script(args=[...])``; what it answers is written in its Lua file.
Script = Callable[..., Awaitable[Any]]


def load(redis: RedisClient, name: str) -> Script:
    """A script bound to a connection; it is sent by its hash, and in full where the server does not have it."""
    return redis.register_script(source(name))

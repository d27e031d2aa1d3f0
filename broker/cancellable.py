"""Connections to Redis on which a cancelled call ends as cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import cache
from typing import Any

import redis.exceptions as rex
from redis.asyncio.connection import AbstractConnection


class _Cancellable(AbstractConnection):
    """Bounds the time of a send by ``asyncio.timeout``.

    redis-py bounds it by ``asyncio.wait_for``, which before Python 3.12 drops a cancellation that comes in the moment
    in which what it waits for has ended: the caller goes on as if nobody had cancelled it. It also starts a task for
    each command.
    """

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """Send what is packed.

        Raises:
            redis.exceptions.TimeoutError: the server took it not within ``socket_timeout``.
            redis.exceptions.ConnectionError: it is gone.
        """
        if not self.is_connected:
            await self.connect()
        elif check_health:
            await self.check_health()
        longest_s, self.socket_timeout = self.socket_timeout, None  # None: redis-py takes no wait_for
        try:
            async with asyncio.timeout(longest_s):
                await super().send_packed_command(command, check_health=False)
        except TimeoutError:  # redis-py has dropped the connection: it was cancelled in mid-send
            raise rex.TimeoutError("Timeout writing to socket") from None
        finally:
            self.socket_timeout = longest_s


@cache
def cancellable(connection_class: type[AbstractConnection]) -> Any:
    """The class of connections that is like this one, and cancellable."""
    return type(f"Cancellable{connection_class.__name__}", (_Cancellable, connection_class), {})


def make_cancellable(client: Any) -> Any:
    """The same client; the connections that it opens from now on are cancellable."""
    pool = client.connection_pool
    pool.connection_class = cancellable(pool.connection_class)
    return client

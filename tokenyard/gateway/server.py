"""uvicorn inside a program of ours: its signals stay ours."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.types import ASGIApp

from broker.errors import UsageError

#: Answers under way have so long to end once the gateway is told to stop (seconds).
_GRACE_S = 5


class _QuietServer(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        UsageError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --host or --port") from None


@asynccontextmanager
async def served(app: ASGIApp, listener: socket.socket) -> AsyncGenerator[asyncio.Task[None]]:
    """Serve for the length of the block; what is under way then has a few seconds to end."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # nothing here asks who calls but the key; another layer for each token
        lifespan="off",
        timeout_graceful_shutdown=_GRACE_S,
    )
    server = _QuietServer(config)
    task = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        yield task
    finally:
        server.should_exit = True
        await task

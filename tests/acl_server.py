"""A server that knows the users that ``tokenyard acl`` prints, and a connection as each of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis.exceptions as rex

from broker.acl import Role, acl_line, user_of
from broker.connection import connect

PASSWORD = "right"  # of every user


@dataclass(slots=True)
class AclServer:
    """The server's socket, and what connects to it."""

    socket: Path
    _open: list[Any] = field(default_factory=list[Any])

    def url(self, user: str = "default") -> str:
        """The address with a user's name and password."""
        return f"unix://{user}:{PASSWORD}@{quote(str(self.socket))}"

    def url_of(self, role: Role, tenant: str = "") -> str:
        """The address for a role."""
        return self.url(f"tokenyard-{role.value}" + (f"-{tenant}" if tenant else ""))

    def connect(self, url: str) -> Any:
        """A connection that ends with the server."""
        self._open.append(connect(url))
        return self._open[-1]

    async def close(self) -> None:
        """End the connections."""
        for connection in self._open:
            await connection.aclose()


def users(pool: str, tenants: Sequence[str] = ("default", "acme")) -> list[str]:
    """Lines of an ACL file: every role, and a client of each tenant."""
    found = [user_of(role, [pool]) for role in Role if role is not Role.CLIENT]
    found += [user_of(Role.CLIENT, [pool], tenant=tenant) for tenant in tenants]
    return [acl_line(user, PASSWORD) for user in found]


@contextlib.asynccontextmanager
async def acl_server(binary: Path, folder: Path, pool: str) -> AsyncGenerator[AclServer]:
    """A server for the length of the block, with the users of one pool and an administrator."""
    lines = [f"user default on >{PASSWORD} ~* &* +@all", *users(pool)]
    (folder / "users.acl").write_text("\n".join(lines) + "\n")
    server = AclServer(folder / "s")
    words = ["--port", "0", "--unixsocket", str(server.socket), "--aclfile", str(folder / "users.acl")]
    words += ["--save", "", "--dir", str(folder), "--logfile", str(folder / "log")]
    process = await asyncio.create_subprocess_exec(str(binary), *words)
    try:
        await _answers(server.connect(server.url()))
        yield server
        await server.close()
    finally:
        process.terminate()
        await process.wait()


async def _answers(redis: Any) -> None:
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(rex.ConnectionError):
                await redis.ping()
                return
            await asyncio.sleep(0.02)

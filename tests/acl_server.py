"""A server that knows the users that ``tokenyard acl`` prints, and a connection as each of them."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis.exceptions as rex
from child_processes import start_process
from cluster_fixtures import Cluster

from broker.acl import Role, acl_line, user_of
from broker.client import Client
from broker.connection import connect
from broker.keys import PoolKeys
from broker.store.monitor import MonitorStore
from tokenyard.embedded_server import find_binary

PASSWORD = "right"  # of every user
POOL = "p"
K = PoolKeys(POOL)
#: A batch of the default tenant that the test knows, and one of the tenant acme.
MINE, ACMES = "batch_1", "acme:batch_2"
J = f"{MINE}.x"


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
    process = await start_process(str(binary), *words)
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


def binary_of(name: str) -> Path:
    """The embedded server's program, or that of the installed one; skips where there is none."""
    if name == "valkey":
        return find_binary()
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("no redis-server on this machine")
    return Path(found)


class RoleCluster(Cluster):
    """A cluster in which everyone connects as the user of its role; the test itself is the client."""

    def __init__(self, server: AclServer, **settings: Any) -> None:
        super().__init__(server.url_of(Role.CLIENT), POOL, **settings)
        self._server = server
        self.monitor = MonitorStore(server.connect(server.url_of(Role.MONITOR)), POOL)

    def start(self, name: str, engine: Any) -> Any:
        self.url = self._server.url_of(Role.WORKER)
        return super().start(name, engine)

    def schedule(self, owner: str = "first", **settings: Any) -> Any:
        self.url = self._server.url_of(Role.SCHEDULER)
        return super().schedule(owner, **settings)

    async def register_model_as(self, role: Role) -> None:
        """Make the pool known without a worker."""
        await Client(self._server.connect(self._server.url_of(role)), 60).registry.add_pool(POOL, [self.model])

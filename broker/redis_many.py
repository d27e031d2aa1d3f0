"""Clients of several Redis servers: the master that Sentinels name, or a Cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import redis.exceptions as rex
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import ConnectionPool, parse_url
from redis.asyncio.sentinel import Sentinel

from broker.cancellable import cancellable, make_cancellable
from broker.redis_address import ManyServers, Node


def connect_many(many: ManyServers, options: Mapping[str, Any]) -> Any:
    """A client with pools of connections; nothing is sent yet.

    Args:
        many: which servers.
        options: of every connection.
    """
    found: dict[str, Any] = {**parse_url(many.one)}
    for name in ("host", "port", "connection_class"):
        found.pop(name, None)
    found |= options
    if many.one.startswith("rediss:"):
        found["ssl"] = True
    if many.kind == "cluster":
        found.pop("db", None)
        # "abstract" is what redis-py has no use for: the one pool of connections that single servers have
        return ClusterClient(many.nodes, **found)  # pyright: ignore[reportAbstractUsage]
    tls = {name: value for name, value in found.items() if name.startswith("ssl")}
    sentinel = Sentinel(many.nodes, sentinel_kwargs={**options, **tls, **many.sentinel_options}, **found)
    for one in sentinel.sentinels:
        make_cancellable(one)
    return make_cancellable(sentinel.master_for(many.service))


class ClusterClient(RedisCluster):
    """redis-py's client of a Cluster, which leaves every lost answer to us.

    It would send a call again whose answer got lost: jobs that the first one took would not be seen. It would forget
    the nodes that it started with, and after an outage of all of them find none. And it raises errors that are none of
    Redis'.
    """

    ERRORS_ALLOW_RETRY: tuple[type[Exception], ...] = ()

    def __init__(self, nodes: Sequence[Node], **options: Any) -> None:
        self._first_nodes = tuple(nodes)
        super().__init__(
            startup_nodes=[ClusterNode(host, port) for host, port in nodes],
            require_full_coverage=False,
            cluster_error_retry_attempts=1,  # pipelines want one; commands are not tried again, see above
            connection_error_retry_attempts=0,
            reinitialize_steps=0,
            **options,
        )
        kind = cancellable(self.connection_kwargs["connection_class"])
        self.connection_kwargs["connection_class"] = kind
        for node in self.nodes_manager.startup_nodes.values():
            node.connection_class = kind

    async def initialize(self) -> ClusterClient:
        """Find the nodes, where they are not known or one was lost."""
        known = self.nodes_manager.startup_nodes
        for host, port in self._first_nodes:
            node = ClusterNode(host, port, **self.connection_kwargs)
            known.setdefault(node.name, node)
        try:
            await super().initialize()
        except rex.RedisClusterException as e:
            cause = e.__cause__
            if isinstance(cause, rex.AuthenticationError | rex.AuthorizationError | rex.NoPermissionError):
                raise cause from None
            if "not enabled" in str(e):
                raise rex.ResponseError("it is no Cluster: begin TOKENYARD_REDIS_URL with redis://") from None
            raise rex.ConnectionError(str(e)) from e
        return self

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command where its key is."""
        try:
            return await super().execute_command(*args, **kwargs)
        except rex.SlotNotCoveredError as e:
            raise rex.ConnectionError(str(e)) from e

    async def time_at(self, key: str) -> tuple[int, int]:
        """Seconds and microseconds on the clock of the server that holds ``key``."""
        await self.initialize()
        return await self.execute_command("TIME", target_nodes=self.get_node_from_key(key))

    async def connections_at(self, key: str) -> ConnectionPool:
        """Connections to the server that holds ``key``, for a client of single servers."""
        await self.initialize()
        node = self.get_node_from_key(key)
        if node is None:
            raise rex.ConnectionError(f"no node of the Cluster holds {key}")
        return ConnectionPool(connection_class=node.connection_class, **node.connection_kwargs)

    async def _determine_slot(self, command: str, *args: Any) -> int:
        if command == "XREAD":  # asking the server where its keys are would take a call each time
            return self.keyslot(args[args.index(b"STREAMS") + 1])
        return await super()._determine_slot(command, *args)

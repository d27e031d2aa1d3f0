"""Real redis-server processes of other kinds: nodes of a Cluster, masters with replicas, Sentinels."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from child_processes import bound

HOST = "127.0.0.1"
_PATIENCE_S = 30.0
_HIGHEST_PORT = 20_000  # a Cluster's nodes talk on ports 10,000 higher; what the system gives out by itself is higher
_SLOTS = 16_384
#: No server counts as down because this machine is slow; ``look_for_the_dead`` makes them see what is.
_LATER_MS = 60_000
_NOW_MS = 500


def redis_server() -> str:
    """The installed redis-server; skips where there is none."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server on this machine")
    return binary


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    ports: list[int] = []
    for port in range(11_000 + int(time.monotonic() * 1000) % 8_000, _HIGHEST_PORT):
        if len(ports) == count:
            break
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)):
                ports.append(port)
    return ports


@dataclass(slots=True)
class Server:
    """A server on a port of this machine."""

    port: int
    folder: Path
    words: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    binary: str = ""  # empty: the installed redis-server

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                bound(
                    *(self.binary or redis_server(), *self.words),
                    *("--port", str(self.port), "--dir", self.folder, "--bind", HOST),
                ),
                stdout=log,
                stderr=log,
            )
        wait_for(self.answers, f"the server on port {self.port} answers")

    def kill(self) -> None:
        """``kill -9``."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def answers(self) -> bool:
        """Whether it takes commands."""
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def client(self) -> redis.Redis:
        """A connection of the test's own."""
        return redis.Redis(host=HOST, port=self.port, socket_timeout=5)

    def say(self, *words: str | int) -> object:
        """Run a command; returns the answer."""
        with self.client() as client:
            return client.execute_command(*words)

    def info(self, section: str, name: str) -> object:
        """A field of what INFO tells; None while it cannot tell: a Sentinel ends the connections of a new master."""
        with suppress(redis.RedisError), self.client() as client:
            return client.info(section).get(name)  # type: ignore[union-attr]
        return None


def wait_for(look: object, what: str) -> None:
    """Wait until ``look()`` is true."""
    end = time.monotonic() + _PATIENCE_S
    while not look():  # type: ignore[operator]
        assert time.monotonic() < end, f"did not come true: {what}"
        time.sleep(0.02)


@contextmanager
def running(servers: Sequence[Server]) -> Generator[Sequence[Server]]:
    """These servers for the length of the block."""
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.kill)
            server.start()
        yield servers


@contextmanager
def cluster_nodes(
    folder: Path, masters: int, *, replica_of_each: bool = False, binary: str = ""
) -> Generator[list[Server]]:
    """A Redis Cluster whose masters share the slots, each with a replica if asked for: masters first."""
    count = masters * (1 + replica_of_each)
    words = ("--cluster-enabled", "yes", "--cluster-config-file", "nodes", "--cluster-node-timeout", str(_LATER_MS))
    words += ("--appendonly", "yes", "--save", "")
    nodes = [Server(port, folder / str(port), words, binary=binary) for port in free_ports(count)]
    with running(nodes):
        for number, node in enumerate(nodes[:masters]):
            first, last = number * _SLOTS // masters, (number + 1) * _SLOTS // masters - 1
            node.say("CLUSTER ADDSLOTSRANGE", first, last)
            node.say("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for node in nodes[1:]:
            node.say("CLUSTER MEET", HOST, nodes[0].port)
        for master, replica in zip(nodes, nodes[masters:], strict=False):
            name = master.say("CLUSTER MYID")
            assert isinstance(name, bytes)
            wait_for(lambda r=replica, n=name: n in _known(r), "the replica knows its master")
            replica.say("CLUSTER REPLICATE", name.decode())
            wait_for(lambda r=replica: r.info("replication", "master_link_status") == "up", "it is in step")
        for node in nodes:
            wait_for(lambda n=node: _is_whole(n, count), "the cluster is whole")
        yield nodes


def _known(node: Server) -> bytes:
    return str(node.say("CLUSTER NODES")).encode()


def _is_whole(node: Server, count: int) -> bool:
    answer = node.say("CLUSTER INFO")
    if not isinstance(answer, dict):
        return False
    fields = {str(key): str(value) for key, value in answer.items()}
    return fields["cluster_state"] == "ok" and fields["cluster_known_nodes"] == str(count)


@contextmanager
def master_and_replica(folder: Path, binary: str = "") -> Generator[tuple[Server, Server]]:
    """A master and its replica, in step."""
    ports = free_ports(2)
    kept = ("--appendonly", "yes", "--save", "", "--repl-diskless-sync-delay", "0")
    master = Server(ports[0], folder / "master", kept, binary=binary)
    replica = Server(ports[1], folder / "replica", (*kept, "--replicaof", HOST, str(ports[0])), binary=binary)
    with running([master, replica]):
        wait_for(lambda: replica.info("replication", "master_link_status") == "up", "the replica is in step")
        yield master, replica


@contextmanager
def sentinel_pair(folder: Path, service: str) -> Generator[tuple[Server, Server, Server]]:
    """A master, its replica, and one Sentinel that watches them."""
    ports = free_ports(3)
    kept = ("--appendonly", "yes", "--save", "", "--repl-diskless-sync-delay", "0")
    master = Server(ports[0], folder / "master", kept)
    replica = Server(ports[1], folder / "replica", (*kept, "--replicaof", HOST, str(ports[0])))
    config = folder / "sentinel.conf"
    config.write_text(
        f"sentinel monitor {service} {HOST} {ports[0]} 1\n"
        f"sentinel down-after-milliseconds {service} {_LATER_MS}\n"
        f"sentinel failover-timeout {service} 5000\n"
    )
    sentinel = Server(ports[2], folder / "sentinel", (str(config), "--sentinel"))
    with running([master, replica, sentinel]):
        wait_for(lambda: replica.info("replication", "master_link_status") == "up", "the replica is in step")
        wait_for(lambda: _replicas(sentinel, service) == 1, "the Sentinel knows the replica")
        yield master, replica, sentinel


def look_for_the_dead(watchers: Sequence[Server], service: str = "") -> None:
    """Let Sentinels (of that service), or a Cluster's nodes, notice soon who does not answer."""
    for watcher in watchers:
        if service:
            watcher.say("SENTINEL", "SET", service, "down-after-milliseconds", _NOW_MS)
        else:
            watcher.say("CONFIG SET", "cluster-node-timeout", 2 * _NOW_MS)


def hand_on(master: Server, replica: Server) -> None:
    """Wait until the replica has all that the master has by now."""
    offset = master.info("replication", "master_repl_offset")
    assert isinstance(offset, int)

    def has_it() -> bool:
        there = replica.info("replication", "slave_repl_offset")
        return isinstance(there, int) and there >= offset

    wait_for(has_it, "the replica has what its master has")


def _replicas(sentinel: Server, service: str) -> int:
    with sentinel.client() as client:
        masters = client.sentinel_masters()
        return int(masters[service]["num-slaves"])  # type: ignore[index]

"""A Redis server that can be killed, stopped, starved, replaced by its replica, and lied to about the time."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import struct
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import redis.exceptions as rex

from benchmarks.chaotic.clock import compile_clock
from benchmarks.cluster import BenchmarkError
from broker.connection import connect
from tokenyard.embedded_server import GUARD, find_binary

HOST = "127.0.0.1"
_POLL_S = 0.02
_PATIENCE_S = 60.0


class RedisProcess:
    """One server on one port, whatever process it is just now."""

    def __init__(self, folder: Path, port: int, fsync: str, *, embedded: bool) -> None:
        """Say what to start.

        Args:
            folder: for its data, and that of its replicas.
            port: where it always is.
            fsync: ``everysec`` or ``always``.
            embedded: the embedded server, also where a redis-server is installed.
        """
        installed = None if embedded else shutil.which("redis-server")
        self.binary = installed or str(find_binary())
        self.url = f"redis://{HOST}:{port}/0"
        self.faulty = asyncio.Lock()  # held while a fault of the server is under way: one at a time
        self._folder = folder
        self._port = port
        self._fsync = fsync
        self._data = folder / "data-0"
        self._generation = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._clock = folder / "clock"
        self._clock.write_bytes(struct.pack("d", 0.0))
        self._clock_library = compile_clock(folder)
        self.client: Any = connect(self.url)

    @property
    def clock_can_jump(self) -> bool:
        """Whether there is a C compiler to make that so."""
        return self._clock_library is not None

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._process is not None, "start() comes first"
        return self._process.pid

    async def start(self) -> None:
        """Start it on its data, and wait until it answers."""
        self._process = self._spawn(self._data, self._port)
        await until_answers(self.client, self._process)

    def kill(self) -> None:
        """``kill -9``."""
        assert self._process is not None, "start() comes first"
        self._process.kill()
        self._process.wait()

    def send(self, what: signal.Signals) -> None:
        """Stop or resume it."""
        os.kill(self.pid, what)

    async def restart(self) -> None:
        """Start it again on the file that the killed one wrote."""
        await self.start()

    async def end(self) -> None:
        """End it for good."""
        await self.client.aclose()
        if self._process is not None:
            with suppress(ProcessLookupError):
                self.send(signal.SIGCONT)
            self.kill()

    async def replace(self) -> None:
        """Make a replica, bring it in step, kill the master, promote the replica and give it the master's port.

        Writes wait while the replica catches up, as in a switch-over by hand: Redis replicates asynchronously, and what
        a replica does not have when its master dies is lost.
        """
        self._generation += 1
        data, port = self._folder / f"data-{self._generation}", free_port()
        process = self._spawn(data, port, "--replicaof", HOST, str(self._port))
        replica = connect(f"redis://{HOST}:{port}/0")
        try:
            await until_answers(replica, process)
            await _until(lambda: _in_step(replica))
            await self.client.execute_command("CLIENT PAUSE", 2000, "WRITE")
            await _until(lambda: _same_offset(self.client, replica))
            self.kill()
            await replica.execute_command("REPLICAOF", "NO", "ONE")
            self._process, self._data = process, data
            await _until(lambda: _takes_port(replica, self._port))
        finally:
            await replica.aclose()
        await until_answers(self.client, process)

    async def limit_memory(self, share: float) -> None:
        """Allow that share of what it uses; 0: as much as it wants."""
        used = (await self.client.info("memory"))["used_memory"]
        await self.client.execute_command("CONFIG SET", "maxmemory", int(used * share))

    def limit_files(self, *, full: bool) -> None:
        """Let no file of it grow any more, as on a full disk; or all as they like."""
        sizes = [path.stat().st_size for path in self._data.glob("appendonlydir/*.aof")]
        unlimited = psutil.RLIM_INFINITY
        soft = max(sizes, default=0) if full else unlimited
        with suppress(psutil.NoSuchProcess):
            psutil.Process(self.pid).rlimit(psutil.RLIMIT_FSIZE, (soft, unlimited))

    def move_clock(self, seconds: float) -> None:
        """Let it believe that it is so much later than it is (negative: earlier)."""
        with self._clock.open("r+b") as file:
            file.write(struct.pack("d", seconds))

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def memory_mb(self) -> float:
        """Resident memory."""
        return psutil.Process(self.pid).memory_info().rss / 2**20

    def _spawn(self, data: Path, port: int, *words: str) -> subprocess.Popen[bytes]:
        data.mkdir(exist_ok=True)
        settings = ("--appendonly", "yes", "--appendfsync", self._fsync, "--save", "", "--bind", HOST)
        more = ("--port", str(port), "--dir", str(data), "--repl-diskless-sync-delay", "0")
        environment = dict(os.environ)
        if self._clock_library is not None:
            environment |= {"LD_PRELOAD": str(self._clock_library), "FAKE_CLOCK": str(self._clock)}
        with (self._folder / "redis.log").open("ab") as log:
            return subprocess.Popen(
                # What would kill it when it reaches the limit of a file's size is an error to it instead.
                ["/bin/sh", "-c", f"trap '' XFSZ; {GUARD}", "sh", self.binary, *settings, *more, *words],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )


async def until_answers(client: Any, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server takes commands.

    Raises:
        BenchmarkError: it ended, or takes too long.
    """

    async def answers() -> bool:
        if process.poll() is not None:
            raise BenchmarkError("the Redis server ended: see redis.log in the run's folder")
        return bool(await client.ping())

    await _until(answers)


async def _until(look: Any) -> None:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                with suppress(rex.RedisError, OSError):
                    if await look():
                        return
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise BenchmarkError(f"the Redis server did not do within {_PATIENCE_S:.0f} s what it should") from None


async def _in_step(replica: Any) -> bool:
    return (await replica.info("replication")).get("master_link_status") == "up"


async def _same_offset(master: Any, replica: Any) -> bool:
    ours = (await master.info("replication"))["master_repl_offset"]
    return (await replica.info("replication")).get("slave_repl_offset") == ours


async def _takes_port(server: Any, port: int) -> bool:
    return bool(await server.execute_command("CONFIG SET", "port", port))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])

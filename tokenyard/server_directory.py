"""What the embedded server keeps on disk: its directory, lock, password, socket, settings and log."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import stat
import tempfile
from collections.abc import AsyncIterator, Generator
from pathlib import Path

from broker.errors import RedisUnavailableError

LOCK_TIMEOUT_S = 2.0  # a server whose parent was killed is still writing its last bytes
SOCKET_PATH_BYTES = 100  # the systems' limit lies between 104 (macOS) and 108 (Linux)

# What lets one client change, crash or stop the server under everyone's jobs (ACL: or grant itself the rest).
DENIED = "-config -module -debug -acl -replicaof -slaveof -shutdown"

DAMAGED = re.compile("append only file|aof manifest|aof loading aborted|load the aof|loading the db", re.IGNORECASE)


class EmbeddedServerError(RedisUnavailableError):
    """The embedded server cannot start; the message says why and what to do."""


class ServerDirectory:
    """The files of one embedded server. Every error of the file system is an ``EmbeddedServerError``."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.log = self.path / "server.log"
        self.config = self.path / "server.conf"
        self.password_file = self.path / "password"

    @property
    def socket(self) -> Path:
        """The server's Unix socket. Derived from the directory's name, so every process finds the same."""
        path = self.path / "server.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
            return path
        name = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"tokenyard-{os.getuid()}" / f"{name}.sock"

    def prepare(self) -> None:
        """Make the directory, and where its path is too long for a socket, a private folder for that."""
        with self._file_errors():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = self.socket.parent
            if folder == self.path:
                return
            folder.mkdir(mode=0o700, exist_ok=True)
            # The temporary directory is everyone's: someone else may have put a folder of that name there first.
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
                raise EmbeddedServerError(
                    f"{folder} is not a private folder of yours: remove it, or choose a data directory whose"
                    f" path is shorter than {SOCKET_PATH_BYTES - len('/server.sock')} bytes"
                )

    async def lock(self) -> int:
        """Take the directory for one server; returns the file descriptor whose closing gives it back."""
        with self._file_errors():
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        async for _ in attempts(LOCK_TIMEOUT_S):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return fd
        holder = os.pread(fd, 32, 0).decode().strip() or "unknown"
        os.close(fd)
        raise EmbeddedServerError(
            f"The data directory {self.path} is in use by the server with process id {holder}:"
            " stop what started it, or choose another directory"
        )

    def read_password(self) -> str:
        """The password of the server's port, as the last start left it."""
        with self._file_errors():
            return self.password_file.read_text().strip()

    def ensure_password(self, given: str | None) -> None:
        """Keep the given password, or else the one that is there, or else a new one."""
        with self._file_errors():
            if given is not None:
                _write_private(self.password_file, given + "\n")
            elif not self.password_file.exists():
                _write_private(self.password_file, secrets.token_urlsafe(24) + "\n")

    def write_config(self, host: str, port: int | None) -> None:
        """Write the server's settings; they hold the password's hash only."""
        if port is None:
            # The socket is its owner's alone, so it asks for no password.
            credential = "nopass"
            listen = ["port 0", f"unixsocket {_quoted(self.socket)}", "unixsocketperm 700"]
        else:
            credential = "#" + hashlib.sha256(self.read_password().encode()).hexdigest()
            listen = [f"port {port}", f"bind {host}"]
        lines = [
            *listen,
            f"user default on {credential} ~* &* +@all {DENIED}",
            f"dir {_quoted(self.path)}",
            "daemonize no",
            'logfile ""',
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
        ]
        with self._file_errors():
            _write_private(self.config, "\n".join(lines) + "\n")

    def log_size(self) -> int:
        """Bytes in the log so far."""
        return self.log.stat().st_size if self.log.exists() else 0

    def start_failure(self, log_start: int, address: str) -> EmbeddedServerError:
        """Why the server ended while it started, from what it wrote to the log after ``log_start`` bytes."""
        with self.log.open("rb") as log:
            log.seek(log_start)
            said = log.read().decode(errors="replace")
        if "address already in use" in said.lower():
            return EmbeddedServerError(f"{address} is in use by another program: choose another port")
        if DAMAGED.search(said):
            return EmbeddedServerError(
                f"The data in {self.path} is damaged, or of a newer server: see the end of {self.log},"
                " then restore that directory from a copy or choose another"
            )
        return EmbeddedServerError(f"The embedded server ended while it started: see the end of {self.log}")

    @contextlib.contextmanager
    def _file_errors(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise EmbeddedServerError(
                f"The data directory {self.path} cannot be used ({error.strerror}): choose one you can write to"
            ) from error


async def attempts(timeout_s: float) -> AsyncIterator[None]:
    """Yields at once, then after growing pauses, until ``timeout_s`` seconds are over."""
    loop = asyncio.get_running_loop()
    end, pause = loop.time() + timeout_s, 0.005
    while True:
        yield
        if loop.time() >= end:
            return
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.2)


def _write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        os.fchmod(file.fileno(), 0o600)  # the file may be older than this rule
        file.write(text)


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'

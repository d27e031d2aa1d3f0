"""The embedded server: what it keeps, what it refuses, how it ends, and what it says when it cannot start."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, ResponseError

from broker.errors import UsageError
from tokenyard import embedded_server, server_directory
from tokenyard.embedded_server import EmbeddedServer
from tokenyard.server_directory import EmbeddedServerError


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer(tmp_path / "data") as running:
        yield running


@pytest.fixture
def short_tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A system temporary directory of our own; pytest's paths are too long for a socket."""
    with tempfile.TemporaryDirectory(prefix="ty") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def start_error(server: EmbeddedServer) -> str:
    with pytest.raises(EmbeddedServerError) as caught:
        await server.start()
    assert server.pid is None
    message = str(caught.value)
    assert "\n" not in message
    return message


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def running_pid(server: EmbeddedServer) -> int:
    pid = server.pid
    assert pid is not None
    return pid


async def test_what_was_synced_survives_a_kill(server: EmbeddedServer) -> None:
    async with Redis.from_url(server.url) as redis:
        for number in range(200):
            await redis.xadd("stream", {"number": number})
        assert await redis.execute_command("WAITAOF", 1, 0, 10_000) == [1, 0]
    os.kill(running_pid(server), signal.SIGKILL)
    async for _ in server_directory.attempts(10):
        if server.pid is None:
            break

    await server.start()
    async with Redis.from_url(server.url) as redis:
        entries = await redis.xrange("stream")
    assert [int(fields[b"number"]) for _, fields in entries] == list(range(200))


async def test_everything_survives_a_stop(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path) as first, Redis.from_url(first.url) as redis:
        await redis.set("key", "value")
    async with EmbeddedServer(tmp_path) as second, Redis.from_url(second.url) as redis:
        assert await redis.get("key") == b"value"


async def test_keeps_an_append_only_file_and_never_evicts(server: EmbeddedServer) -> None:
    async with Redis.from_url(server.url) as redis:
        info = await redis.info()
    assert info["aof_enabled"] == 1
    assert info["maxmemory_policy"] == "noeviction"


@pytest.mark.parametrize(
    "command",
    [
        "CONFIG GET dir",
        "CONFIG SET tls-port 1",
        "MODULE LIST",
        "DEBUG SLEEP 0",
        "ACL SETUSER default +@all",
        "REPLICAOF 127.0.0.1 1",
        "SHUTDOWN NOSAVE",
    ],
)
async def test_clients_cannot_change_or_stop_it(any_redis_url: str, command: str) -> None:
    async with Redis.from_url(any_redis_url) as redis:
        with pytest.raises(ResponseError):
            await redis.execute_command(*command.split())
        assert await redis.ping()


async def test_its_socket_is_its_owners_alone(server: EmbeddedServer) -> None:
    async with Redis.from_url(server.url) as redis:
        assert (await redis.info("server"))["tcp_port"] == 0
    path = server.data_dir / "server.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert server.redis_cli_hint == f"redis-cli -s {path}"


async def test_odd_characters_in_the_path(tmp_path: Path) -> None:
    folder = tmp_path / 'a "b" %2F\\ü'
    async with EmbeddedServer(folder) as server, Redis.from_url(server.url) as redis:
        assert await redis.ping()
    assert (folder / "appendonlydir").is_dir()


async def test_a_long_path_gets_a_short_private_socket(tmp_path: Path, short_tmp: Path) -> None:
    data_dir = tmp_path / ("long" * 30)
    async with EmbeddedServer(data_dir) as server, Redis.from_url(EmbeddedServer(data_dir).url) as redis:
        assert await redis.ping()
        assert str(short_tmp) in server.url
    assert stat.S_IMODE((short_tmp / f"tokenyard-{os.getuid()}").stat().st_mode) == 0o700


async def test_a_socket_folder_open_to_others_is_refused(tmp_path: Path, short_tmp: Path) -> None:
    folder = short_tmp / f"tokenyard-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o755)
    assert str(folder) in await start_error(EmbeddedServer(tmp_path / ("long" * 30)))


async def test_a_port_asks_for_the_password(tmp_path: Path) -> None:
    port = free_port()
    async with EmbeddedServer(tmp_path, port=port) as server:
        async with Redis(port=port) as redis:
            with pytest.raises(AuthenticationError):
                await redis.ping()
        async with Redis.from_url(server.url) as redis:
            assert await redis.ping()
        kept = server.url
        password = (tmp_path / "password").read_text().strip()
        assert stat.S_IMODE((tmp_path / "password").stat().st_mode) == 0o600
        tree = [psutil.Process(running_pid(server)), *psutil.Process(running_pid(server)).children()]
        assert all(password not in " ".join(process.cmdline()) for process in tree)
        assert password not in server.redis_cli_hint
    async with EmbeddedServer(tmp_path, port=port) as server:
        assert server.url == kept


async def test_a_given_password_may_hold_any_character(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path, port=free_port(), password='p@ss/:"# ü')
    async with server, Redis.from_url(server.url) as redis:
        assert await redis.ping()


def test_a_password_without_a_port_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        EmbeddedServer(tmp_path, password="secret")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_an_address_that_others_reach_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(UsageError, match="listens on this machine only"):
        EmbeddedServer(tmp_path, port=free_port(), host=host)


async def test_its_port_is_bound_to_loopback_alone(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path, port=free_port(), host="localhost") as server:
        tree = [psutil.Process(running_pid(server)), *psutil.Process(running_pid(server)).children()]
        bound = {c.laddr.ip for p in tree for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        assert bound
        assert bound <= {"127.0.0.1", "::1"}


async def test_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"Port {port}" in await start_error(EmbeddedServer(tmp_path, port=port))


async def test_data_directory_in_use(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_directory, "LOCK_TIMEOUT_S", 0.1)
    message = await start_error(EmbeddedServer(server.data_dir))
    assert f"process id {server.pid}:" in message
    async with Redis.from_url(server.url) as redis:
        assert await redis.ping()


@pytest.mark.parametrize("path", ["file", "file/below"])
async def test_data_directory_that_cannot_be_used(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / path) in await start_error(EmbeddedServer(tmp_path / path))


async def test_no_server_for_this_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_server, "find_spec", lambda name: None)
    assert "TOKENYARD_REDIS_URL" in await start_error(EmbeddedServer(tmp_path))


@pytest.mark.parametrize(
    ("pattern", "garbage"), [("*.incr.aof", b"*x\r\n"), ("*.base.rdb", b"x"), ("*.manifest", b"x")]
)
async def test_damaged_data(tmp_path: Path, pattern: str, garbage: bytes) -> None:
    async with EmbeddedServer(tmp_path) as server, Redis.from_url(server.url) as redis:
        await redis.set("key", "value")
    (file,) = (tmp_path / "appendonlydir").glob(pattern)
    file.write_bytes(garbage + file.read_bytes())
    message = await start_error(EmbeddedServer(tmp_path))
    assert "damaged" in message
    assert str(tmp_path / "server.log") in message


async def test_stop_ends_all_its_processes_and_may_be_called_twice(server: EmbeddedServer) -> None:
    pid = running_pid(server)
    assert os.getsid(pid) == pid != os.getsid(0), "Ctrl-C in our terminal must not reach the server"
    family = [psutil.Process(pid), *psutil.Process(pid).children()]
    assert len(family) == 2
    await server.stop()
    await server.stop()
    assert server.pid is None
    async for _ in server_directory.attempts(10):
        if not any(is_alive(process) for process in family):
            return
    pytest.fail(f"still there: {family}")


async def test_stop_ends_a_server_that_hangs(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_server, "STOP_TIMEOUT_S", 0.1)
    process = psutil.Process(running_pid(server))
    process.suspend()
    await server.stop()
    assert not process.is_running()


async def test_the_server_dies_with_a_killed_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"""
import asyncio, pathlib, time
from tokenyard.embedded_server import EmbeddedServer
server = EmbeddedServer(pathlib.Path({str(tmp_path)!r}))
asyncio.run(server.start())
print(server.pid, flush=True)
time.sleep(600)
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    orphan = psutil.Process(int(await parent.stdout.readline()))
    async with Redis.from_url(EmbeddedServer(tmp_path).url) as redis:
        await redis.set("key", "value")
    orphan.suspend()
    parent.kill()
    await parent.wait()

    try:
        with monkeypatch.context() as patch:
            patch.setattr(server_directory, "LOCK_TIMEOUT_S", 0.1)
            assert f"process id {orphan.pid}:" in await start_error(EmbeddedServer(tmp_path))
    finally:
        orphan.resume()
    # The next server gets the directory's lock only when the first is gone.
    async with EmbeddedServer(tmp_path) as server, Redis.from_url(server.url) as redis:
        assert await redis.get("key") == b"value"

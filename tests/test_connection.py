"""Connections: every error of Redis as one clear line, and going on when it comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions as rex
from cluster_fixtures import eventually
from redis.asyncio.connection import Connection

from broker.cancellable import cancellable
from broker.connection import address, connect, connected, is_cluster, keep_trying, translate
from broker.errors import RedisRefusedError, RedisUnavailableError, TokenyardError
from tokenyard.embedded_server import EmbeddedServer

PASSWORD = "hush-hush"


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[str]:
    """host:port of a server that asks for a password."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with EmbeddedServer(tmp_path / "data", port=port, password=PASSWORD):
        yield f"127.0.0.1:{port}"


async def refusal(url: str) -> TokenyardError:
    """The error that connecting ends with: one line, and no password in it."""
    with pytest.raises(TokenyardError) as caught:
        async with connected(url):
            pass
    assert "\n" not in str(caught.value)
    assert PASSWORD not in str(caught.value)
    return caught.value


class TestAddresses:
    @pytest.mark.parametrize(
        "url", ["", "localhost:6379", "http://localhost", "redis://host:port/0", "redis://h:99999999"]
    )
    async def test_what_is_no_address_is_said_to_be_none(self, url: str) -> None:
        error = await refusal(url)
        assert isinstance(error, RedisUnavailableError)
        assert "TOKENYARD_REDIS_URL" in str(error)

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            (f"redis://:{PASSWORD}@host:1234/2", "redis://host:1234/2"),
            (f"rediss://user:{PASSWORD}@host/0", "rediss://host:6379/0"),
            ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock"),
        ],
    )
    def test_it_is_shown_without_its_password(self, url: str, shown: str) -> None:
        assert address(url) == shown


class TestErrors:
    async def test_nobody_there(self, tmp_path: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for url in (f"redis://:{PASSWORD}@127.0.0.1:{port}/0", f"unix://{tmp_path}/none.sock"):
            error = await refusal(url)
            assert isinstance(error, RedisUnavailableError)
            assert error.exit_code == 4
            assert "is it running" in str(error)
            assert address(url) in str(error)

    async def test_a_host_that_does_not_exist(self) -> None:
        assert isinstance(await refusal("redis://no-such-host.invalid:6379/0"), RedisUnavailableError)

    @pytest.mark.parametrize("credentials", ["", ":wrong@", "somebody:else@"])
    async def test_a_wrong_or_missing_password(self, guarded: str, credentials: str) -> None:
        error = await refusal(f"redis://{credentials}{guarded}/0")
        assert isinstance(error, RedisRefusedError)
        assert "needs a password, or refused the one it got" in str(error)
        assert "wrong" not in str(error)

    async def test_the_right_password(self, guarded: str) -> None:
        async with connected(f"redis://:{PASSWORD}@{guarded}/0") as redis:
            assert await redis.ping()

    async def test_a_command_that_this_user_may_not_use(self, guarded: str) -> None:
        with pytest.raises(RedisRefusedError, match="does not permit this user"):
            async with connected(f"redis://:{PASSWORD}@{guarded}/0") as redis:
                await redis.config_get("*")

    async def test_a_command_that_is_wrong(self, redis_url: str) -> None:
        with pytest.raises(RedisRefusedError, match="refused: WRONGTYPE"):
            async with connected(redis_url) as redis:
                await redis.set("test-connection", "a string", ex=60)
                await redis.hgetall("test-connection")

    async def test_the_server_goes_away_under_it(self, tmp_path: Path) -> None:
        async with EmbeddedServer(tmp_path / "data") as server:
            with pytest.raises(RedisUnavailableError, match="cannot reach Redis"):
                async with connected(server.url) as redis:
                    assert server.pid is not None
                    os.kill(server.pid, signal.SIGKILL)
                    await eventually(lambda: server.pid is None)
                    await redis.ping()

    @pytest.mark.parametrize(
        "error", [FileNotFoundError("out.jsonl"), TimeoutError(), KeyError("x"), TokenyardError("m")]
    )
    async def test_errors_that_are_not_of_redis_stay_what_they_are(self, redis_url: str, error: Exception) -> None:
        with pytest.raises(type(error)) as caught:
            async with connected(redis_url):
                raise error
        assert caught.value is error

    @pytest.mark.parametrize(
        ("error", "kind", "says"),
        [
            (rex.OutOfMemoryError("command not allowed"), RedisRefusedError, "out of memory"),
            (
                rex.ResponseError("OOM command not allowed when used memory > 'maxmemory'"),
                RedisRefusedError,
                "out of memory",
            ),
            (rex.BusyLoadingError("loading"), RedisUnavailableError, "still loading"),
            (rex.NoPermissionError("no"), RedisRefusedError, "does not permit"),
            (rex.AuthenticationError("no"), RedisRefusedError, "password"),
            (rex.ResponseError("NOAUTH Authentication required."), RedisRefusedError, "password"),
            (rex.TimeoutError("slow"), RedisUnavailableError, "is it running"),
            (rex.ConnectionError(""), RedisUnavailableError, "ConnectionError"),
            (rex.ResponseError("ERR something"), RedisRefusedError, "ERR something"),
        ],
    )
    def test_each_kind_says_what_to_do(self, error: Exception, kind: type[TokenyardError], says: str) -> None:
        translated = translate(error, "redis://here")
        assert type(translated) is kind
        assert says in str(translated)
        assert "redis://here" in str(translated)


class Step:
    """Fails with these errors in turn, then succeeds."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)


class TestKeepTrying:
    @pytest.mark.parametrize(
        "error",
        [
            rex.ConnectionError("x"),
            rex.TimeoutError("x"),
            rex.ReadOnlyError("x"),
            rex.OutOfMemoryError("x"),
            rex.ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed"),
            rex.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"),
            ConnectionResetError(),
        ],
    )
    async def test_it_tries_until_it_succeeds_and_reports_an_outage_once(self, error: Exception) -> None:
        step, reports = Step(*[error] * 5), list[str]()
        await keep_trying(step, reports.append, first_s=0)
        assert step.calls == 6
        assert len(reports) == 1

    @pytest.mark.parametrize(
        "error",
        [
            rex.AuthenticationError("x"),
            rex.AuthorizationError("x"),
            rex.NoPermissionError("x"),
            rex.ResponseError("x"),
            ValueError("x"),
        ],
    )
    async def test_what_does_not_pass_leaves_at_once(self, error: Exception) -> None:
        step, reports = Step(error), list[str]()
        with pytest.raises(type(error)):
            await keep_trying(step, reports.append, first_s=0)
        assert (step.calls, reports) == (1, [])

    async def test_an_outage_after_a_time_that_worked_is_reported_again_and_begins_with_short_waits(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 0.0
        most: list[float] = []

        async def no_sleep(seconds: float) -> None:
            del seconds

        def uniform(low: float, high: float) -> float:
            most.append(high)
            return low

        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
        monkeypatch.setattr(asyncio, "sleep", no_sleep)
        monkeypatch.setattr("random.uniform", uniform)
        calls, reports = 0, list[str]()

        async def step() -> None:
            nonlocal calls, now
            calls += 1
            if calls == 5:
                now += 100  # worked for a while
            if calls < 8:
                raise rex.ConnectionError("away")

        await keep_trying(step, reports.append, first_s=1, longest_s=3)
        assert most == [1, 2, 3, 3, 1, 2, 3]
        assert len(reports) == 2

    async def test_cancelling_ends_it(self) -> None:
        async def step() -> None:
            raise rex.ConnectionError

        task = asyncio.ensure_future(keep_trying(step, lambda text: None))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_nothing_is_sent_before_it_is_used(tmp_path: Path) -> None:
    await connect(f"unix://{tmp_path}/none.sock").aclose()


class TestCancelling:
    async def test_a_cancelled_call_ends_as_cancelled_at_whatever_moment(self, any_redis_url: str) -> None:
        client = connect(any_redis_url)
        try:
            await client.ping()
            cancelled = 0
            for steps in range(12):
                calling = asyncio.ensure_future(client.ping())
                for _ in range(steps):
                    await asyncio.sleep(0)
                asked = calling.cancel()
                await asyncio.wait([calling])
                assert calling.cancelled() == asked, f"cancelled after {steps} steps of the event loop"
                cancelled += asked
            assert cancelled > 2
            assert await client.ping()
        finally:
            await client.aclose()

    async def test_a_server_that_takes_nothing_is_a_time_out(self) -> None:
        deaf = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = deaf.sockets[0].getsockname()[1]
        greeting: dict[str, Any] = {"lib_name": None, "lib_version": None}  # none: connecting sends nothing
        connection = cancellable(Connection)(port=port, socket_timeout=0.05, **greeting)
        try:
            await connection.connect()
            with pytest.raises(rex.TimeoutError, match="writing"):
                await connection.send_packed_command([b"x" * 65536] * 1024)
            assert connection.socket_timeout == 0.05
            assert not connection.is_connected
        finally:
            await connection.disconnect(nowait=True)
            deaf.close()

    @pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+sentinel", "redis+cluster", "rediss+cluster"])
    def test_whatever_the_servers(self, scheme: str) -> None:
        client = connect(f"{scheme}://host:6379" + ("/main" if "sentinel" in scheme else ""))
        holders = client.nodes_manager.startup_nodes.values() if is_cluster(client) else [client.connection_pool]
        assert [holder.connection_class.__name__[:11] for holder in holders] == ["Cancellable"]

"""Servers shared by all tests: one for each test run. A test keeps to its own pool's keys."""

from __future__ import annotations

import asyncio
import shutil
import signal
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from child_processes import kill_left_over
from hypothesis import HealthCheck, settings
from move_fixtures import desk_fixture as desk_fixture
from race_fixtures import race_fixture as race_fixture

from tokenyard.embedded_server import EmbeddedServer

# A slow machine is no failure, nor is a test that takes long on it.
settings.register_profile("tokenyard", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tokenyard")
# In the background of a shell we ignore Ctrl-C, and so would the programs that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _serve(data_dir: Path, binary: Path | None = None) -> Iterator[str]:
    server = EmbeddedServer(data_dir, binary=binary)
    asyncio.run(server.start())
    yield server.url
    asyncio.run(server.stop())


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The embedded server."""
    yield from _serve(tmp_path_factory.mktemp("valkey"))


@pytest.fixture(scope="session")
def system_redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The redis-server that the machine has installed; skips where there is none."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server on this machine")
    yield from _serve(tmp_path_factory.mktemp("redis"), Path(binary))


@pytest.fixture(params=["redis_url", "system_redis_url"])
def any_redis_url(request: pytest.FixtureRequest) -> str:
    """Each server in turn, for tests of what must hold on all of them."""
    url: str = request.getfixturevalue(request.param)
    return url


@pytest.fixture(autouse=True)
def no_process_outlives_its_test() -> Iterator[None]:
    """A test that fails may leave processes."""
    yield
    kill_left_over()


@pytest.fixture
def pool() -> str:
    """A pool no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"

"""Redis with TLS: a real server with a certificate of its own, which clients check."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from child_processes import bound
from cluster_fixtures import cluster_of, eventually, exactly_once, instant_engine

from broker.connection import connected
from broker.errors import RedisUnavailableError, UsageError
from broker.redis_address import tls_options, with_options
from broker.settings import load_settings


def _openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=60)


def make_certificates(folder: Path) -> None:
    """``ca.crt``; ``NAME.crt`` and ``NAME.key`` of the server (for localhost), of a client, and of another host."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    _openssl(folder, "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=test ca")
    for name, host in (("server", "localhost"), ("client", "client"), ("other", "elsewhere.example")):
        (folder / "ext").write_text(f"subjectAltName=DNS:{host}\n")
        _openssl(folder, "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={host}")
        sign = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "ext"]
        _openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *sign)


@dataclass(frozen=True, slots=True)
class TlsServer:
    """A server that wants certificates from its clients, and another whose certificate names another host."""

    folder: Path
    port: int
    other_port: int

    def settings(self, port: int = 0, **fields: str) -> dict[str, str]:
        """Environment of a process that is to reach it; without the prefix of the names."""
        url = f"rediss://:secret@localhost:{port or self.port}/0"
        files = {"CA_FILE": "ca.crt", "CERT_FILE": "client.crt", "KEY_FILE": "client.key"}
        return {"URL": url} | {name: str(self.folder / file) for name, file in files.items()} | fields


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    binary = shutil.which("redis-server")
    if binary is None or shutil.which("openssl") is None:
        pytest.skip("no redis-server, or no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder)
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(_serve(binary, folder, name)) for name in ("server", "other")]
        yield TlsServer(folder, *ports)


@contextlib.contextmanager
def _serve(binary: str, folder: Path, name: str) -> Generator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--port", "0", "--bind", "127.0.0.1", "--tls-port", str(port), "--requirepass", "secret", "--save", ""]
    words += ["--tls-cert-file", f"{name}.crt", "--tls-key-file", f"{name}.key", "--tls-ca-cert-file", "ca.crt"]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(bound(binary, *words), cwd=folder, stdout=log, stderr=log)
    try:
        asyncio.run(eventually(lambda: _listens(port) or process.poll() is not None))
        if process.poll() is not None:
            pytest.skip("redis-server was built without TLS")
        yield port
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def url(server: TlsServer, monkeypatch: pytest.MonkeyPatch) -> str:
    return url_by(server.settings(), monkeypatch)


def url_by(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The address that these settings come to."""
    for name, value in settings.items():
        monkeypatch.setenv(f"TOKENYARD_REDIS_{name}", value)
    found = load_settings().redis_url
    assert found is not None
    return found.get_secret_value()


async def test_a_cluster_runs_over_tls(url: str, pool: str) -> None:
    async with cluster_of(url, pool) as cluster:
        cluster.schedule()
        await cluster.join("w", instant_engine(cluster.model))
        exactly_once(await cluster.collect(await cluster.submit(20)), 20)


async def test_a_client_without_a_certificate_is_refused(server: TlsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {name: value for name, value in server.settings().items() if name in ("URL", "CA_FILE")}
    with pytest.raises(RedisUnavailableError, match=f"cannot reach Redis at rediss://localhost:{server.port}/0"):
        async with connected(url_by(settings, monkeypatch)):
            pytest.fail("it was let in")


async def test_a_server_signed_by_nobody_we_know_is_refused(server: TlsServer) -> None:
    with pytest.raises(RedisUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
        async with connected(server.settings()["URL"]):
            pytest.fail("it was believed")


async def test_the_certificate_of_another_host_is_refused(server: TlsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RedisUnavailableError, match=r"(?i)hostname"):
        async with connected(url_by(server.settings(server.other_port), monkeypatch)):
            pytest.fail("it was believed")


async def test_without_tls_the_port_is_closed_to_us(server: TlsServer) -> None:
    with pytest.raises(RedisUnavailableError):
        async with connected(f"redis://:secret@localhost:{server.port}/0"):
            pytest.fail("it spoke without TLS")


def test_a_file_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"none\.crt is not a file: correct TOKENYARD_REDIS_CA_FILE"):
        url_by({"URL": "rediss://h:1/0", "CA_FILE": "none.crt"}, monkeypatch)


def test_certificates_without_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.crt").write_text("")
    with pytest.raises(UsageError, match="begin TOKENYARD_REDIS_URL with rediss://"):
        url_by({"URL": "redis://h:1/0", "CA_FILE": str(tmp_path / "ca.crt")}, monkeypatch)


def test_options_replace_those_of_the_address() -> None:
    url = with_options("rediss+sentinel://a:1,b:2/main?ssl_ca_certs=x&db=3", {"ssl_ca_certs": "/y z"})
    assert url == "rediss+sentinel://a:1,b:2/main?ssl_ca_certs=%2Fy+z&db=3"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("rediss://h", {"ssl_check_hostname": True}),
        ("rediss+cluster://h,i", {"ssl_check_hostname": True}),
        ("rediss://h?ssl_check_hostname=false", {}),
        ("rediss://h?ssl_cert_reqs=none", {}),
        ("redis://h", {}),
        ("unix:///s", {}),
    ],
)
def test_the_host_is_checked_unless_the_address_says_otherwise(url: str, options: dict[str, bool]) -> None:
    assert tls_options(url) == options

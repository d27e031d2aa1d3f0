"""``tokenyard serve`` as a process."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
from cli_process import Running, start, tokenyard
from gateway_fixtures import openai_of
from openai import AsyncOpenAI

KEY = "acme-key-0123456789"


@pytest.fixture
async def gateway(redis_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    keys = tmp_path / "keys"
    keys.write_text(f"acme {KEY}\n")
    running = await start(redis_url, "serve", "--port", "0", "--api-keys", keys, "--folder", tmp_path / "shelves")
    await running.says("OPENAI_BASE_URL")
    yield running
    running.interrupt()
    ended = await running.end()
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err


@pytest.fixture
async def client(gateway: Running) -> AsyncIterator[AsyncOpenAI]:
    [url] = re.findall(r"http://\S+", gateway.said[-1])
    async with openai_of(url, KEY) as client:
        yield client


def peak_bytes(running: Running) -> int:
    """The most memory that the process ever had."""
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


@pytest.mark.parametrize("mib", [400, pytest.param(1024, marks=pytest.mark.slow)])
async def test_a_large_file_is_never_whole_in_memory(
    mib: int, gateway: Running, client: AsyncOpenAI, tmp_path: Path
) -> None:
    size = mib * 2**20
    source = tmp_path / "large.jsonl"
    with source.open("wb") as file:
        file.truncate(size)
    before = peak_bytes(gateway)
    with source.open("rb") as file:
        made = await client.files.create(file=file, purpose="batch")
    assert made.bytes == size
    read = 0
    async with client.files.with_streaming_response.content(made.id) as answer:
        async for piece in answer.iter_bytes(2**20):
            read += len(piece)
    assert read == size
    assert peak_bytes(gateway) - before < 50 * 2**20


async def test_it_says_that_it_is_well_and_wants_a_key(client: AsyncOpenAI) -> None:
    root = str(client.base_url).removesuffix("/v1/")
    assert (await client.get(f"{root}/healthz", cast_to=object)) == {"status": "ok"}
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="somebody-else-s").models.list()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--host", "0.0.0.0"), "--api-keys"),
        (("--api-keys", "/no/such/file"), "/no/such/file"),
        (("--host", "203.0.113.1", "--api-keys", "KEYS"), "cannot listen"),
    ],
)
async def test_what_is_wrong_is_said_in_a_line(
    words: tuple[str, ...], says: str, redis_url: str, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"acme {KEY}\n")
    given = [str(keys) if word == "KEYS" else word for word in words]
    ended = await tokenyard(redis_url, "serve", "--folder", tmp_path / "shelves", *given)
    assert ended.code == 2
    assert says in ended.err.splitlines()[-1]

"""The simulated server, through OpenAI's own client and as a process of its own."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncGenerator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import aiohttp
import openai
import orjson
import pytest
from child_processes import start_process
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from broker.throughput import Profile
from workers.engines._vllm_metrics import read_metrics
from workers.engines.base import EngineStartError
from workers.engines.simulated import SimulatedOptions
from workers.engines.simulated_server import SimulatedServer

PROFILE = Profile(0.002, 1e-6, 0.0, 0.001, 1e-6, 1e-9, kv_tokens=4096, seats=4)
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello there."}]


@pytest.fixture
async def server() -> AsyncGenerator[SimulatedServer]:
    async with SimulatedServer(SimulatedOptions(profile=PROFILE, models=("tiny", "alias"), context_tokens=512)) as it:
        yield it


@pytest.fixture
async def client(server: SimulatedServer) -> AsyncGenerator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as it:
        yield it


async def page(server: SimulatedServer, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(server.url + path) as response:
        return response.status, await response.text()


async def settled(server: SimulatedServer) -> None:
    async with asyncio.timeout(10):
        while (load := server.engine.load()).running or load.waiting:  # noqa: ASYNC110 - a load has no event
            await asyncio.sleep(0.001)


async def test_models_health_and_version(server: SimulatedServer, client: openai.AsyncOpenAI) -> None:
    models = await client.models.list()
    assert [model.id for model in models.data] == ["tiny", "alias"]
    assert models.data[0].model_extra == {"max_model_len": 512}
    assert await page(server, "/health") == (200, "")
    assert orjson.loads((await page(server, "/version"))[1]) == {"version": "1"}


async def test_chat_completion_and_embedding(client: openai.AsyncOpenAI) -> None:
    chat = await client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=4, extra_body={"ignore_eos": True}
    )
    assert chat.usage
    assert chat.usage.completion_tokens == 4
    text = await client.completions.create(model="alias", prompt="Once", max_tokens=3, n=2)
    assert len(text.choices) == 2
    vectors = await client.embeddings.create(model="tiny", input=["a", "b"], dimensions=8)
    assert [len(item.embedding) for item in vectors.data] == [8, 8]  # the client asks for base64


async def test_a_chat_streams_its_tokens_as_they_come() -> None:
    """The first token arrives while the rest is half a minute a token away, until the device is sped up."""
    slow = SimulatedOptions(profile=replace(PROFILE, decode_d=30.0), models=("tiny",))
    async with SimulatedServer(slow) as server, openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k") as client:
        stream = await client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=20, n=2, stream=True,
            stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
        )  # fmt: skip
        chunks: list[ChatCompletionChunk] = []
        async for chunk in stream:
            chunks.append(chunk)
            if any(choice.delta.content for choice in chunk.choices):
                server.engine.slow_down(1e-5)
    for index in (0, 1):
        choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert choices[0].delta.role == "assistant"
        assert [choice.finish_reason for choice in choices][-1] == "length"
        texts = [choice.delta.content for choice in choices if choice.delta.content]
        assert texts[0] == "sim "
        assert "".join(texts).split() == ["sim"] * 20
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 40
    assert chunks[-1].choices == []


async def test_a_completion_streams(client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(model="tiny", prompt="Once", max_tokens=5, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks).strip()
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


async def test_errors_are_openai_errors(server: SimulatedServer, client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="`other` does not exist"):
        await client.chat.completions.create(model="other", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 4000}])
    with pytest.raises(openai.NotFoundError, match="Unknown request URL"):
        await client.moderations.create(model="tiny", input="x")
    await server.engine.stop()
    with pytest.raises(openai.InternalServerError) as raised:
        await client.chat.completions.create(model="tiny", messages=HELLO)
    assert raised.value.status_code == 503


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_frees_its_seat(server: SimulatedServer, stream: bool) -> None:
    body = {"model": "tiny", "prompt": "x", "max_tokens": 400, "ignore_eos": True, "stream": stream}
    server.engine.slow_down(100)
    async with aiohttp.ClientSession() as session:
        task = asyncio.create_task(_post(session, f"{server.url}/v1/completions", body))
        async with asyncio.timeout(10):
            while not server.engine.load().output_tokens_total:  # noqa: ASYNC110 - a load has no event
                await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait((task,))
    await settled(server)
    assert server.engine.load().output_tokens_total < 400


async def _post(session: aiohttp.ClientSession, url: str, body: Mapping[str, object]) -> bytes:
    async with session.post(url, json=body) as response:
        return await response.read()


async def test_metrics_are_vllms(server: SimulatedServer, client: openai.AsyncOpenAI) -> None:
    server.engine.slow_down(50)
    task = asyncio.create_task(client.completions.create(model="tiny", prompt="x" * 400, max_tokens=50))
    async with asyncio.timeout(10):
        while not server.engine.load().running:  # noqa: ASYNC110 - a load has no event
            await asyncio.sleep(0.001)
    busy = read_metrics((await page(server, "/metrics"))[1])
    assert busy
    assert (busy.running, busy.waiting, busy.kv_tokens) == (1, 0, 4096)
    assert 100 <= busy.kv_tokens_used <= 160
    server.engine.slow_down(0.01)
    answer = await task
    idle = read_metrics((await page(server, "/metrics"))[1])
    assert idle
    assert answer.usage
    assert (idle.running, idle.prompt_tokens, idle.output_tokens) == (0, 100, answer.usage.completion_tokens)


async def test_a_key_is_asked_for_below_v1_alone() -> None:
    async with SimulatedServer(SimulatedOptions(), api_key="right") as server:
        for key, fits in (("right", True), ("wrong", False)):
            async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
                if fits:
                    assert (await client.models.list()).data
                    assert (await client.chat.completions.create(model="simulated", messages=HELLO)).choices
                else:
                    with pytest.raises(openai.AuthenticationError):
                        await client.models.list()
                    with pytest.raises(openai.AuthenticationError):
                        await client.chat.completions.create(model="simulated", messages=HELLO)
        assert (await page(server, "/health"))[0] == 200


async def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EngineStartError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            async with SimulatedServer(SimulatedOptions(), port=port):
                pass


async def run_command(*arguments: str) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "workers.engines.simulated_server", *arguments]
    pipe = asyncio.subprocess.PIPE
    return await start_process(
        *command, stdout=pipe, stderr=pipe, cwd=Path(__file__).parents[1], env={"COLUMNS": "200"}
    )


async def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    profile = tmp_path / "device.json"
    profile.write_bytes(orjson.dumps(asdict(PROFILE)))
    process = await run_command("--port", "0", "--profile", str(profile), "--model", "tiny", "--seats", "2")
    try:
        assert process.stdout
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        assert line.startswith("listening on http://127.0.0.1:")
        url = line.removeprefix("listening on ").strip()
        async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/models") as response:
            assert (await response.json())["data"][0]["id"] == "tiny"
    finally:
        process.terminate()
        _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert b"Traceback" not in errors


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "cannot read the profile"), ("{}", "prefill_a: Field required"), ("nonsense", "not a valid profile")],
)
async def test_a_profile_that_cannot_be_used_is_one_clear_line(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    profile = tmp_path / "device.json"
    if content is not None:
        profile.write_text(content)
    process = await run_command("--profile", str(profile))
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    assert errors.decode().count("\n") == 1
    assert reason in errors.decode()
    assert str(profile) in errors.decode()

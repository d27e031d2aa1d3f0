"""A streamed answer is, put together, the answer without a stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.throughput import Profile
from workers.engines.base import EngineRequest, EngineUnavailableError
from workers.engines.chunk_assembly import Assembly, EventLines
from workers.engines.openai import OpenAIEngine, OpenAIOptions
from workers.engines.simulated import SimulatedOptions
from workers.engines.simulated_server import SimulatedServer

CHAT = "/v1/chat/completions"
SLOW = Profile(0.0, 0.0, 0.0, 0.01, 0.0, 0.0, kv_tokens=100_000, seats=8)


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer(SimulatedOptions(profile=SLOW, models=("m",))) as running:
        yield running


@pytest.fixture
async def engine(server: SimulatedServer) -> AsyncIterator[OpenAIEngine]:
    engine = OpenAIEngine(OpenAIOptions(url=server.url, model="m", retry_delays_s=()))
    await engine.start()
    yield engine
    await engine.stop()


def request(url: str = CHAT, **fields: Any) -> EngineRequest:
    prompt = {"messages": [{"role": "user", "content": "Hi."}]} if url == CHAT else {"prompt": "x"}
    return EngineRequest("j", url, json.dumps({"model": "m", **prompt, "ignore_eos": True, **fields}).encode())


def said(body: bytes) -> list[tuple[int, str, str]]:
    choices = json.loads(body)["choices"]
    return [(c["index"], c.get("text") or c["message"]["content"], c["finish_reason"]) for c in choices]


@pytest.mark.parametrize("url", [CHAT, "/v1/completions"])
async def test_an_attached_server_s_stream_is_its_answer(url: str, engine: OpenAIEngine) -> None:
    told: list[Any] = []
    asked = request(url, max_tokens=6, n=2)
    streamed = await engine.run_telling(asked, lambda choices: told.append(orjson.loads(choices)))
    whole = await engine.run(asked)
    assert len(told) > 2
    assert (streamed.status_code, streamed.output_tokens, streamed.prompt_tokens) == (
        *(whole.status_code, whole.output_tokens, whole.prompt_tokens),
    )
    shown = [
        [
            (c["index"], c.get("text") or c["message"]["content"], c["finish_reason"])
            for c in json.loads(r.body)["choices"]
        ]
        for r in (streamed, whole)
    ]
    assert shown[0] == shown[1]
    assert json.loads(streamed.body)["object"] == json.loads(whole.body)["object"]


async def test_a_refusal_is_a_response(engine: OpenAIEngine) -> None:
    told: list[bytes] = []
    response = await engine.run_telling(request(n=999), told.append)
    assert response.status_code == 400
    assert told == []


async def test_a_server_that_goes_away_under_its_answer_is_no_answer(
    engine: OpenAIEngine, server: SimulatedServer
) -> None:
    told: list[bytes] = []

    def tell(choices: bytes) -> None:
        told.append(choices)
        if len(told) == 3:
            server.engine._loop.create_task(server.engine.stop())  # type: ignore[union-attr]

    with pytest.raises(EngineUnavailableError):
        await engine.run_telling(request(max_tokens=2000), tell)
    assert told


@given(st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"").strip())), st.data())
def test_events_are_read_however_they_are_cut(events: list[bytes], data: st.DataObject) -> None:
    raw = b"".join(b"data: " + event + b"\n\n" for event in events)
    lines, found, start = EventLines(), list[bytes](), 0
    while start < len(raw):
        end = start + data.draw(st.integers(1, 16))
        found += lines.feed(raw[start:end])
        start = end
    assert found == events


def test_tool_calls_and_logprobs_are_put_together() -> None:
    assembly = Assembly()
    for delta in (
        {"role": "assistant", "content": None, "tool_calls": [{"index": 0, "id": "a", "function": {"name": "f"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}], "reasoning_content": "so"},
    ):
        chunk = {
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": delta, "logprobs": {"content": [1]}}],
        }
        assembly.add(orjson.dumps(chunk))
    [choice] = json.loads(assembly.body())["choices"]
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [call],
        "reasoning_content": "so",
    }
    assert choice["logprobs"] == {"content": [1, 1, 1]}

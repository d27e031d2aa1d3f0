"""The simulated engine: the suite all engines share, its timing, and its own options."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

import orjson
import pytest
from engine_conformance import CHAT, COMPLETIONS, EMBEDDINGS, EngineConformance
from openai.types import CreateEmbeddingResponse

from broker.errors import UsageError
from broker.throughput import Profile
from workers.engines.base import Engine, EngineRequest, EngineResponse, EngineUnavailableError
from workers.engines.simulated import INSTANT, SimulatedEngine, SimulatedOptions, profile_from_json
from workers.engines.simulated_wire import RefusedError

SMALL_GPU = Profile(0.002, 1e-6, 0.0, 0.001, 1e-6, 1e-9, kv_tokens=65_536, seats=8)


class TestSimulatedConforms(EngineConformance):
    model = "simulated"
    embeds = True

    @classmethod
    @asynccontextmanager
    async def engine_under_test(cls) -> AsyncGenerator[Engine]:
        yield SimulatedEngine(SimulatedOptions(profile=SMALL_GPU))


class TestInstantConforms(EngineConformance):
    """Nothing of it can be caught running."""

    model = "simulated"
    embeds = True
    test_load_shows_what_runs_and_cancel_ends_it = None  # type: ignore[assignment]  # nothing ever runs

    @classmethod
    @asynccontextmanager
    async def engine_under_test(cls) -> AsyncGenerator[Engine]:
        yield SimulatedEngine(SimulatedOptions(profile=INSTANT))


def request(url: str = CHAT, key: str = "job", **body: Any) -> EngineRequest:
    if url == CHAT:
        body.setdefault("messages", [{"role": "user", "content": "Hello there."}])
    return EngineRequest(key, url, orjson.dumps({"model": "simulated", **body}))


async def started(**options: Any) -> SimulatedEngine:
    engine = SimulatedEngine(SimulatedOptions(**options))
    await engine.start()
    return engine


def error_of(response: EngineResponse) -> dict[str, Any]:
    return orjson.loads(response.body)["error"]


async def test_what_it_takes_is_what_the_profile_says() -> None:
    """On the event loop's own clock, which may run late but never early."""
    engine = await started(profile=Profile(0.02, 0, 0, 0.01, 0, 0, kv_tokens=1024, seats=2))
    loop = asyncio.get_running_loop()
    begin = loop.time()
    await engine.run(request(max_tokens=5, ignore_eos=True))
    assert loop.time() - begin >= 0.02 + 4 * 0.01


async def test_requests_that_come_together_share_steps() -> None:
    engine = await started(profile=Profile(0.02, 0, 0, 0.01, 0, 0, kv_tokens=4096, seats=8))
    await asyncio.gather(*(engine.run(request(max_tokens=5, ignore_eos=True)) for _ in range(8)))
    assert engine.steps == 5


async def test_a_slowed_device_holds_its_requests_longer() -> None:
    engine = await started(profile=Profile(0.02, 0, 0, 0.01, 0, 0, kv_tokens=1024, seats=2))
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(engine.run(request(max_tokens=5, ignore_eos=True)))
    await asyncio.sleep(0)
    begin = loop.time()
    engine.slow_down(3.0)
    await task
    assert loop.time() - begin >= 3 * 0.05
    engine.slow_down(1e-6)  # so fast that a slow answer could only come from the old speed
    async with asyncio.timeout(5):
        await engine.run(request(max_tokens=1000, ignore_eos=True))


async def test_a_stopped_engine_fails_what_runs_and_what_comes() -> None:
    engine = await started(profile=replace(SMALL_GPU, decode_d=100.0))
    task = asyncio.create_task(engine.run(request(max_tokens=5, ignore_eos=True)))
    await asyncio.sleep(0)
    assert engine.load().waiting + engine.load().running == 1
    await engine.stop()
    with pytest.raises(EngineUnavailableError):
        await task
    with pytest.raises(EngineUnavailableError):
        await engine.run(request())


async def test_follow_tells_tokens_as_they_come_and_closing_it_cancels() -> None:
    engine = await started(profile=SMALL_GPU)
    work = engine.accept(
        request(COMPLETIONS, prompt=["a", "b"], max_tokens=6, ignore_eos=True, stream=True), stream=True
    )
    seen = [tokens async for tokens in engine.follow(work)]
    assert seen[0] <= [1, 1]
    assert seen[-1] == [6, 6]
    assert seen == sorted(seen)
    progress = engine.follow(work)
    await anext(progress)
    await progress.aclose()
    while engine.load().running or engine.load().waiting:  # noqa: ASYNC110 - a load has no event
        await asyncio.sleep(0.001)
    assert engine.load().output_tokens_total < 24


async def test_a_follower_that_takes_its_time_misses_no_token() -> None:
    engine = await started(profile=SMALL_GPU)
    work = engine.accept(request(COMPLETIONS, prompt="a", max_tokens=5, ignore_eos=True))
    seen: list[list[int]] = []
    async with asyncio.timeout(20):
        async for tokens in engine.follow(work):
            seen.append(tokens)
            while engine.load().running or engine.load().waiting:  # noqa: ASYNC110 - a load has no event
                await asyncio.sleep(0.001)
    assert seen[-1] == [5]


async def test_the_same_request_has_the_same_length_and_the_mean_is_kept() -> None:
    engine = await started(mean_output_tokens=50)
    again = await started(mean_output_tokens=50)
    other = await started(mean_output_tokens=50, seed=1)
    requests = [request(user=str(n)) for n in range(400)]
    lengths = [(await engine.run(each)).output_tokens for each in requests]
    assert lengths == [(await again.run(each)).output_tokens for each in requests]
    assert lengths != [(await other.run(each)).output_tokens for each in requests]
    assert 40 < fmean(lengths) < 60
    assert min(lengths) >= 1


@pytest.mark.parametrize(
    ("body", "least", "most", "reason"),
    [
        ({"max_tokens": 3}, 3, 3, "length"),
        ({"max_tokens": 3, "max_completion_tokens": 2}, 2, 2, "length"),
        ({"max_tokens": 100, "min_tokens": 100}, 100, 100, "length"),
        ({"ignore_eos": True}, 252, 252, "length"),  # the context less the prompt
        ({"min_tokens": 10}, 10, 200, "stop"),
        ({"metadata": {"simulated_output_tokens": "77", "other": "x"}}, 77, 77, "stop"),
        ({"metadata": {"simulated_output_tokens": "77"}, "max_completion_tokens": 5}, 5, 5, "length"),
        ({"metadata": {"simulated_output_tokens": "7"}, "min_tokens": 9}, 9, 9, "stop"),
        ({"metadata": {"simulated_output_tokens": "7"}, "ignore_eos": True, "max_tokens": 8}, 8, 8, "length"),
    ],
)
async def test_output_lengths(body: dict[str, Any], least: int, most: int, reason: str) -> None:
    engine = await started(context_tokens=256, mean_output_tokens=20)
    response = await engine.run(request(messages=[{"role": "user", "content": "x" * 16}], **body))
    assert least <= response.output_tokens <= most
    assert response.prompt_tokens == 4
    assert orjson.loads(response.body)["choices"][0]["finish_reason"] == reason


@pytest.mark.parametrize(
    ("content", "tokens"),
    [("", 1), ("x", 1), ("x" * 8, 2), ("x" * 9, 3), ("é" * 4, 2), (None, 1), ([{"type": "text", "text": "x" * 12}], 3)],
)
async def test_prompt_tokens_are_a_quarter_of_the_bytes(content: object, tokens: int) -> None:
    engine = await started()
    response = await engine.run(request(messages=[{"role": "user", "content": content}]))
    assert response.prompt_tokens == tokens


@pytest.mark.parametrize(
    ("prompt", "tokens", "choices"),
    [("x" * 8, 2, 1), (["x" * 8, "x" * 4], 3, 2), ([1, 2, 3], 3, 1), ([[1, 2], [3]], 3, 2)],
)
async def test_every_form_of_a_prompt(prompt: object, tokens: int, choices: int) -> None:
    engine = await started()
    response = await engine.run(request(COMPLETIONS, prompt=prompt, max_tokens=2, ignore_eos=True))
    assert response.prompt_tokens == tokens
    assert len(orjson.loads(response.body)["choices"]) == choices
    assert response.output_tokens == 2 * choices


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_embeddings_have_the_dimensions_asked_for(encoding: str) -> None:
    engine = await started()
    response = await engine.run(request(EMBEDDINGS, input="abc", dimensions=12, encoding_format=encoding))
    vector = orjson.loads(response.body)["data"][0]["embedding"]
    assert len(vector) == (12 if encoding == "float" else 64)
    if encoding == "float":
        assert sum(CreateEmbeddingResponse.model_validate_json(response.body).data[0].embedding) == 1.0


@pytest.mark.parametrize(
    ("url", "body", "status", "param"),
    [
        (CHAT, {"messages": []}, 400, "messages"),
        (CHAT, {"messages": ["hi"]}, 400, "messages"),
        (CHAT, {"messages": [{"content": "hi"}]}, 400, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, 400, "messages"),
        (CHAT, {"stream": True}, 400, "stream"),
        (CHAT, {"max_tokens": True}, 400, "max_tokens"),
        (CHAT, {"max_tokens": 1.5}, 400, "max_tokens"),
        (CHAT, {"max_completion_tokens": 0}, 400, "max_completion_tokens"),
        (CHAT, {"min_tokens": 9, "max_tokens": 8}, 400, "min_tokens"),
        (CHAT, {"n": 0}, 400, "n"),
        (CHAT, {"metadata": {"simulated_output_tokens": 7}}, 400, "metadata.simulated_output_tokens"),
        (CHAT, {"metadata": {"simulated_output_tokens": "0"}}, 400, "metadata.simulated_output_tokens"),
        (CHAT, {"metadata": {"simulated_output_tokens": "7.5"}}, 400, "metadata.simulated_output_tokens"),
        (CHAT, {"model": 7}, 400, "model"),
        (CHAT, {"model": "other"}, 404, "model"),
        (COMPLETIONS, {}, 400, "prompt"),
        (COMPLETIONS, {"prompt": [1, "a"]}, 400, "prompt"),
        (COMPLETIONS, {"prompt": "x" * 4096}, 400, "prompt"),
        (COMPLETIONS, {"prompt": "x" * 2048, "max_tokens": 300, "ignore_eos": True}, 400, None),
        (EMBEDDINGS, {"prompt": "x"}, 400, "input"),
        (EMBEDDINGS, {"input": "x", "dimensions": 0}, 400, "dimensions"),
        ("/v1/images/generations", {}, 404, None),
    ],
)
async def test_what_is_refused_and_for_which_parameter(
    url: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    """With a context of 1,024 tokens and a KV cache of 768."""
    engine = await started(profile=replace(INSTANT, kv_tokens=768), context_tokens=1024)
    response = await engine.run(request(url, **body))
    assert response.status_code == status
    assert error_of(response)["param"] == param
    assert engine.load().prompt_tokens_total == 0


async def test_a_stream_has_to_be_asked_for_on_both_sides() -> None:
    engine = await started()
    with pytest.raises(RefusedError, match="stream"):
        engine.accept(request(stream=True))
    assert engine.accept(request(stream=True), stream=True).kind == "chat"


@pytest.mark.parametrize(
    "options",
    [
        {"speed": 0},
        {"speed": float("nan")},
        {"models": ()},
        {"context_tokens": 1},
        {"mean_output_tokens": 0},
        {"profile": replace(INSTANT, seats=0)},
        {"profile": replace(INSTANT, kv_tokens=8)},
    ],
)
def test_senseless_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="simulated engine"):
        SimulatedOptions(**options)


def test_a_profile_comes_back_from_json() -> None:
    assert profile_from_json(orjson.dumps(asdict(SMALL_GPU))) == SMALL_GPU


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"decode_d": -1}, "decode_d"),
        ({"decode_d": None}, "decode_d"),
        ({"seats": 0}, "seats"),
        ({"kv_tokens": 1.5}, "kv_tokens"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_profile_that_is_wrong_names_the_field(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as raised:
        profile_from_json(orjson.dumps({**asdict(SMALL_GPU), **change}))
    assert "\n" not in str(raised.value)


def test_a_profile_that_is_no_json_is_refused() -> None:
    with pytest.raises(UsageError, match="not a valid profile"):
        profile_from_json("seats: 4")

"""The official client's chats, completions, embeddings and models against a gateway that is served."""

from __future__ import annotations

import asyncio
from pathlib import Path

import openai
import pytest
from cluster_fixtures import Cluster, ManualEngine, eventually, instant_engine
from gateway_fixtures import client_fixture, cluster_fixture, openai_of, serving
from openai import AsyncOpenAI

from broker.throughput import Profile
from workers.engines.simulated import SimulatedEngine, SimulatedOptions

HI = [{"role": "user", "content": "Hi."}]
#: A step each 5 ms: tokens come one by one.
STEADY = Profile(0.0, 0.0, 0.0, 0.005, 0.0, 0.0, kv_tokens=100_000, seats=8)


def steady_engine(model: str) -> SimulatedEngine:
    return SimulatedEngine(SimulatedOptions(profile=STEADY, models=(model,)))


#: pytest finds them among the module's names.
__all__ = ["client_fixture", "cluster_fixture"]


class TestWaiting:
    async def test_a_chat(self, cluster: Cluster, client: AsyncOpenAI) -> None:
        await cluster.join("w", instant_engine(cluster.model))
        answer = await client.chat.completions.create(model=cluster.model, messages=HI, max_tokens=5)  # type: ignore[arg-type]
        assert answer.choices[0].message.content
        assert answer.choices[0].message.role == "assistant"
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    async def test_many_at_once_each_get_their_own(self, cluster: Cluster, client: AsyncOpenAI) -> None:
        await cluster.join("w", instant_engine(cluster.model))
        ask = client.completions.create
        asked = [
            ask(model=cluster.model, prompt="x", max_tokens=n + 1, extra_body={"ignore_eos": True}) for n in range(40)
        ]
        answers = await asyncio.gather(*asked)
        assert [a.usage.completion_tokens for a in answers if a.usage] == list(range(1, 41))

    async def test_models(self, cluster: Cluster, client: AsyncOpenAI) -> None:
        await cluster.register_model()
        assert cluster.model in [model.id async for model in client.models.list()]
        assert (await client.models.retrieve(cluster.model)).id == cluster.model
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("none-of-them")

    async def test_whoever_hangs_up_is_not_worked_for(self, cluster: Cluster, client: AsyncOpenAI) -> None:
        engine = ManualEngine()
        await cluster.join("w", engine)
        asked = asyncio.ensure_future(client.chat.completions.create(model=cluster.model, messages=HI))  # type: ignore[arg-type]
        await eventually(lambda: engine.running)
        asked.cancel()
        await eventually(lambda: engine.aborted)


class TestErrors:
    async def test_an_unknown_model(self, client: AsyncOpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="none-of-them", messages=HI)  # type: ignore[arg-type]
        assert caught.value.code == "model_not_found"

    async def test_what_is_missing(self, cluster: Cluster, client: AsyncOpenAI) -> None:
        await cluster.register_model()
        with pytest.raises(openai.BadRequestError) as caught:
            await client.post("/chat/completions", cast_to=object, body={"model": cluster.model})
        assert caught.value.param == "messages"
        assert caught.value.type == "invalid_request_error"

    async def test_what_the_engine_refuses(self, cluster: Cluster, client: AsyncOpenAI) -> None:
        await cluster.join("w", instant_engine(cluster.model))
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as caught:
                await client.chat.completions.create(model=cluster.model, messages=HI, n=999, stream=stream)  # type: ignore[call-overload]
            assert caught.value.param == "n"

    async def test_a_full_backlog_is_a_rate_limit(self, cluster: Cluster, tmp_path: Path) -> None:
        await cluster.register_model()
        await cluster.submit(2)
        async with serving(cluster, tmp_path, max_backlog_jobs=2) as url, openai_of(url) as client:
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(model=cluster.model, messages=HI)  # type: ignore[arg-type]
        assert caught.value.code == "queue_full"

    async def test_an_unknown_url(self, client: AsyncOpenAI) -> None:
        with pytest.raises(openai.NotFoundError):
            await client.images.generate(prompt="a cat")


class TestStreaming:
    @pytest.mark.parametrize("kind", ["telling", "silent"])
    async def test_a_stream_is_the_whole_answer(self, kind: str, cluster: Cluster, client: AsyncOpenAI) -> None:
        """An engine that tells nothing while it runs gives its answer as one piece."""
        engine = steady_engine(cluster.model)
        await cluster.join("w", engine if kind == "telling" else Silent(engine))
        ask = client.chat.completions.create
        stream = await ask(
            model=cluster.model,
            messages=HI,  # type: ignore[arg-type]
            max_tokens=20,
            n=2,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        texts, ends, usage, pieces = {0: "", 1: ""}, {}, None, 0
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                pieces += bool(choice.delta.content)
                if choice.finish_reason:
                    ends[choice.index] = choice.finish_reason
            usage = chunk.usage or usage
        assert texts == {0: "sim " * 20, 1: "sim " * 20}
        assert ends == {0: "length", 1: "length"}
        assert usage is not None
        assert usage.completion_tokens == 40
        assert pieces > 2 if kind == "telling" else pieces == 2

    async def test_completions(self, cluster: Cluster, client: AsyncOpenAI) -> None:
        await cluster.join("w", steady_engine(cluster.model))
        stream = await client.completions.create(
            model=cluster.model, prompt="x", max_tokens=4, stream=True, extra_body={"ignore_eos": True}
        )
        chunks = [chunk.choices[0] async for chunk in stream]
        assert "".join(choice.text for choice in chunks) == "sim " * 4
        assert chunks[-1].finish_reason == "length"

    async def test_closing_a_stream_aborts_its_request(self, cluster: Cluster, client: AsyncOpenAI) -> None:
        engine = steady_engine(cluster.model)
        await cluster.join("w", engine)
        stream = await client.chat.completions.create(
            model=cluster.model,
            messages=HI,  # type: ignore[arg-type]
            max_tokens=30_000,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        async for _ in stream:
            break
        assert engine.load().running == 1
        await stream.close()
        await eventually(lambda: engine.load().running == 0)

    async def test_only_who_asked_is_told(self, cluster: Cluster, client: AsyncOpenAI) -> None:
        await cluster.join("w", steady_engine(cluster.model))
        await client.chat.completions.create(model=cluster.model, messages=HI, max_tokens=5)  # type: ignore[arg-type]
        assert await cluster.redis.keys(f"{cluster.keys.prefix}tokens:*") == []
        stream = await client.chat.completions.create(
            model=cluster.model,
            messages=HI,  # type: ignore[arg-type]
            max_tokens=5,
            stream=True,
        )
        assert [chunk async for chunk in stream]
        [key] = await cluster.redis.keys(f"{cluster.keys.prefix}tokens:*")
        assert await cluster.redis.ttl(key) > 0


class Silent:
    """An engine that says nothing while it runs."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self.start = engine.start
        self.run = engine.run
        self.load = engine.load
        self.stop = engine.stop

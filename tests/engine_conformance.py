"""What every engine has to do, whatever it runs on: one suite, a subclass for each engine.

A subclass gives ``engine_under_test``; the tests of one class share one started engine. They assume nothing about
texts and lengths but what the OpenAI API promises, so the model may be any.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import orjson
import pytest
import pytest_asyncio
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.shared import ErrorObject

from workers.engines.base import Capacity, Engine, EngineRequest, EngineResponse, Load

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"


@dataclass
class Bench:
    """A started engine, and shorthands to ask it things."""

    engine: Engine
    capacity: Capacity
    model: str
    patience_s: float
    asked: int = 0

    def request(self, url: str, **body: Any) -> EngineRequest:
        self.asked += 1
        return EngineRequest(f"job-{self.asked}", url, orjson.dumps({"model": self.model, **body}))

    async def run(self, request: EngineRequest) -> EngineResponse:
        async with asyncio.timeout(self.patience_s):
            return await self.engine.run(request)

    async def chat(self, text: str = "Say something.", **body: Any) -> EngineResponse:
        return await self.run(self.request(CHAT, messages=[{"role": "user", "content": text}], **body))

    async def complete(self, prompt: Any = "Once upon a time", **body: Any) -> EngineResponse:
        return await self.run(self.request(COMPLETIONS, prompt=prompt, **body))

    async def until(self, holds: Callable[[Load], bool]) -> Load:
        """Wait for a load: engines may tell theirs a moment late."""
        deadline = time.monotonic() + self.patience_s
        while not holds(load := self.engine.load()):
            assert time.monotonic() < deadline, f"still {load}"
            await asyncio.sleep(0.02)
        return load


def error_of(response: EngineResponse) -> ErrorObject:
    """The OpenAI error object that a refused request is answered with."""
    body = orjson.loads(response.body)
    assert response.prompt_tokens == response.output_tokens == 0
    error = body["error"]
    assert isinstance(error["message"], str)
    assert error["message"]
    # vLLM's code is the status as a number, OpenAI's a word: both occur.
    return ErrorObject.model_validate({**error, "code": str(error["code"])})


@pytest.mark.asyncio(loop_scope="class")
class EngineConformance:
    """Subclass it as ``Test…`` and override what differs."""

    model: ClassVar[str]
    patience_s: ClassVar[float] = 20.0
    embeds: ClassVar[bool] = False

    @classmethod
    def engine_under_test(cls) -> AbstractAsyncContextManager[Engine]:
        """The engine, not started, and around it what it needs (a server, a model on disk)."""
        raise NotImplementedError

    @pytest_asyncio.fixture(loop_scope="class", scope="class")
    @classmethod
    async def bench(cls) -> AsyncIterator[Bench]:
        async with cls.engine_under_test() as engine:
            yield Bench(engine, await engine.start(), cls.model, cls.patience_s)
            await engine.stop()
            await engine.stop()  # twice is no error

    async def test_start_tells_what_fits(self, bench: Bench) -> None:
        capacity = bench.capacity
        assert capacity.model == bench.model
        assert capacity.device
        assert capacity.version
        assert capacity.seats >= 1
        assert capacity.context_tokens >= 64
        assert capacity.kv_tokens >= 64

    async def test_a_chat_is_answered(self, bench: Bench) -> None:
        response = await bench.chat(max_tokens=8)
        assert response.status_code == 200
        body = ChatCompletion.model_validate_json(response.body)
        assert body.model
        assert [choice.index for choice in body.choices] == [0]
        assert body.choices[0].message.role == "assistant"
        assert isinstance(body.choices[0].message.content, str)
        assert body.usage
        assert body.usage.prompt_tokens == response.prompt_tokens > 0
        assert body.usage.completion_tokens == response.output_tokens
        assert body.usage.total_tokens == response.prompt_tokens + response.output_tokens

    async def test_a_completion_is_answered(self, bench: Bench) -> None:
        response = await bench.complete(max_tokens=8)
        assert response.status_code == 200
        body = Completion.model_validate_json(response.body)
        assert isinstance(body.choices[0].text, str)
        assert body.usage
        assert body.usage.prompt_tokens == response.prompt_tokens > 0
        assert body.usage.completion_tokens == response.output_tokens

    async def test_an_embedding_is_answered(self, bench: Bench) -> None:
        if not self.embeds:
            pytest.skip("this model makes no embeddings")
        response = await bench.run(bench.request(EMBEDDINGS, input=["one text", "another one"]))
        assert response.status_code == 200
        body = CreateEmbeddingResponse.model_validate_json(response.body)
        assert [item.index for item in body.data] == [0, 1]
        assert all(item.embedding for item in body.data)
        assert body.usage.prompt_tokens == response.prompt_tokens > 0
        assert response.output_tokens == 0

    @pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
    async def test_max_tokens_is_exact_when_the_end_is_ignored(self, bench: Bench, field: str) -> None:
        body: dict[str, Any] = {field: 7, "ignore_eos": True}
        response = await bench.chat(**body)
        answer = ChatCompletion.model_validate_json(response.body)
        assert response.output_tokens == 7
        assert answer.choices[0].finish_reason == "length"

    async def test_max_tokens_is_never_passed(self, bench: Bench) -> None:
        response = await bench.chat(max_tokens=5)
        body = ChatCompletion.model_validate_json(response.body)
        assert 1 <= response.output_tokens <= 5
        assert (body.choices[0].finish_reason == "length") >= (response.output_tokens == 5)

    async def test_n_choices(self, bench: Bench) -> None:
        response = await bench.complete(n=3, max_tokens=4, ignore_eos=True)
        body = Completion.model_validate_json(response.body)
        assert sorted(choice.index for choice in body.choices) == [0, 1, 2]
        assert response.output_tokens == 12

    @pytest.mark.parametrize(
        "raw",
        [b"no json", b"[]", b'{"model": "MODEL"}', b'{"model": "MODEL", "messages": "hello"}'],
        ids=["no json", "no object", "no messages", "messages no list"],
    )
    async def test_a_body_that_is_not_valid_is_refused(self, bench: Bench, raw: bytes) -> None:
        body = raw.replace(b"MODEL", bench.model.encode())
        response = await bench.run(EngineRequest("bad", CHAT, body))
        assert response.status_code in (400, 422)
        assert error_of(response)

    @pytest.mark.parametrize("value", [0, -1, "many", 10**9])
    async def test_a_senseless_max_tokens_is_refused(self, bench: Bench, value: object) -> None:
        response = await bench.chat(max_tokens=value)
        assert response.status_code in (400, 422)
        assert error_of(response)

    async def test_an_unknown_model_is_refused(self, bench: Bench) -> None:
        response = await bench.chat(model="no-such-model")
        assert response.status_code == 404
        assert "no-such-model" in error_of(response).message

    async def test_an_unknown_url_is_refused(self, bench: Bench) -> None:
        response = await bench.run(bench.request("/v1/no-such-thing"))
        assert response.status_code in (400, 404)
        assert error_of(response)

    async def test_a_prompt_longer_than_the_context_is_refused(self, bench: Bench) -> None:
        response = await bench.complete("long " * (2 * bench.capacity.context_tokens), max_tokens=4)
        assert response.status_code == 400
        assert error_of(response)

    async def test_many_at_once_all_finish(self, bench: Bench) -> None:
        asked = (bench.chat(f"Tell me about {n}.", max_tokens=4 + n, ignore_eos=True) for n in range(20))
        responses = await asyncio.gather(*asked)
        assert [response.output_tokens for response in responses] == [4 + n for n in range(20)]

    async def test_totals_grow_by_what_was_answered(self, bench: Bench) -> None:
        before = await bench.until(lambda load: not load.running and not load.waiting)
        responses = [await bench.complete(f"Count to {n}:", max_tokens=6, ignore_eos=True) for n in range(3)]
        prompt = before.prompt_tokens_total + sum(response.prompt_tokens for response in responses)
        output = before.output_tokens_total + sum(response.output_tokens for response in responses)
        await bench.until(lambda load: load.prompt_tokens_total >= prompt and load.output_tokens_total >= output)

    async def test_load_shows_what_runs_and_cancel_ends_it(self, bench: Bench) -> None:
        await bench.until(lambda load: not load.running and not load.waiting)
        endless = {"max_tokens": bench.capacity.context_tokens // 2, "ignore_eos": True}
        tasks = [asyncio.create_task(bench.complete(f"Go on {n}", **endless)) for n in range(3)]
        busy = await bench.until(lambda load: load.running >= 1)
        assert busy.kv_tokens_used >= 0
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        await bench.until(lambda load: not load.running and not load.waiting)
        assert (await bench.chat(max_tokens=2)).status_code == 200

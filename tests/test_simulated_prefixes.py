"""Prefix caching of the simulated engine, as its clients see it."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from broker.throughput import Profile
from workers.engines.base import EngineRequest, EngineResponse
from workers.engines.simulated import SimulatedEngine, SimulatedOptions

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
DEVICE = Profile(0.0005, 1e-7, 0.0, 0.0005, 0.0, 0.0, kv_tokens=16_384, seats=8)
DOCUMENT = "The quick brown fox. " * 200  # 4200 bytes: the longest mark within is at 4096, 1024 tokens


async def started(**options: Any) -> SimulatedEngine:
    engine = SimulatedEngine(SimulatedOptions(profile=DEVICE, **options))
    await engine.start()
    return engine


async def run(engine: SimulatedEngine, url: str = CHAT, **body: Any) -> EngineResponse:
    response = await engine.run(
        EngineRequest("job", url, orjson.dumps({"model": "simulated", "max_tokens": 4, **body}))
    )
    assert response.status_code == 200
    usage = orjson.loads(response.body)["usage"]
    assert usage["prompt_tokens"] == response.prompt_tokens
    if url != EMBEDDINGS:
        assert usage["prompt_tokens_details"] == {"cached_tokens": response.cached_tokens}
    return response


def messages(question: str, document: str = DOCUMENT) -> list[dict[str, str]]:
    return [{"role": "system", "content": document}, {"role": "user", "content": question}]


async def test_a_system_prompt_is_computed_once() -> None:
    engine = await started()
    first = await run(engine, messages=messages("What does the fox do?"))
    computed = engine.load().prompt_tokens_total
    second = await run(engine, messages=messages("And the dog?"))
    assert first.cached_tokens == 0
    assert computed == first.prompt_tokens
    assert 1040 <= second.cached_tokens < second.prompt_tokens  # up to the end of the system prompt
    assert engine.load().prompt_tokens_total - computed == second.prompt_tokens - second.cached_tokens
    assert (await run(engine, messages=messages("And the dog?", "Another. " + DOCUMENT))).cached_tokens == 0


async def test_requests_that_come_together_share_it_too() -> None:
    engine = await started()
    responses = await asyncio.gather(*(run(engine, messages=messages(f"Question {n}?")) for n in range(6)))
    assert sorted(response.cached_tokens > 0 for response in responses) == [False] + [True] * 5


async def test_the_choices_of_one_prompt_count_it_once() -> None:
    engine = await started()
    fresh = await run(engine, COMPLETIONS, prompt=DOCUMENT, n=3)
    again = await run(engine, COMPLETIONS, prompt=[DOCUMENT, "short", DOCUMENT], n=2)
    assert fresh.cached_tokens == 0
    assert again.cached_tokens == 2 * 1024


@pytest.mark.parametrize("caching", [False, True])
async def test_it_can_be_switched_off(caching: bool) -> None:
    engine = await started(prefix_caching=caching)
    await run(engine, messages=messages("One?"))
    assert ((await run(engine, messages=messages("Two?"))).cached_tokens > 0) == caching


async def test_tokens_and_embeddings_run_uncached() -> None:
    engine = await started()
    for _ in range(2):
        assert (await run(engine, COMPLETIONS, prompt=list(range(1000)))).cached_tokens == 0
        assert (await run(engine, EMBEDDINGS, input=[DOCUMENT, DOCUMENT])).cached_tokens == 0

"""The vLLM engine, for real, on one core: the suite all engines share, and what only vLLM's serving layer can do."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import psutil
import pytest
from engine_conformance import CHAT, COMPLETIONS, EMBEDDINGS, Bench, EngineConformance, error_of
from openai.types import Completion
from openai.types.chat import ChatCompletion

from tokenyard.demo_model import prepare_demo_model
from tokenyard.paths import model_cache
from workers.engines.base import Engine, EngineRequest, EngineStartError, EngineUnavailableError, StreamingEngine
from workers.engines.cpu_precision import cpu_dtype
from workers.engines.vllm import VllmEngine
from workers.engines.vllm_options import VllmOptions

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # vLLM's and torch's own
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

SMALL = VllmOptions(
    model="(the demo's)",
    served_names=("smol", "SmolLM2"),
    dtype=cpu_dtype(),
    seats=8,
    context_tokens=1024,
    kv_gib=0.25,
    cores=str(min(os.sched_getaffinity(0))) if sys.platform == "linux" else None,
    enforce_eager=True,
)


def demo_options(**changes: Any) -> VllmOptions:
    return replace(SMALL, model=str(prepare_demo_model(model_cache(), print)), **changes)


@asynccontextmanager
async def stopped_at_the_end(engine: VllmEngine) -> AsyncGenerator[VllmEngine]:
    try:
        yield engine
    finally:
        await engine.stop()


class TestVllmConforms(EngineConformance):
    model = "smol"
    patience_s = 120.0

    @classmethod
    @asynccontextmanager
    async def engine_under_test(cls) -> AsyncGenerator[Engine]:
        async with stopped_at_the_end(VllmEngine(demo_options())) as engine:
            yield engine

    async def test_capacity_is_what_was_asked_for(self, bench: Bench) -> None:
        capacity = bench.capacity
        assert (capacity.seats, capacity.context_tokens) == (8, 1024)
        assert capacity.version.startswith("vllm ")
        # 30 layers of 3 heads of 64 keys and values, of two bytes each or four.
        token = 30 * 3 * 64 * 2 * (2 if capacity.dtype == "bfloat16" else 4)
        assert 0.95 * 2**28 / token < capacity.kv_tokens < 2**28 / token

    async def test_a_model_that_knows_something(self, bench: Bench) -> None:
        response = await bench.chat("What is the capital of France?", temperature=0, max_tokens=20)
        body = ChatCompletion.model_validate_json(response.body)
        assert "Paris" in (body.choices[0].message.content or "")
        assert body.id == f"chatcmpl-job-{bench.asked}"

    async def test_every_served_name_works(self, bench: Bench) -> None:
        assert (await bench.chat(model="SmolLM2", max_tokens=1)).status_code == 200

    async def test_logprobs(self, bench: Bench) -> None:
        response = await bench.chat(logprobs=True, top_logprobs=2, max_tokens=3, ignore_eos=True)
        logprobs = ChatCompletion.model_validate_json(response.body).choices[0].logprobs
        assert logprobs
        assert logprobs.content
        assert [len(token.top_logprobs) >= 2 for token in logprobs.content] == [True] * 3

    async def test_stop(self, bench: Bench) -> None:
        response = await bench.chat("What is the capital of France?", temperature=0, stop=["Paris"])
        choice = ChatCompletion.model_validate_json(response.body).choices[0]
        assert choice.finish_reason == "stop"
        assert choice.message.content == "The capital of France is "

    async def test_response_format(self, bench: Bench) -> None:
        schema = {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}, "people": {"type": "integer", "maximum": 9}},
            "required": ["city", "people"],
            "additionalProperties": False,
        }
        response_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        response = await bench.chat("Name a city.", response_format=response_format, max_tokens=80, temperature=0)
        content = ChatCompletion.model_validate_json(response.body).choices[0].message.content
        answer = json.loads(content or "")
        assert set(answer) == {"city", "people"}
        assert isinstance(answer["people"], int)

    async def test_a_seed_fixes_the_text(self, bench: Bench) -> None:
        async def say(seed: int) -> str:
            response = await bench.complete(seed=seed, temperature=1.5, max_tokens=12, ignore_eos=True)
            return Completion.model_validate_json(response.body).choices[0].text

        first, again, other = [await say(seed) for seed in (7, 7, 8)]
        assert first == again != other

    async def test_a_prompt_seen_before_is_cached(self, bench: Bench) -> None:
        prompt = "one two three four five six seven eight nine ten " * 40
        first = await bench.complete(prompt, max_tokens=1)
        second = await bench.complete(prompt, max_tokens=1)
        assert first.cached_tokens == 0
        assert 0 < second.cached_tokens < second.prompt_tokens

    @pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
    async def test_what_is_told_is_the_answer(self, bench: Bench, url: str) -> None:
        assert isinstance(bench.engine, StreamingEngine)
        question = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
        asked = question if url == CHAT else {"prompt": "Once"}
        request = bench.request(url, **asked, max_tokens=12, temperature=0)
        told: list[Any] = []
        response = await bench.engine.run_telling(request, lambda choices: told.append(json.loads(choices)))
        whole = await bench.run(request)
        assert len(told) > 3
        assert (response.status_code, response.prompt_tokens, response.output_tokens) == (
            *(200, whole.prompt_tokens, whole.output_tokens),
        )
        if url == CHAT:
            chats = [ChatCompletion.model_validate_json(r.body).choices[0] for r in (response, whole)]
            assert chats[0].message.content == chats[1].message.content
            assert chats[0].finish_reason == chats[1].finish_reason
        else:
            texts = [Completion.model_validate_json(r.body).choices[0].text for r in (response, whole)]
            assert texts[0] == texts[1]

    async def test_a_bad_request_is_not_told(self, bench: Bench) -> None:
        assert isinstance(bench.engine, StreamingEngine)
        told: list[bytes] = []
        response = await bench.engine.run_telling(bench.request(CHAT, messages=[], max_tokens=-1), told.append)
        assert (response.status_code, told) == (400, [])

    async def test_two_attempts_of_one_job_at_once(self, bench: Bench) -> None:
        request = bench.request(COMPLETIONS, prompt="Once", max_tokens=30, ignore_eos=True)
        responses = await asyncio.gather(bench.run(request), bench.run(request))
        assert [response.output_tokens for response in responses] == [30, 30]

    async def test_several_prompts_are_cancelled_together(self, bench: Bench) -> None:
        endless = bench.complete(["One", "Two", "Three"], max_tokens=900, ignore_eos=True)
        task = asyncio.create_task(endless)
        await bench.until(lambda load: load.running == 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The engine itself says so too, with its next step.
        probe = asyncio.create_task(bench.complete(max_tokens=200, ignore_eos=True))
        await bench.until(lambda load: load.running == 1)
        probe.cancel()

    @pytest.mark.parametrize(
        ("change", "status", "param"),
        [
            ({"stream": True}, 400, "stream"),
            ({"temperature": -1}, 400, "temperature"),
            ({"temperature": "hot"}, 400, "temperature"),
            ({"messages": []}, 400, None),
            ({"messages": 5}, 400, None),
            ({"messages": [{"role": "nobody", "content": [1]}]}, 400, "messages"),
            ({"messages": [None]}, 400, "messages"),
            ({"n": 0}, 400, None),
            ({"n": 10**6, "temperature": 1}, 400, None),
            ({"logit_bias": {"x": 1}}, 400, None),
            ({"stop": {"a": 1}}, 400, "stop"),
            ({"response_format": {"type": "json_schema"}}, 400, None),
            (
                {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "x"}}}},
                400,
                None,
            ),
            ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, None),
            ({"stream_options": 5}, 400, None),
            ({"request_id": 5}, 400, "request_id"),
            ({"seed": 2**63}, 400, "seed"),
        ],
        ids=str,
    )
    async def test_what_vllm_refuses_is_a_clear_4xx(
        self, bench: Bench, change: dict[str, Any], status: int, param: str | None
    ) -> None:
        message = {"role": "user", "content": "Hello"}
        body: dict[str, Any] = {"messages": [message], "max_tokens": 2, "temperature": 0}
        response = await bench.run(bench.request(CHAT, **body | change))
        assert response.status_code == status, response.body
        error = error_of(response)
        assert "Traceback" not in error.message
        assert len(error.message) < 500
        if param is not None:
            assert (error.param or "").startswith(param)

    async def test_what_is_not_served_is_named(self, bench: Bench) -> None:
        response = await bench.run(bench.request(EMBEDDINGS, input="text"))
        assert response.status_code == 404
        assert CHAT in error_of(response).message

    async def test_idle_is_idle(self, bench: Bench) -> None:
        load = await bench.until(lambda load: not load.running)
        assert (load.waiting, load.kv_tokens_used) == (0, 0)
        assert load.free_memory_bytes > 0


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="function")
class TestVllmForReal:
    """Engines of their own: they are made to fail, or made for something else."""

    async def test_embeddings_and_death_and_a_new_start(self) -> None:
        async with stopped_at_the_end(VllmEngine(demo_options(task="embed"))) as engine:
            bench = Bench(engine, await engine.start(), "smol", patience_s=120)
            conforms = EngineConformance()
            conforms.embeds = True  # type: ignore[misc]
            await conforms.test_an_embedding_is_answered(bench)
            for value in ([], "", 5, None, "long " * 2000):
                response = await bench.run(bench.request(EMBEDDINGS, input=value))
                assert response.status_code == 400
                assert error_of(response)
            refused = await bench.run(bench.request(EMBEDDINGS, input="text", encoding_format="bytes"))
            assert error_of(refused).param == "encoding_format"
            unknown = await bench.run(bench.request(EMBEDDINGS, input="text", model="other"))
            assert unknown.status_code == 404

            texts = [f"text {n} " * 150 for n in range(100)]
            running = asyncio.create_task(engine.run(bench.request(EMBEDDINGS, input=texts)))
            await bench.until(lambda load: load.running >= 1)
            for child in multiprocessing.active_children():
                child.kill()
            with pytest.raises(EngineUnavailableError):
                await running
            with pytest.raises(EngineUnavailableError):  # so an idle worker notices, too
                engine.load()
            with pytest.raises(EngineUnavailableError):
                await engine.run(bench.request(EMBEDDINGS, input="text"))

            await engine.stop()
            await engine.start()
            await conforms.test_an_embedding_is_answered(bench)

    async def test_too_little_kv_memory_is_one_line(self, capfd: pytest.CaptureFixture[str]) -> None:
        async with stopped_at_the_end(VllmEngine(demo_options(kv_gib=0.01))) as engine:
            with pytest.raises(EngineStartError, match=r"max seq len \(1024\)") as caught:
                await engine.start()
        assert "\n" not in str(caught.value)
        assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_signals_to_the_worker(how: signal.Signals) -> None:
    """Killed, it leaves no process behind; a Ctrl-C, which its whole group gets, leaves its engine alone."""
    worker = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert worker.stdout
    assert worker.stdout.readline() == "running\n"
    children = psutil.Process(worker.pid).children(recursive=True)
    assert len(children) >= 3
    if how == signal.SIGINT:
        os.killpg(worker.pid, how)
        assert worker.stdout.readline() == "200 600\n"
    worker.kill()
    assert psutil.wait_procs(children, timeout=60)[1] == []
    worker.communicate()


async def run_until_interrupted() -> None:
    """What the worker of ``test_signals_to_the_worker`` does."""
    engine = VllmEngine(demo_options())
    capacity = await engine.start()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)
    body = {"model": "smol", "prompt": "Once", "max_tokens": 600, "ignore_eos": True}
    request = EngineRequest("job", COMPLETIONS, json.dumps(body).encode())
    task = asyncio.create_task(engine.run(request))
    await Bench(engine, capacity, "smol", patience_s=120).until(lambda load: load.running > 0)
    print("running", flush=True)
    response = await task
    print(response.status_code, response.output_tokens, flush=True)
    await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(run_until_interrupted())

"""The engine that attaches to a server: the shared suite against a simulated one, and servers that misbehave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from attached_server import GOOD, Handler, attached, chat, serving
from engine_conformance import CHAT, EngineConformance

from broker.throughput import Profile
from workers.engines._vllm_metrics import LoadCollector, read_metrics
from workers.engines.base import (
    Engine,
    EngineRequest,
    EngineResponse,
    EngineStartError,
    EngineUnavailableError,
    Load,
)
from workers.engines.openai import OpenAIEngine, OpenAIOptions
from workers.engines.simulated import SimulatedOptions
from workers.engines.simulated_server import SimulatedServer

SMALL_GPU = Profile(0.002, 1e-6, 0.0, 0.001, 1e-6, 1e-9, kv_tokens=65_536, seats=8)


class TestOpenAIConforms(EngineConformance):
    model = "simulated"
    embeds = True

    @classmethod
    @asynccontextmanager
    async def engine_under_test(cls) -> AsyncGenerator[Engine]:
        async with SimulatedServer(SimulatedOptions(profile=SMALL_GPU), api_key="secret") as server:
            yield OpenAIEngine(OpenAIOptions(url=server.url, model="simulated", api_key="secret", poll_s=0.02))


class TestOpenAIWithoutMetricsConforms(EngineConformance):
    """A server that is no vLLM: the load is counted from what was sent there."""

    model = "ours"
    embeds = True

    @classmethod
    @asynccontextmanager
    async def engine_under_test(cls) -> AsyncGenerator[Engine]:
        options = SimulatedOptions(profile=SMALL_GPU, models=("theirs",), context_tokens=4096)
        async with SimulatedServer(options) as server:
            for route in server.app.routes.copy():
                if getattr(route, "path", "") == "/metrics":
                    server.app.routes.remove(route)
            yield OpenAIEngine(OpenAIOptions(url=f"{server.url}/v1/", model="ours", upstream_model="theirs"))


async def answer_to(handler: Handler, request: EngineRequest | None = None, **options: Any) -> EngineResponse:
    async with serving(handler) as url, attached(url, **options) as engine:
        return await engine.run(request or chat())


async def test_capacity_is_learned_from_the_server() -> None:
    options = SimulatedOptions(profile=SMALL_GPU, context_tokens=777)
    async with SimulatedServer(options) as server:
        engine = OpenAIEngine(OpenAIOptions(url=server.url, model="simulated", seats=3, device="L4"))
        capacity = await engine.start()
        await engine.stop()
    assert (capacity.context_tokens, capacity.kv_tokens, capacity.seats) == (777, 65_536, 3)
    assert (capacity.device, capacity.version) == ("L4", "simulated 1")


async def test_what_the_server_does_not_say_comes_from_the_options() -> None:
    async def never(_: web.Request) -> web.Response:
        raise AssertionError

    async with serving(never) as url:
        engine = OpenAIEngine(OpenAIOptions(url=url, model="m", context_tokens=99, kv_tokens=1234))
        capacity = await engine.start()
        await engine.stop()
    assert (capacity.context_tokens, capacity.kv_tokens, capacity.version) == (99, 1234, "openai-compatible")


async def test_bodies_pass_unchanged_both_ways_and_usage_is_read() -> None:
    sent: list[bytes] = []
    spaced = orjson.dumps(GOOD, option=orjson.OPT_INDENT_2)

    async def handler(request: web.Request) -> web.Response:
        sent.append(await request.read())
        return web.Response(body=spaced, content_type="application/json")

    request = EngineRequest("job", CHAT, b'{ "model" : "m",\n "messages": []}')
    response = await answer_to(handler, request)
    assert sent == [request.body]
    assert response == EngineResponse(200, spaced, prompt_tokens=5, output_tokens=7)


async def test_the_model_is_called_what_the_server_calls_it() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"got": await request.json()})

    async with serving(handler, model="big") as url, attached(url, upstream_model="big") as engine:
        response = await engine.run(chat(n=2))
    assert orjson.loads(response.body)["got"] == {"model": "big", "messages": [], "n": 2}


async def test_cached_tokens_are_read() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response({"usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}})

    response = await answer_to(handler)
    assert (response.prompt_tokens, response.output_tokens, response.cached_tokens) == (9, 0, 4)


@pytest.mark.parametrize("status", [502, 504])
async def test_a_gateway_whose_server_is_away_is_asked_again_and_then_given_up(status: int) -> None:
    asked: list[int] = []

    async def handler(_: web.Request) -> web.Response:
        asked.append(status)
        return web.json_response(GOOD if len(asked) == 3 else {}, status=200 if len(asked) == 3 else status)

    assert (await answer_to(handler)).status_code == 200
    asked.clear()
    with pytest.raises(EngineUnavailableError, match=str(status)):
        await answer_to(handler, retry_delays_s=(0.0,))
    assert len(asked) == 2


async def test_a_dropped_connection_is_no_failure_of_the_request() -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.transport
        request.transport.abort()
        return web.Response()

    with pytest.raises(EngineUnavailableError, match="lost the server at http://127"):
        await answer_to(handler)


async def test_a_server_that_went_away_is_unavailable() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response(GOOD)

    async with serving(handler) as url:
        engine = OpenAIEngine(OpenAIOptions(url=url, model="m", retry_delays_s=()))
        await engine.start()
    with pytest.raises(EngineUnavailableError, match="lost the server"):
        await engine.run(chat())
    await engine.stop()
    with pytest.raises(EngineUnavailableError, match="not attached"):
        await engine.run(chat())


@pytest.mark.parametrize(
    ("status", "body"),
    [(400, b"<html>Bad</html>"), (404, b'{"detail": "Not Found"}'), (500, b""), (413, b'{"error": "too large"}')],
)
async def test_an_error_in_another_form_is_put_into_openais(status: int, body: bytes) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=body, status=status)

    response = await answer_to(handler)
    assert response.status_code == status
    error = orjson.loads(response.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert body.decode() in error["message"]


async def test_an_openai_error_passes_unchanged() -> None:
    body = b'{"error": {"message": "no",  "type": "x", "param": null, "code": 400}}'

    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=body, status=400)

    assert await answer_to(handler) == EngineResponse(400, body)


@pytest.mark.parametrize("status", [200, 307])
async def test_an_answer_that_is_no_json_object_is_not_a_result(status: int) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(text="[]", status=status, headers={"Location": "/elsewhere"})

    with pytest.raises(EngineUnavailableError):
        await answer_to(handler)


async def test_a_stream_is_refused_before_it_is_sent() -> None:
    async def handler(_: web.Request) -> web.Response:
        raise AssertionError

    response = await answer_to(handler, chat(stream=True))
    assert response.status_code == 400
    assert orjson.loads(response.body)["error"]["param"] == "stream"


async def test_totals_survive_a_restart_of_the_server() -> None:
    """A server that is started again counts from 0 again; what is reported never falls."""
    pages = [(10, 100), (30, 150), (5, 20), (6, 25)]
    looks = 0

    async def metrics(_: web.Request) -> web.Response:
        nonlocal looks
        prompt, output = pages[min(looks, len(pages) - 1)]
        looks += 1
        load = Load(1, 0, 0, prompt, output, 0)
        return web.Response(body=LoadCollector(lambda: load, "m", 1024, 16).page(), content_type="text/plain")

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_get("/metrics", metrics)
    async with TestServer(app) as server, attached(str(server.make_url("/")), poll_s=0.001) as engine:
        async with asyncio.timeout(10):
            while looks <= len(pages):
                assert engine.load().output_tokens_total <= 75
                await asyncio.sleep(0.001)
        assert (engine.load().prompt_tokens_total, engine.load().output_tokens_total) == (20 + 5 + 1, 50 + 20 + 5)


async def test_what_the_server_says_is_as_old_as_the_last_look_at_it() -> None:
    now = asyncio.get_running_loop().time
    before = now()
    async with SimulatedServer(SimulatedOptions(models=("m",))) as server, attached(server.url, poll_s=60) as engine:
        after = now()
        await asyncio.sleep(0.01)
        least, age, most = now() - after, engine.load().age_s, now() - before
        assert least <= age <= most


async def test_what_is_counted_here_is_never_old() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response(GOOD)

    async with serving(handler) as url, attached(url) as engine:
        await engine.run(chat())
        assert engine.load().age_s == 0


async def test_no_server_there() -> None:
    with pytest.raises(EngineStartError, match=r"server at http://127\.0\.0\.1:1 does not answer: start it"):
        await OpenAIEngine(OpenAIOptions(url="http://127.0.0.1:1", model="m")).start()


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1", "http://", ""])
async def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(EngineStartError, match="correct its URL"):
        await OpenAIEngine(OpenAIOptions(url=url, model="m")).start()


async def test_a_model_that_is_not_served_names_those_that_are() -> None:
    async with SimulatedServer(SimulatedOptions(models=("b", "a"))) as server:
        with pytest.raises(EngineStartError, match="does not serve m; it serves a, b"):
            await OpenAIEngine(OpenAIOptions(url=server.url, model="m")).start()


@pytest.mark.parametrize(("key", "reason"), [("hush-wrong", "refuses the API key$"), (None, "API key: give one")])
async def test_a_key_that_is_refused(key: str | None, reason: str) -> None:
    async with SimulatedServer(SimulatedOptions(), api_key="hush-right") as server:
        with pytest.raises(EngineStartError, match=reason) as raised:
            await OpenAIEngine(OpenAIOptions(url=server.url, model="simulated", api_key=key)).start()
    assert "hush" not in str(raised.value)


async def test_a_server_of_another_kind() -> None:
    async with TestServer(web.Application()) as server:
        with pytest.raises(EngineStartError, match="not OpenAI-compatible: it answers /v1/models with status 404"):
            await OpenAIEngine(OpenAIOptions(url=str(server.make_url("/")), model="m")).start()


async def test_secrets_are_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    options = OpenAIOptions(url="http://me:hush@127.0.0.1:1", model="m", api_key="hush")
    assert "hush" not in repr(options).replace(options.url, "")
    with pytest.raises(EngineStartError) as raised:
        await OpenAIEngine(options).start()
    assert "hush" not in str(raised.value) + caplog.text


def test_metrics_of_several_engines_are_added_up() -> None:
    page = "\n".join(
        f'{name}{{engine="{engine}",model_name="m"}} {value}'
        for engine, usage in ((0, 0.5), (1, 0.25))
        for name, value in (
            ("vllm:num_requests_running", 2.0),
            ("vllm:num_requests_waiting", 1.0),
            ("vllm:num_requests_waiting_by_reason", 7.0),
            ("vllm:kv_cache_usage_perc", usage),
            ("vllm:prompt_tokens_total", 10.0),
            ("vllm:generation_tokens_total", 1.5e7),
            ("vllm:prompt_tokens_created", 1.7e9),
        )
    )
    page += '\nvllm:cache_config_info{block_size="16",num_gpu_blocks="100",engine="0"} 1.0'
    page += '\nvllm:cache_config_info{block_size="16",num_gpu_blocks="100",engine="1"} 1.0\n'
    metrics = read_metrics(page)
    assert metrics
    assert (metrics.running, metrics.waiting, metrics.prompt_tokens, metrics.output_tokens) == (4, 2, 20, 30_000_000)
    assert (metrics.kv_tokens, metrics.kv_tokens_used) == (3200, 1200)


def test_metrics_of_something_else_are_none() -> None:
    assert read_metrics("# TYPE up gauge\nup 1\n") is None
    assert read_metrics("<html></html>") is None

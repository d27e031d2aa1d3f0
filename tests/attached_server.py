"""OpenAI-compatible servers whose answers a test makes up, and engines attached to them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import web
from aiohttp.test_utils import TestServer
from engine_conformance import CHAT

from workers.engines.base import EngineRequest
from workers.engines.openai import OpenAIEngine, OpenAIOptions

GOOD = {"id": "x", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler, model: str = "m") -> AsyncGenerator[str]:
    """A server with one model, whose chat answers are the handler's."""

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": model}]})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post(CHAT, handler)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


@asynccontextmanager
async def attached(url: str, **options: Any) -> AsyncGenerator[OpenAIEngine]:
    """An engine attached to the server there, which waits for nothing before it tries again."""
    settings: dict[str, Any] = {"retry_delays_s": (0.0, 0.0), **options}
    engine = OpenAIEngine(OpenAIOptions(url=url, model="m", **settings))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def chat(**body: Any) -> EngineRequest:
    """A request."""
    return EngineRequest("job", CHAT, orjson.dumps({"model": "m", "messages": [], **body}))

"""A real OpenAI-compatible HTTP server over the simulated engine: for tests, benchmarks and trying things out."""

from __future__ import annotations

import asyncio
import gc
import secrets
import socket
import time
from collections.abc import AsyncIterator, Generator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Self

import orjson
import typer
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from broker.concurrency import run_fast
from broker.errors import TokenyardError, UsageError
from broker.throughput import Profile
from workers.engines._vllm_metrics import LoadCollector
from workers.engines.base import EngineRequest, EngineResponse, EngineStartError, EngineUnavailableError
from workers.engines.simulated import INSTANT, VERSION, SimulatedEngine, SimulatedOptions, profile_from_json
from workers.engines.simulated_chunks import new_choices
from workers.engines.simulated_wire import Json, RefusedError, Work, error_body, usage

BLOCK_TOKENS = 16
CLIENT_CLOSED_REQUEST = 499


def build_app(engine: SimulatedEngine, options: SimulatedOptions, api_key: str | None = None) -> FastAPI:
    """The ASGI app over a started engine. With ``api_key`` every ``/v1`` path asks for it."""
    app = FastAPI(title="simulated engine", docs_url=None, redoc_url=None, openapi_url=None)

    async def check_key(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if api_key and not secrets.compare_digest(given.encode(), f"Bearer {api_key}".encode()):
            raise RefusedError(401, "Incorrect API key provided", code="invalid_api_key")

    v1 = APIRouter(prefix="/v1", dependencies=[Depends(check_key)])

    @v1.get("/models")
    async def models() -> Response:
        return _json(orjson.dumps({"object": "list", "data": [_model_card(name, options) for name in options.models]}))

    @v1.post("/{path:path}")
    async def serve(request: Request) -> Response:
        response_id = secrets.token_hex(8)
        work = engine.accept(EngineRequest(response_id, request.url.path, await request.body()), stream=True)
        if work.kind != "embedding" and work.body.get("stream"):
            return StreamingResponse(_events(engine, work, response_id), media_type="text/event-stream")
        response = await _until_disconnected(engine, work, response_id, request)
        return _json(response.body) if response else Response(status_code=CLIENT_CLOSED_REQUEST)

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        return _json(error.body(), error.status)

    @app.exception_handler(EngineUnavailableError)
    async def unavailable(_: Request, error: EngineUnavailableError) -> Response:
        return _json(error_body(503, str(error)), 503)

    app.include_router(v1)
    app.include_router(_operations(engine, options))
    return app


def _operations(engine: SimulatedEngine, options: SimulatedOptions) -> APIRouter:
    """What an operator asks of a server."""
    router = APIRouter()
    metrics = LoadCollector(engine.load, options.models[0], options.profile.kv_tokens, BLOCK_TOKENS)

    @router.get("/health")
    async def health() -> Response:
        return Response()

    @router.get("/version")
    async def version() -> Response:
        return _json(orjson.dumps({"version": VERSION.removeprefix("simulated ")}))

    @router.get("/metrics")
    async def page() -> Response:
        return Response(metrics.page(), media_type="text/plain; version=0.0.4")

    return router


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


def _model_card(name: str, options: SimulatedOptions) -> Json:
    return {
        "id": name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "simulated",
        "max_model_len": options.context_tokens,
    }


async def _until_disconnected(
    engine: SimulatedEngine, work: Work, response_id: str, request: Request
) -> EngineResponse | None:
    """The response, or None where the client hung up first: then the request leaves the engine."""

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    running = asyncio.ensure_future(engine.complete(work, response_id))
    watching = asyncio.ensure_future(hung_up())
    try:
        await asyncio.wait((running, watching), return_when=asyncio.FIRST_COMPLETED)
        return running.result() if running.done() else None
    finally:
        running.cancel()
        watching.cancel()


async def _events(engine: SimulatedEngine, work: Work, response_id: str) -> AsyncIterator[bytes]:
    """Server-sent events as OpenAI writes them: a chunk for each choice that got tokens, then ``[DONE]``."""
    chat = work.kind == "chat"
    head: Json = {
        "id": ("chatcmpl-" if chat else "cmpl-") + response_id,
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": int(time.time()),
        "model": work.model,
    }

    def event(*choices: Json, **more: Json) -> bytes:
        return b"data: " + orjson.dumps({**head, "choices": choices, **more}) + b"\n\n"

    sent = [0] * len(work.choices)
    async with aclosing(engine.follow(work)) as progress:
        async for tokens in progress:
            for choice in new_choices(work, sent, tokens):
                yield event(choice)
            sent = tokens
    options = work.body.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage"):
        yield event(usage=usage(work, work.output_tokens))
    yield b"data: [DONE]\n\n"


class _QuietServer(uvicorn.Server):
    """A uvicorn server inside another program: the signals stay that program's."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class SimulatedServer:
    """A simulated engine behind HTTP, in this process: ``async with SimulatedServer(options) as server``."""

    def __init__(
        self, options: SimulatedOptions, *, host: str = "127.0.0.1", port: int = 0, api_key: str | None = None
    ) -> None:
        self.engine = SimulatedEngine(options)
        self.app = build_app(self.engine, options, api_key)
        self._host = host
        self._port = port
        self.url = ""

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            EngineStartError: the address cannot be listened on.
        """
        listener = _listen(self._host, self._port)
        self.url = f"http://{self._host}:{listener.getsockname()[1]}"
        await self.engine.start()
        self._server = _QuietServer(uvicorn.Config(self.app, log_level="warning", lifespan="off"))
        self._task = asyncio.ensure_future(self._server.serve(sockets=[listener]))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.stop()
        self._server.should_exit = True
        await self._task


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=2048)
    except OSError as error:
        raise EngineStartError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None


async def _serve_forever(options: SimulatedOptions, host: str, port: int, api_key: str | None) -> None:
    listener = _listen(host, port)
    engine = SimulatedEngine(options)
    await engine.start()
    print(f"listening on http://{host}:{listener.getsockname()[1]}", flush=True)
    app = build_app(engine, options, api_key)
    gc.freeze()  # as vLLM's server does: what is loaded is no garbage
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
    await server.serve(sockets=[listener])


def main(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    profile: Annotated[Path | None, typer.Option(help="JSON file with the device's profile.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Name to serve; may be given again.")] = None,
    seats: Annotated[int | None, typer.Option(min=1, help="Most requests at once.")] = None,
    kv_tokens: Annotated[int | None, typer.Option(min=16, help="Tokens the KV cache holds.")] = None,
    context_tokens: Annotated[int, typer.Option(help="Longest prompt plus output.")] = 32_768,
    max_batched_tokens: Annotated[int, typer.Option(help="Tokens a step may compute.")] = 2048,
    mean_output_tokens: Annotated[float, typer.Option(help="Mean length of an answer.")] = 128.0,
    speed: Annotated[float, typer.Option(help="Times faster than the profile.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Decides the lengths of answers.")] = 0,
    prefix_caching: Annotated[bool, typer.Option(help="Find beginnings of prompts in the KV cache.")] = True,
    api_key: Annotated[str | None, typer.Option(envvar="TOKENYARD_API_KEY", help="Key to ask for.")] = None,
) -> None:
    """Serve a simulated model over the OpenAI API."""
    try:
        shape = _read_profile(profile) if profile else INSTANT
        shape = replace(shape, seats=seats or shape.seats, kv_tokens=kv_tokens or shape.kv_tokens)
        options = SimulatedOptions(
            profile=shape,
            models=tuple(model or ("simulated",)),
            context_tokens=context_tokens,
            max_batched_tokens=max_batched_tokens,
            mean_output_tokens=mean_output_tokens,
            speed=speed,
            seed=seed,
            prefix_caching=prefix_caching,
        )
        with suppress(KeyboardInterrupt):
            run_fast(_serve_forever(options, host, port, api_key))
    except TokenyardError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None


def _read_profile(path: Path) -> Profile:
    try:
        return profile_from_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read the profile {path}: {error.strerror}") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


if __name__ == "__main__":
    typer.run(main)

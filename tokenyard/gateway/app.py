"""The gateway as an ASGI app, and its life: connect, go on with batches, serve, let go."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from broker.client import Client, connect_client
from broker.connection import RedisError, address, translate
from broker.errors import TokenyardError
from broker.settings import Settings
from broker.store.client import Bounds
from tokenyard.gateway import batches, chat, files, live_page
from tokenyard.gateway.api_keys import ApiKeys
from tokenyard.gateway.batch_runs import BatchRuns, resume_all
from tokenyard.gateway.errors import ApiError, from_ours
from tokenyard.gateway.live_jobs import LiveJobs
from tokenyard.gateway.shelf import tenants_of
from tokenyard.gateway.state import GatewayState, State, Tenant, json_response
from tokenyard.live.watch import Watch
from tokenyard.metrics.exporter import CONTENT_TYPE, queue_page

log = logging.getLogger(__name__)

_models = APIRouter()


@_models.get("/v1/models")
async def list_models(state: State, _tenant: Tenant) -> Response:
    """Models that some pool serves."""
    served = await state.client.registry.models()
    return json_response({"object": "list", "data": [_model(name) for name in sorted(served)]})


@_models.get("/v1/models/{name:path}")
async def retrieve_model(name: str, state: State, _tenant: Tenant) -> Response:
    """One of them."""
    await state.pool_of(name)
    return json_response(_model(name))


@_models.get("/healthz")
async def health(state: State) -> Response:
    """Whether the gateway can reach Redis: 200, or 503."""
    await state.client.redis.ping()
    return json_response({"status": "ok"})


@_models.get("/metrics")
async def metrics(state: State) -> Response:
    """The queue's metrics for Prometheus; no tenant is named, so none has to show a key."""
    page = await queue_page(state.client, state.live.waiting)
    return Response(page, media_type=CONTENT_TYPE)


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": _STARTED, "owned_by": "tokenyard"}


_STARTED = int(time.time())
_UNEXPECTED = ApiError(500, "the gateway failed on this request: its log says why")


class _App:
    """All goes to FastAPI but live requests: between it and the socket lie layers that each token would pass."""

    def __init__(self, rest: FastAPI, where: str) -> None:
        self._rest = rest
        self._where = where

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in chat.PATHS:
            scope["app"] = self._rest
            try:
                answer = await self._serve(Request(scope, receive))
            except ClientDisconnect:
                return
            await answer(scope, receive, send)
        else:
            await self._rest(scope, receive, send)

    async def _serve(self, request: Request) -> ASGIApp:
        try:
            return await chat.serve(request)
        except ApiError as error:
            return _answer(error)
        except TokenyardError as error:
            return _answer(from_ours(error))
        except RedisError as error:
            return _answer(from_ours(translate(error, self._where)))
        except ClientDisconnect:
            raise
        except Exception:
            log.exception("%s failed", request.url.path)
            return _answer(_UNEXPECTED)


def build_app(state: GatewayState) -> ASGIApp:
    """The app over a gateway that runs."""
    app = FastAPI(title="tokenyard", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.gateway = state
    for router in (files.router, batches.router, chat.router, live_page.router, _models):
        app.include_router(router)
    where = address(state.settings.redis_url.get_secret_value()) if state.settings.redis_url else "the server"

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return _answer(error)

    @app.exception_handler(TokenyardError)
    async def ours(_: Request, error: TokenyardError) -> Response:
        return _answer(from_ours(error))

    @app.exception_handler(RedisError)
    async def of_redis(_: Request, error: RedisError) -> Response:
        return _answer(from_ours(translate(error, where)))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return _answer(ApiError(400, f"{name}: {first['msg']}", param=name))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            message = f"Unknown request URL: {request.method} {request.url.path}"
            return _answer(ApiError(404, message, code="unknown_url"))
        return _answer(ApiError(error.status_code, str(error.detail)))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, _error: Exception) -> Response:  # uvicorn's log has it
        return _answer(_UNEXPECTED)

    return _App(app, where)


def _answer(error: ApiError) -> Response:
    return Response(error.body(), error.status, media_type="application/json", headers=error.headers)


@asynccontextmanager
async def gateway(redis_url: str, settings: Settings, keys: ApiKeys, folder: Path) -> AsyncGenerator[ASGIApp]:
    """A gateway for the length of the block; its batches go on in the queue after that.

    Raises:
        RedisUnavailableError: nobody answers at that address.
        UsageError: the folder cannot be made.
    """
    async with (
        connect_client(redis_url, settings.result_ttl_s) as client,
        _running(client, settings, keys, folder) as s,
    ):
        resumed = resume_all(s.runs, s.shelf, tenants_of(folder))
        if resumed:
            log.info("going on with %d batches", resumed)
        yield build_app(s)


@asynccontextmanager
async def _running(client: Client, settings: Settings, keys: ApiKeys, folder: Path) -> AsyncGenerator[GatewayState]:
    bounds = Bounds(settings.max_backlog_jobs, settings.max_backlog_bytes)
    runs, live = BatchRuns(client, settings), LiveJobs(client, bounds)
    state = GatewayState(client, settings, keys, folder, runs, live, Watch(client))
    try:
        yield state
    finally:
        await state.watch.close()
        await state.live.close()
        await state.runs.close()

"""What the routes of the gateway share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
from fastapi import Depends, Request, Response

from broker.client import Client
from broker.settings import Settings
from tokenyard.gateway.api_keys import ApiKeys
from tokenyard.gateway.batch_runs import BatchRuns
from tokenyard.gateway.errors import ApiError
from tokenyard.gateway.live_jobs import LiveJobs
from tokenyard.gateway.shelf import Shelf
from tokenyard.live.watch import Watch

#: Which pool serves which model is asked this often (seconds).
_MODELS_S = 1.0


@dataclass(slots=True)
class GatewayState:
    """One gateway: its client of the queue, its folder, and what runs."""

    client: Client
    settings: Settings
    keys: ApiKeys
    folder: Path
    runs: BatchRuns
    live: LiveJobs
    watch: Watch
    _shelves: dict[str, Shelf] = field(default_factory=dict[str, Shelf])
    _models: dict[str, str] = field(default_factory=dict[str, str])
    _models_at: float = float("-inf")

    def shelf(self, tenant: str) -> Shelf:
        """A tenant's files and batches."""
        if tenant not in self._shelves:
            self._shelves[tenant] = Shelf(self.folder, tenant)
        return self._shelves[tenant]

    async def pool_of(self, model: str) -> str:
        """The pool that serves a model; one that has just come is found at once.

        Raises:
            ApiError: status 404: nobody serves it.
        """
        now = asyncio.get_running_loop().time()
        if model not in self._models or now - self._models_at > _MODELS_S:
            self._models, self._models_at = await self.client.registry.models(), now
        pool = self._models.get(model)
        if pool is None:
            message = f"The model {model[:128]!r} does not exist or no worker serves it"
            raise ApiError(404, message, param="model", code="model_not_found")
        return pool


def state_of(request: Request) -> GatewayState:
    """The gateway that a request came to."""
    state: GatewayState = request.app.state.gateway
    return state


def tenant_of(request: Request) -> str:
    """Whose a request is.

    Raises:
        ApiError: status 401.
    """
    return state_of(request).keys.tenant_of(request.headers.get("authorization"))


# FastAPI runs what is no coroutine in a thread of its pool, which costs a request more than all that these do.


async def _state(request: Request) -> GatewayState:
    return state_of(request)


async def _tenant(request: Request) -> str:
    return tenant_of(request)


async def _shelf(request: Request) -> Shelf:
    """The files and batches of whoever sends a request."""
    return state_of(request).shelf(tenant_of(request))


State = Annotated[GatewayState, Depends(_state)]
Tenant = Annotated[str, Depends(_tenant)]
MyShelf = Annotated[Shelf, Depends(_shelf)]


def json_response(value: object, status: int = 200) -> Response:
    """An answer."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


async def body_of(request: Request, most_bytes: int) -> bytes:
    """The body of a request.

    Raises:
        ApiError: status 413: it is longer than that.
    """
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > most_bytes:
            raise ApiError(413, f"the request is longer than {most_bytes} bytes: shorten it")
        pieces.append(piece)
    return b"".join(pieces)

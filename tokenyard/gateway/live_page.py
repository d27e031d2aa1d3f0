"""The web page: files of its own, and the data that it asks for again and again.

The page itself holds nothing and is given to anyone; its data need a key wherever the API does. No prompt and no answer
is in them. What is shown comes from Redis, where anyone may have written: the page puts text in as text alone, and the
policy below forbids whatever else could run.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse

from broker.errors import UnknownBatchError
from tokenyard.gateway.errors import ApiError, not_found
from tokenyard.gateway.state import State, json_response, state_of

router = APIRouter()

_FOLDER = Path(__file__).parent / "page"
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


async def viewer_of(request: Request) -> str | None:
    """The tenant who looks; None: an operator.

    Raises:
        ApiError: status 401.
    """
    return state_of(request).keys.viewer_of(request.headers.get("authorization"))


Viewer = Annotated[str | None, Depends(viewer_of)]


@router.get("/")
async def root() -> Response:
    """To the page."""
    return RedirectResponse("/live", headers=_HEADERS)


@router.get("/live")
async def page() -> Response:
    """The page."""
    return _file("index.html")


@router.get("/live/state")
async def cluster(state: State, viewer: Viewer) -> Response:
    """The cluster at this moment: an operator sees all, a tenant the devices and its own batches."""
    return _data(await state.watch.cluster(viewer))


@router.get("/live/batches/{batch_id:path}")
async def batch(batch_id: str, state: State, viewer: Viewer) -> Response:
    """A batch and its time line."""
    try:
        return _data(await state.watch.batch(batch_id, viewer))
    except UnknownBatchError:
        raise not_found("batch", batch_id) from None


@router.get("/live/{name}")
async def file(name: str) -> Response:
    """A file of the page."""
    return _file(name)


def _data(value: object) -> Response:
    answer = json_response(value)
    answer.headers.update({**_HEADERS, "cache-control": "no-store"})
    return answer


def _file(name: str) -> Response:
    found = _files().get(name)
    if found is None:
        raise ApiError(404, f"Unknown request URL: GET /live/{name[:128]}", code="unknown_url")
    kind = _KINDS[Path(name).suffix]
    return Response(found, media_type=f"{kind}; charset=utf-8", headers={**_HEADERS, "cache-control": "no-cache"})


@cache
def _files() -> dict[str, bytes]:
    """By name: whatever else is asked for is not looked for on disk."""
    return {path.name: path.read_bytes() for path in _FOLDER.iterdir() if path.suffix in _KINDS}

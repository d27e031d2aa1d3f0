"""/v1/batches: create, retrieve, list, cancel."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request, Response

from broker.errors import UsageError
from tokenyard.gateway.errors import ApiError, not_found
from tokenyard.gateway.objects import StoredBatch, batch_object, list_object, page_of
from tokenyard.gateway.shelf import Shelf
from tokenyard.gateway.state import MyShelf, State, body_of, json_response
from tokenyard.spans import parse_span

router = APIRouter(prefix="/v1/batches")

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
_MOST_BYTES = 2**20
_Key = Annotated[str, msgspec.Meta(max_length=64)]
_Value = Annotated[str, msgspec.Meta(max_length=512)]


class _Wanted(msgspec.Struct, frozen=True):
    """The body of a call that makes a batch."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: Annotated[dict[_Key, _Value], msgspec.Meta(max_length=16)] | None = None


_decode = msgspec.json.Decoder(_Wanted).decode


@router.post("")
async def create(request: Request, state: State, shelf: MyShelf) -> Response:
    """Make a batch of an uploaded file."""
    wanted = _wanted(await body_of(request, _MOST_BYTES))
    if shelf.file(wanted.input_file_id) is None:
        raise not_found("File object", wanted.input_file_id, "input_file_id")
    now = int(time.time())
    batch = StoredBatch(
        id=f"batch_{secrets.token_hex(12)}",
        endpoint=wanted.endpoint,
        input_file_id=wanted.input_file_id,
        completion_window=wanted.completion_window,
        created_at=now,
        expires_at=now + _window_s(wanted.completion_window),
        metadata=wanted.metadata,
    )
    shelf.keep_batch(batch)
    state.runs.start(shelf, batch)
    return json_response(batch_object(batch))


@router.get("")
async def list_batches(
    state: State, shelf: MyShelf, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> Response:
    """The batches there are, newest first."""
    page, more = page_of(await asyncio.to_thread(shelf.batches), after, limit, newest_first=True)
    shown = [batch_object(await state.runs.as_it_is(shelf, batch)) for batch in page]
    return json_response(list_object(shown, more=more))


@router.get("/{batch_id}")
async def retrieve(batch_id: str, state: State, shelf: MyShelf) -> Response:
    """A batch as it is now."""
    return json_response(batch_object(await state.runs.as_it_is(shelf, _batch(shelf, batch_id))))


@router.post("/{batch_id}/cancel")
async def cancel(batch_id: str, state: State, shelf: MyShelf) -> Response:
    """Cancel a batch: results there are stay."""
    batch = _batch(shelf, batch_id)
    if batch.is_final:
        raise ApiError(409, f"Cannot cancel a batch with status '{batch.status}'", code="batch_not_cancellable")
    if batch.status in ("validating", "in_progress"):
        batch = await state.runs.cancel(shelf, batch)
    return json_response(batch_object(await state.runs.as_it_is(shelf, batch)))


def _batch(shelf: Shelf, batch_id: str) -> StoredBatch:
    batch = shelf.batch(batch_id)
    if batch is None:
        raise not_found("batch", batch_id)
    return batch


def _wanted(body: bytes) -> _Wanted:
    try:
        wanted = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the batch cannot be made: {error}") from None
    if wanted.endpoint not in ENDPOINTS:
        known = ", ".join(ENDPOINTS)
        raise ApiError(400, f"endpoint {wanted.endpoint[:64]!r} is unknown: use one of {known}", param="endpoint")
    return wanted


def _window_s(text: str) -> int:
    try:
        return max(int(parse_span(text, "completion_window")), 1)
    except UsageError as error:
        raise ApiError(400, str(error), param="completion_window") from None

"""/v1/chat/completions, /v1/completions and /v1/embeddings: one request of the queue, waited for or streamed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from broker.concurrency import cancel_all
from broker.jobs import Result
from broker.openai_batch import LineError, RequestLine, parse_line
from tokenyard.gateway.chunks import DONE, BrokenStreamError, StreamWriter
from tokenyard.gateway.errors import NO_RETRY, ApiError, without_response
from tokenyard.gateway.live_jobs import LiveJob
from tokenyard.gateway.state import State, Tenant, body_of

router = APIRouter(prefix="/v1")

_CLIENT_CLOSED_REQUEST = 499


@router.post("/chat/completions")
@router.post("/completions")
@router.post("/embeddings")
async def serve(request: Request, state: State, tenant: Tenant) -> Response:
    """Run one request; with ``stream`` in its body, the tokens come as they are made."""
    most = state.settings.max_request_bytes
    fields = _object(await body_of(request, most))
    url = request.url.path
    streams = fields.pop("stream", None) is True and url != "/v1/embeddings"
    options = fields.pop("stream_options", None)
    wanted = _request(url, fields, most)
    pool = await state.pool_of(wanted.model)
    job = await state.live.submit(wanted, pool, tenant, follow=streams)
    if not streams:
        return await _whole(request, job)
    usage = isinstance(options, dict) and options.get("include_usage") is True
    return await _stream(request, job, wanted, with_usage=usage)


async def _whole(request: Request, job: LiveJob) -> Response:
    try:
        if not await _until_hung_up(request, asyncio.shield(job.result)):
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        return _response(job.result.result())
    finally:
        job.leave()


async def _stream(request: Request, job: LiveJob, wanted: RequestLine, *, with_usage: bool) -> Response:
    """The answer begins with the first token: what goes wrong before is an error with its status."""
    begun = False
    first = asyncio.ensure_future(job.news.get())
    try:
        if not await _until_hung_up(request, first):
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        news = first.result()
        if news is None and not job.result.result().ok:
            return _response(job.result.result())
        begun = True
    finally:
        if not begun:
            job.leave()
    chat = wanted.url == "/v1/chat/completions"
    head = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{job.job_id}",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": int(time.time()),
        "model": wanted.model,
    }
    events = _events(job, news, StreamWriter(head, chat=chat), with_usage=with_usage)
    return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})


async def _events(job: LiveJob, news: Any, writer: StreamWriter, *, with_usage: bool) -> AsyncIterator[bytes]:
    """Server-sent events; where the client hangs up, this is closed, and the request aborted."""
    try:
        while news is not None:
            if event := writer.news(news):
                yield event
            news = await job.news.get()
        for event in _ending(job.result.result(), writer, with_usage=with_usage):
            yield event
    finally:
        job.leave()


def _ending(result: Result, writer: StreamWriter, *, with_usage: bool) -> list[bytes]:
    """The events after the last token."""
    if not result.ok:
        return [_error_event(_error_of(result))]
    try:
        events = writer.rest(result.body)
    except BrokenStreamError:
        message = "the worker that made this answer was lost: ask again"
        return [_error_event(ApiError(502, message, code="stream_interrupted").error)]
    if with_usage:
        events.append(writer.event([], usage=orjson.loads(result.body).get("usage")))
    return [*events, DONE]


async def _until_hung_up(request: Request, wanted: asyncio.Future[Any]) -> bool:
    """Wait for something, but not for a client that has hung up: False then."""

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watching = asyncio.ensure_future(hung_up())
    try:
        await asyncio.wait((wanted, watching), return_when=asyncio.FIRST_COMPLETED)
        if not wanted.done():
            wanted.cancel()
            return False
        return True
    finally:
        await cancel_all([watching])


def _response(result: Result) -> Response:
    if not result.status_code:
        raise without_response(result)
    # A failure that may pass was tried again by the queue already.
    headers = NO_RETRY if result.status_code >= 500 else None
    return Response(result.body, result.status_code, media_type="application/json", headers=headers)


def _error_of(result: Result) -> Any:
    if not result.status_code:
        return without_response(result).error
    try:
        return orjson.loads(result.body)["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ApiError(result.status_code, "the request failed").error


def _error_event(error: Any) -> bytes:
    return b"data: " + orjson.dumps({"error": error}) + b"\n\n"


def _object(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not a valid JSON object: {error}", code="invalid_json") from None


def _request(url: str, fields: dict[str, Any], most_bytes: int) -> RequestLine:
    """The request as a line of a batch file would have it, checked the same way.

    Raises:
        ApiError: status 400.
    """
    line = msgspec.json.encode({"custom_id": "live", "method": "POST", "url": url, "body": fields})
    request = parse_line(line, line=1, source="request", max_bytes=most_bytes + 1024)
    if isinstance(request, LineError):
        message = request.message.removeprefix("request:1: ")
        raise ApiError(400, message, param=_param_of(message), code=request.code)
    return request


def _param_of(message: str) -> str | None:
    """The field that a message begins with."""
    name = message.partition(" ")[0]
    return name.removeprefix("body.") if name.startswith("body.") else None

"""/v1/chat/completions, /v1/completions and /v1/embeddings: one request of the queue, waited for or streamed."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from broker.jobs import Result
from broker.openai_batch import LineError, RequestLine, parse_line
from broker.token_news import TokenNews
from tokenyard.gateway.chunks import StreamWriter
from tokenyard.gateway.errors import NO_RETRY, ApiError, without_response
from tokenyard.gateway.event_stream import Caller, EventStream
from tokenyard.gateway.live_job import LiveJob
from tokenyard.gateway.state import body_of, state_of, tenant_of

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
router = APIRouter(prefix="/v1")

_CLIENT_CLOSED_REQUEST = 499


async def serve(request: Request) -> Response:
    """Run one request; with ``stream`` in its body, the tokens come as they are made."""
    state, tenant = state_of(request), tenant_of(request)
    most = state.settings.max_request_bytes
    fields = _object(await body_of(request, most))
    url = request.url.path
    streams = fields.pop("stream", None) is True and url != "/v1/embeddings"
    options = fields.pop("stream_options", None)
    wanted = _request(url, fields, most)
    pool = await state.pool_of(wanted.model)
    callers = request.headers.getlist("traceparent")  # of several, none counts
    caller_span = callers[0] if len(callers) == 1 else ""
    job = await state.live.submit(wanted, pool, tenant, follow=streams, traceparent=caller_span)
    caller = Caller(request.receive, job.wake)
    answer: Response | None = None
    try:
        if not streams:
            answer = await _whole(job, caller)
        else:
            usage = isinstance(options, dict) and options.get("include_usage") is True
            answer = await _stream(job, caller, wanted, with_usage=usage)
        return answer
    finally:
        if not isinstance(answer, EventStream):  # which lets go of both at its own end
            job.leave()
            caller.let_go()


for _path in PATHS:
    router.add_route(_path.removeprefix("/v1"), serve, methods=["POST"])


async def _whole(job: LiveJob, caller: Caller) -> Response:
    while not job.result.done():
        if caller.hung_up:
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        await job.news()
    return _response(job.result.result())


async def _stream(job: LiveJob, caller: Caller, wanted: RequestLine, *, with_usage: bool) -> Response:
    """The answer begins with the first token: what goes wrong before is an error with its status."""
    news: list[TokenNews] = []
    while not news and not job.result.done():
        if caller.hung_up:
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        news = await job.news()
    if not news and not job.result.result().ok:
        return _response(job.result.result())
    chat = wanted.url == "/v1/chat/completions"
    head = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{job.job_id}",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": int(time.time()),
        "model": wanted.model,
    }
    return EventStream(job, caller, StreamWriter(head, chat=chat), news, with_usage=with_usage)


def _response(result: Result) -> Response:
    if not result.status_code:
        raise without_response(result)
    # A failure that may pass was tried again by the queue already.
    headers = NO_RETRY if result.status_code >= 500 else None
    return Response(result.body, result.status_code, media_type="application/json", headers=headers)


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

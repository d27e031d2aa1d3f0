"""A job's answer as server-sent events, and whether its caller is still there.

An ASGI response of its own: a stream of tokens is many small sends, and each costs what lies between us and the socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from broker.errors import TokenyardError
from broker.jobs import Result
from broker.token_news import TokenNews
from tokenyard.gateway.chunks import DONE, BrokenStreamError, StreamWriter
from tokenyard.gateway.errors import ApiError, from_ours, without_response
from tokenyard.gateway.live_job import LiveJob


class Caller:
    """Whoever waits for an answer, and may hang up."""

    def __init__(self, receive: Receive, on_hang_up: Callable[[], None]) -> None:
        """Args:
        receive: of the request, whose body was read.
        on_hang_up: called when the caller hangs up.
        """
        self._watching = asyncio.ensure_future(_until_hung_up(receive))
        self._watching.add_done_callback(lambda _: on_hang_up())

    @property
    def hung_up(self) -> bool:
        """Whether nobody waits any more."""
        return self._watching.done()

    def let_go(self) -> None:
        """Look no more."""
        self._watching.cancel()


class EventStream(Response):
    """The events of one job, from its first news on. Where the caller hangs up, the job is aborted."""

    def __init__(
        self, job: LiveJob, caller: Caller, writer: StreamWriter, news: list[TokenNews], *, with_usage: bool
    ) -> None:
        # As Starlette's own streams do it: the base's way would need a whole body.
        self.status_code, self.media_type, self.background = 200, "text/event-stream", None
        self.init_headers({"cache-control": "no-cache"})
        self._job = job
        self._caller = caller
        self._writer = writer
        self._news = news
        self._with_usage = with_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI
        """Send them all."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send(send)
        finally:
            self._job.leave()
            self._caller.let_go()

    async def _send(self, send: Send) -> None:
        job, caller, write = self._job, self._caller, self._writer.news
        news, ended = self._news, False
        while not ended:
            if events := b"".join(map(write, news)):  # what came meanwhile goes as one
                await send({"type": "http.response.body", "body": events, "more_body": True})
            if caller.hung_up:
                return
            ended = job.result.done()  # no news come after it: the next that are fetched are the last
            news = await job.news()
        events = b"".join([*map(write, news), *self._ending()])
        await send({"type": "http.response.body", "body": events, "more_body": False})

    def _ending(self) -> list[bytes]:
        """The events after the last token."""
        try:
            result = self._job.result.result()
        except TokenyardError as error:
            return [_error_event(from_ours(error).error)]
        if not result.ok:
            return [_error_event(_error_of(result))]
        try:
            events = self._writer.rest(result.body)
        except BrokenStreamError:
            message = "the worker that made this answer was lost: ask again"
            return [_error_event(ApiError(502, message, code="stream_interrupted").error)]
        if self._with_usage:
            events.append(self._writer.event([], usage=orjson.loads(result.body).get("usage")))
        return [*events, DONE]


async def _until_hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _error_of(result: Result) -> Any:
    if not result.status_code:
        return without_response(result).error
    try:
        return orjson.loads(result.body)["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ApiError(result.status_code, "the request failed").error


def _error_event(error: Any) -> bytes:
    return b"data: " + orjson.dumps({"error": error}) + b"\n\n"

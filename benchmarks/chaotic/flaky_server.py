"""An OpenAI-compatible server that fails as real ones do: by status, by silence, in the midst of an answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from typing import Self

from benchmarks.chaotic.jobs import CONTEXT_TOKENS, KILLS_THE_ENGINE, MODEL
from broker.concurrency import cancel_all
from broker.throughput import Profile
from workers.engines.simulated import SimulatedOptions
from workers.engines.simulated_server import SimulatedServer

_HOST = "127.0.0.1"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d{1,9})\r\n", re.IGNORECASE)
_LONGEST_HEAD = 65_536


class Mood(StrEnum):
    """What it does with a request."""

    WELL = "well"
    ERROR = "500"
    OVERLOADED = "503"
    RATE_LIMITED = "429"
    RESET = "reset"
    TRUNCATE = "truncate"
    GONE = "gone"


_BY_STATUS = {
    Mood.ERROR: (500, "Internal Server Error"),
    Mood.OVERLOADED: (503, "Service Unavailable"),
    Mood.RATE_LIMITED: (429, "Too Many Requests"),
}


class FlakyServer:
    """A simulated engine's server behind a proxy that has moods: ``async with FlakyServer(profile) as server``."""

    def __init__(self, profile: Profile) -> None:
        options = SimulatedOptions(profile=profile, models=(MODEL,), context_tokens=CONTEXT_TOKENS)
        self._server = SimulatedServer(options)
        self._mood = Mood.WELL
        self._open: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None] | None] = set()  # asyncio itself may forget a task that waits
        self._port = 0
        self._proxy: asyncio.Server | None = None
        self.failed = 0  # requests that it failed

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{_HOST}:{self._port}"

    @property
    def running(self) -> int:
        """Requests in the engine."""
        load = self._server.engine.load()
        return load.running + load.waiting

    async def __aenter__(self) -> Self:
        """Listen."""
        await self._server.__aenter__()
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._hang_up()
        await self._server.__aexit__(None, None, None)

    @asynccontextmanager
    async def in_mood(self, mood: Mood) -> AsyncGenerator[None]:
        """Fail for the length of the block."""
        self._mood = mood
        if mood is Mood.GONE:
            self._hang_up()
        elif mood is Mood.RESET:
            self._reset()
        try:
            yield
        finally:
            if self._mood is mood:  # else another fault of its kind began meanwhile
                self._mood = Mood.WELL
            if self._proxy is None:
                await self._listen()

    async def _listen(self) -> None:
        self._proxy = await asyncio.start_server(self._serve, _HOST, self._port, limit=_LONGEST_HEAD)
        self._port = self._proxy.sockets[0].getsockname()[1]

    def _hang_up(self) -> None:
        """As a server whose process died."""
        if self._proxy is not None:
            self._proxy.close()
            self._proxy = None
        self._reset()

    def _reset(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request: then it is closed."""
        self._open.add(writer)
        self._serving.add(task := asyncio.current_task())
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                answering = asyncio.create_task(self._answer(await _request(reader), writer))
                await _unless_ended(answering, reader)
        finally:
            self._open.discard(writer)
            self._serving.discard(task)
            writer.close()

    async def _answer(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        if self._mood is Mood.RESET or KILLS_THE_ENGINE.encode() in request:
            self.failed += 1
            writer.transport.abort()
        elif self._mood in _BY_STATUS:
            self.failed += 1
            await _send(writer, _refusal(*_BY_STATUS[self._mood]))
        else:
            answer = await self._forward(request)
            if self._mood is Mood.TRUNCATE:
                self.failed += 1
                answer = answer[: len(answer) * 2 // 3]
            await _send(writer, answer)

    async def _forward(self, request: bytes) -> bytes:
        """The whole answer of the server behind."""
        host, _, port = self._server.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            await _send(writer, request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            return await reader.read()
        finally:
            writer.close()


async def _unless_ended(answering: asyncio.Task[None], reader: asyncio.StreamReader) -> None:
    """Until it is answered, or the client hangs up: then the server behind is to notice, too."""
    hung_up = asyncio.create_task(reader.read())
    try:
        await asyncio.wait((answering, hung_up), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            answering.result()
    finally:
        await cancel_all([answering, hung_up])


async def _request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    return head + (await reader.readexactly(int(length[1])) if length else b"")


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


def _refusal(status: int, reason: str) -> bytes:
    body = b'{"error": {"message": "made up by the benchmark", "type": "server_error", "param": null, "code": null}}'
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body

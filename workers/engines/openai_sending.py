"""Sends requests to an OpenAI-compatible server until it answers: also where it is busy, or was away for a moment."""

from __future__ import annotations

import asyncio
import logging
import time

import aiohttp
import orjson

from broker.concurrency import wait_at_most
from workers.engines.back_pressure import BUSY, BackPressure, retry_after_s
from workers.engines.base import EngineUnavailableError, Tell
from workers.engines.chunk_assembly import Assembly, EventLines

log = logging.getLogger(__name__)

# These say something about the server's moment or our key, and nothing about the request.
_NOT_THE_REQUEST = frozenset({401, 403, 502, 504})
_RUN_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10)  # an answer takes as long as it takes
#: That a server is busy is said at most this often (seconds).
_TELL_S = 60.0


class BusyError(Exception):
    """The server refuses a request for the time being.

    Attributes:
        status: the HTTP status it says so with.
        after_s: seconds that it asks for; None: nothing.
    """

    def __init__(self, status: int, after_s: float | None) -> None:
        super().__init__(status)
        self.status = status
        self.after_s = after_s


class Sender:
    """Requests on their way to one server. ``held`` of them wait until it takes them."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        place: str,
        *,
        retry_delays_s: tuple[float, ...],
        pressure: BackPressure,
    ) -> None:
        """Args:
        session: with the key among its headers.
        url: base URL, without ``/v1``.
        place: the server, as messages call it.
        retry_delays_s: waits before a request is sent again whose connection was lost.
        pressure: says how long to wait where the server is busy.
        """
        self._session = session
        self._url = url
        self._place = place
        self._retry_delays_s = retry_delays_s
        self._pressure = pressure
        self._closed = asyncio.Event()
        self._told = float("-inf")
        self.held = 0

    async def send(self, path: str, body: bytes, tell: Tell | None) -> tuple[int, bytes]:
        """Status and body of the server's answer. Waits while it is busy.

        Raises:
            EngineUnavailableError: it cannot be reached, refuses the key, was busy for too long, or goes away in the
                middle of its answer.
        """
        stream = _Stream(tell)
        first_refused, times = 0.0, 0
        while True:
            while (pause := self._pressure.pause_s(_now())) > 0:
                await self._hold(pause)
            try:
                answer = await self._patiently(path, body, stream)
            except BusyError as busy:
                if stream.begun:
                    raise EngineUnavailableError(f"{self._place} broke its answer off: status {busy.status}") from None
                now, times = _now(), times + 1
                first_refused = first_refused if times > 1 else now
                wait = self._pressure.refused(now, first_refused, times, busy.after_s)
                if wait is None:
                    text = f"{self._place} has been too busy for any request for too long (status {busy.status})"
                    raise EngineUnavailableError(text) from None
                self._tell_busy(busy)
                await self._hold(wait)
            else:
                self._pressure.took(_now())
                return answer

    async def close(self) -> None:
        """Fail what is under way, or waits."""
        self._closed.set()
        await self._session.close()

    async def _hold(self, seconds: float) -> None:
        self.held += 1
        try:
            await wait_at_most(self._closed, seconds)
        finally:
            self.held -= 1
        self._check_open()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise EngineUnavailableError(f"not attached to {self._place}")

    def _tell_busy(self, busy: BusyError) -> None:
        if (now := _now()) - self._told < _TELL_S:
            return
        self._told = now
        log.warning(
            "%s is busy (status %d): its requests wait here until it takes them, %d do already",
            *(self._place, busy.status, self.held),
        )

    async def _patiently(self, path: str, body: bytes, stream: _Stream) -> tuple[int, bytes]:
        """Send the request; again, after a while, where the server could not be reached and has told nothing."""
        for delay in self._retry_delays_s:
            try:
                return await self._once(path, body, stream)
            except EngineUnavailableError as error:
                if stream.begun:
                    raise
                log.info("%s; trying again in %s s", error, delay)
                await asyncio.sleep(delay)
        return await self._once(path, body, stream)

    async def _once(self, path: str, body: bytes, stream: _Stream) -> tuple[int, bytes]:
        place = self._place
        self._check_open()
        request = self._pressure.ask(_now())
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(
                self._url + path, data=body, headers=headers, timeout=_RUN_TIMEOUT, allow_redirects=False
            ) as response:
                status, answer = await stream.read(response)
                after_s = retry_after_s(response.headers, time.time())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise EngineUnavailableError(f"lost {place}: {reason(error)}") from None
        finally:
            self._pressure.gone(request)
        if status in BUSY:
            raise BusyError(status, after_s)
        if status in _NOT_THE_REQUEST or 300 <= status < 400:
            raise EngineUnavailableError(f"{place} answers with status {status}")
        return status, answer


class _Stream:
    """What a server streams, told as it comes; ``begun`` from the first of it on."""

    def __init__(self, tell: Tell | None) -> None:
        self._tell = tell
        self.begun = False

    async def read(self, response: aiohttp.ClientResponse) -> tuple[int, bytes]:
        """Status and whole body of an answer, streamed or not.

        Raises:
            ValueError: the stream is none, or breaks off.
        """
        if self._tell is None or response.content_type != "text/event-stream":
            return response.status, await response.read()
        lines, assembly = EventLines(), Assembly()
        async for piece in response.content.iter_any():
            for data in lines.feed(piece):
                if choices := assembly.add(data):
                    self.begun = True
                    self._tell(orjson.dumps(choices))
        if assembly.failure is not None:
            return assembly.failure
        if not assembly.done:
            raise ValueError("its answer broke off")
        return response.status, assembly.body()


def reason(error: Exception) -> str:
    """In words; some errors have none."""
    return str(error) or type(error).__name__


def _now() -> float:
    return asyncio.get_running_loop().time()

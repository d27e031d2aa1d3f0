"""Attach to a running OpenAI-compatible server: vLLM, SGLang, llama.cpp, or a remote service."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from broker.concurrency import wait_at_most
from workers.engines._vllm_metrics import ServerMetrics, read_metrics
from workers.engines.back_pressure import BUSY, BackPressure
from workers.engines.base import (
    Capacity,
    EngineRequest,
    EngineResponse,
    EngineStartError,
    EngineUnavailableError,
    Load,
    Tell,
)
from workers.engines.openai_sending import Sender, reason

log = logging.getLogger(__name__)

_URLS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})
_PROBE_TIMEOUT = aiohttp.ClientTimeout(total=10)
_SPARE_CONNECTIONS = 16
_KEEP_ALIVE_S = 4.0  # below the 5 s after which uvicorn closes an idle connection
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIOptions:
    """Which server, and what it does not say of itself.

    Attributes:
        url: base URL, with or without ``/v1``.
        model: the name jobs use.
        upstream_model: the server's name for it, where that differs.
        api_key: sent as a bearer token; never shown.
        seats: requests the server runs at once (vLLM's ``max_num_seqs``, which it does not tell).
        kv_tokens: tokens its KV cache holds, where its metrics do not say.
        context_tokens: longest prompt plus output, where its model list does not say.
        device: kind of the device, as reported.
        retry_delays_s: waits before a request is sent again whose connection was lost.
        busy_first_s: first wait of a request that the server is too busy for (429, 503) and does not say for how long;
            doubled with each refusal.
        busy_longest_s: the longest of these.
        busy_patience_s: a server that is too busy for all that it is asked for so long has failed.
        poll_s: seconds between two looks at the server's metrics while it works.
        idle_poll_s: the same while it has nothing to do.
    """

    url: str
    model: str
    upstream_model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    seats: int = 64
    kv_tokens: int = 131_072
    context_tokens: int = 8192
    device: str = "remote"
    retry_delays_s: tuple[float, ...] = (0.25, 1.0)
    busy_first_s: float = 0.5
    busy_longest_s: float = 5.0
    busy_patience_s: float = 300.0
    poll_s: float = 0.5
    idle_poll_s: float = 10.0


class OpenAIEngine:
    """An Engine that forwards to a server. Its load is the server's where that is a vLLM, else what it sent there."""

    def __init__(self, options: OpenAIOptions, *, rng: random.Random | None = None) -> None:
        self._options = options
        self._rng = rng or random.Random()
        self._url = options.url.rstrip("/").removesuffix("/v1")
        self._address = re.sub(r"//[^/@]*@", "//", self._url)  # no password in a message
        self._place = "the server at " + self._address
        self._sender: Sender | None = None
        self._poller: asyncio.Task[None] | None = None
        self._arrival = asyncio.Event()
        self._metrics: ServerMetrics | None = None
        self._looked = 0.0  # when that was so, on the loop's clock
        self._kv_tokens = options.kv_tokens
        self._in_flight = 0
        self._bytes_in_flight = 0
        self._prompt_tokens = 0
        self._output_tokens = 0

    async def start(self) -> Capacity:
        """Find the server and the model.

        Raises:
            EngineStartError: no server answers there, it refuses the key, or it does not serve the model.
        """
        options = self._options
        headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
        connector = aiohttp.TCPConnector(limit=options.seats + _SPARE_CONNECTIONS, keepalive_timeout=_KEEP_ALIVE_S)
        session = aiohttp.ClientSession(connector=connector, headers=headers)
        self._sender = self._new_sender(session)
        try:
            card = await self._model_card(session)
            self._metrics, self._looked = await self._look(session), _now()
            version = await self._version(session)
        except BaseException:
            await self.stop()
            raise
        if self._metrics:
            self._kv_tokens = self._metrics.kv_tokens or options.kv_tokens
            self._poller = asyncio.create_task(self._poll(session))
        context = card.get("max_model_len")
        return Capacity(
            device=options.device,
            model=options.model,
            kv_tokens=self._kv_tokens,
            seats=options.seats,
            context_tokens=context if isinstance(context, int) else options.context_tokens,
            version=f"{card.get('owned_by') or 'openai-compatible'} {version}".strip(),
            variant=self._address[:200],  # what stands behind two addresses are two devices
        )

    async def run(self, request: EngineRequest) -> EngineResponse:
        """Forward one request. Cancelling the call closes its connection, at which vLLM aborts it.

        Raises:
            EngineUnavailableError: the server cannot be reached, refuses the key, or stays busy for too long.
        """
        return await self._run(request, None)

    async def run_telling(self, request: EngineRequest, tell: Tell) -> EngineResponse:
        """As ``run``, and tell what the server streams.

        Raises:
            EngineUnavailableError: as for ``run``; also where the server went away in the middle of its answer.
        """
        return await self._run(request, None if request.url == "/v1/embeddings" else tell)

    async def _run(self, request: EngineRequest, tell: Tell | None) -> EngineResponse:
        if request.url not in _URLS:
            return _refusal(404, f"this server is not asked for {request.url}")
        body = request.body
        payload = _object(body)
        if payload and payload.get("stream"):
            return _refusal(400, "stream cannot be used here: the response is one JSON object", "stream")
        changes: dict[str, Any] = {}
        if payload and self._options.upstream_model and payload.get("model") == self._options.model:
            changes["model"] = self._options.upstream_model
        if tell:
            changes |= {"stream": True, "stream_options": {"include_usage": True}}
        if payload and changes:
            body = orjson.dumps({**payload, **changes})
        self._in_flight += 1
        self._bytes_in_flight += len(body)
        self._arrival.set()
        try:
            response = await self._sent(request.url, body, tell)
        finally:
            self._in_flight -= 1
            self._bytes_in_flight -= len(body)
        if not self._metrics:
            self._prompt_tokens += response.prompt_tokens
            self._output_tokens += response.output_tokens
        return response

    def load(self) -> Load:
        """The server's load, at most ``poll_s`` old; what is in flight from here where it does not tell its own.

        What it is too busy for waits.
        """
        metrics, seats = self._metrics, self._options.seats
        sent = self._bytes_in_flight // _BYTES_PER_TOKEN
        held = self._sender.held if self._sender else 0
        there = self._in_flight - held
        return Load(
            running=metrics.running if metrics else min(there, seats),
            waiting=held + (metrics.waiting if metrics else max(there - seats, 0)),
            kv_tokens_used=metrics.kv_tokens_used if metrics else min(sent, self._kv_tokens),
            prompt_tokens_total=self._prompt_tokens,
            output_tokens_total=self._output_tokens,
            free_memory_bytes=0,  # nothing tells the free memory of a remote device
            steps_total=metrics.steps if metrics else 0,
            age_s=_now() - self._looked if metrics else 0.0,
        )

    async def stop(self) -> None:
        """Let go of the server. What still runs there for us fails with EngineUnavailableError."""
        poller, sender = self._poller, self._sender
        self._poller = self._sender = None
        if poller:
            poller.cancel()
            await asyncio.wait((poller,))
        if sender:
            await sender.close()

    def _new_sender(self, session: aiohttp.ClientSession) -> Sender:
        options = self._options
        pressure = BackPressure(
            first_s=options.busy_first_s,
            longest_s=options.busy_longest_s,
            patience_s=options.busy_patience_s,
            rng=self._rng,
        )
        return Sender(session, self._url, self._place, retry_delays_s=options.retry_delays_s, pressure=pressure)

    async def _sent(self, path: str, body: bytes, tell: Tell | None) -> EngineResponse:
        if self._sender is None:
            raise EngineUnavailableError(f"not attached to {self._place}")
        return _response(self._place, *await self._sender.send(path, body, tell))

    async def _model_card(self, session: aiohttp.ClientSession) -> dict[str, Any]:
        """The server's entry for the model."""
        place = self._place
        try:
            async with session.get(f"{self._url}/v1/models", timeout=_PROBE_TIMEOUT) as response:
                status, body = response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            text = f"{place} does not answer: start it or correct its URL ({reason(error)})"
            raise EngineStartError(text) from None
        if status in (401, 403):
            raise EngineStartError(f"{place} refuses the API key" + ("" if self._options.api_key else ": give one"))
        if status in BUSY:
            raise EngineStartError(f"{place} is too busy to say what it serves (status {status}): try again later")
        cards = (_object(body) or {}).get("data")
        if status != 200 or not isinstance(cards, list):
            raise EngineStartError(f"{place} is not OpenAI-compatible: it answers /v1/models with status {status}")
        wanted = self._options.upstream_model or self._options.model
        named: dict[str, dict[str, Any]] = {str(card.get("id")): card for card in cards if isinstance(card, dict)}
        if wanted not in named:
            raise EngineStartError(
                f"{place} does not serve {wanted}; it serves {', '.join(sorted(named)) or 'nothing'}"
            )
        return named[wanted]

    async def _version(self, session: aiohttp.ClientSession) -> str:
        with suppress(aiohttp.ClientError, TimeoutError):
            async with session.get(f"{self._url}/version", timeout=_PROBE_TIMEOUT) as response:
                return str((_object(await response.read()) or {}).get("version", ""))
        return ""

    async def _look(self, session: aiohttp.ClientSession) -> ServerMetrics | None:
        """The server's metrics; None where it has none, or cannot answer now."""
        try:
            async with session.get(f"{self._url}/metrics", timeout=_PROBE_TIMEOUT) as response:
                return read_metrics(await response.text()) if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            log.debug("no metrics from %s: %s", self._place, reason(error))
            return None

    async def _poll(self, session: aiohttp.ClientSession) -> None:
        """Follow the server's metrics: often while it works, seldom while it idles, at once when work arrives."""
        while True:
            metrics = self._metrics
            if self._in_flight or (metrics and metrics.running + metrics.waiting):
                await asyncio.sleep(self._options.poll_s)
            else:
                self._arrival.clear()
                await wait_at_most(self._arrival, self._options.idle_poll_s)
            latest = await self._look(session)
            if latest and metrics:
                self._prompt_tokens += _grown(metrics.prompt_tokens, latest.prompt_tokens)
                self._output_tokens += _grown(metrics.output_tokens, latest.output_tokens)
                self._metrics, self._looked = latest, _now()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _grown(before: int, after: int) -> int:
    """What a counter grew by: one of a server that was started again counts from 0 again."""
    return after - before if after >= before else after


def _object(body: bytes) -> dict[str, Any] | None:
    """The JSON object in a body, if it is one."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _refusal(status: int, message: str, param: str | None = None) -> EngineResponse:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": None}
    return EngineResponse(status, orjson.dumps({"error": error}))


def _response(place: str, status: int, body: bytes) -> EngineResponse:
    """The server's answer as it is; an error that is no OpenAI error object is put into one."""
    payload = _object(body)
    if status >= 400:
        if payload and isinstance(payload.get("error"), dict):
            return EngineResponse(status, body)
        return _refusal(status, f"{place} answers with status {status}: {body[:200].decode(errors='replace')}")
    if payload is None:
        raise EngineUnavailableError(f"{place} answers with something that is not a JSON object")
    usage = payload.get("usage") or {}
    return EngineResponse(
        status,
        body,
        prompt_tokens=usage.get("prompt_tokens") or 0,
        output_tokens=usage.get("completion_tokens") or 0,
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
    )

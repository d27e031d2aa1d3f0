"""What a worker asks of an engine: start, run one request, say how loaded you are, stop.

An engine turns one OpenAI request body into one OpenAI response body. Everything about queues, attempts and
heartbeats is the worker's business; everything about models, tokens and batching is the engine's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from broker.errors import TokenyardError
from broker.throughput import Profile


class EngineUnavailableError(TokenyardError):
    """The engine died or cannot be reached: the job did not fail, its device did."""


class EngineStartError(TokenyardError):
    """The engine cannot start: no such model, no memory, no server at that address."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request, as its client wrote it.

    Attributes:
        job_id: unique id of the job, used as the engine's request id.
        url: OpenAI path, for example ``/v1/chat/completions``.
        body: the JSON object of the request.
    """

    job_id: str
    url: str
    body: bytes


@dataclass(frozen=True, slots=True)
class EngineResponse:
    """One finished request.

    Attributes:
        status_code: HTTP status: 200, or 4xx/5xx with an OpenAI error object as the body.
        body: JSON, a response object or ``{"error": {"message", "type", "param", "code"}}``.
        prompt_tokens: tokens of the prompt, as the engine counted them (0 where it failed before).
        output_tokens: tokens generated.
        cached_tokens: prompt tokens found in the prefix cache.
    """

    status_code: int
    body: bytes
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a started engine can hold.

    Attributes:
        device: kind of the device, for example ``NVIDIA H100 80GB HBM3`` or ``cpu x1``.
        model: name of the model that is loaded.
        kv_tokens: tokens the KV cache holds.
        seats: most requests that run at once (vLLM's ``max_num_seqs``).
        context_tokens: longest prompt plus output (vLLM's ``max_model_len``).
        version: the engine's name and version, for example ``vllm 0.32.0``.
        dtype: precision of the weights; empty where the engine does not tell.
        tensor_parallel: devices that share the model.
        max_batched_tokens: tokens a step may compute; 0 where the engine does not tell.
        variant: what else of its configuration decides its speed, such as ``eager``.
        profile: the times it is known to take; None where they are to be measured.
    """

    device: str
    model: str
    kv_tokens: int
    seats: int
    context_tokens: int
    version: str
    dtype: str = ""
    tensor_parallel: int = 1
    max_batched_tokens: int = 0
    variant: str = ""
    profile: Profile | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """How loaded an engine is now. The two totals only ever grow while the engine lives.

    Attributes:
        running: requests in the engine's batch.
        waiting: requests the engine has accepted and not started.
        kv_tokens_used: tokens held in the KV cache.
        prompt_tokens_total: prompt tokens computed since the engine started.
        output_tokens_total: tokens generated since the engine started.
        free_memory_bytes: memory free on the device (host memory for a CPU engine).
        steps_total: steps done since the engine started; 0 where it does not count them.
        age_s: how long ago this was so, in seconds: a server elsewhere is not asked each time.
    """

    running: int
    waiting: int
    kv_tokens_used: int
    prompt_tokens_total: int
    output_tokens_total: int
    free_memory_bytes: int
    steps_total: int = 0
    age_s: float = 0.0


#: Of an engine that has done nothing yet.
NO_LOAD = Load(0, 0, 0, 0, 0, 0)


class Engine(Protocol):
    """One model on one device. Used from one event loop."""

    async def start(self) -> Capacity:
        """Load the model and return what fits.

        Raises:
            EngineStartError: it cannot; the message says what to do.
        """
        ...

    async def run(self, request: EngineRequest) -> EngineResponse:
        """Run one request to its end. Cancelling the call aborts the request in the engine.

        A request the engine refuses (invalid, too long) is a response with a 4xx status, not an exception.

        Raises:
            EngineUnavailableError: the engine died under the request.
        """
        ...

    def load(self) -> Load:
        """The engine's load, from memory: never blocks.

        Raises:
            EngineUnavailableError: the engine died, also where there was no request to notice.
        """
        ...

    async def stop(self) -> None:
        """Free the device. Safe to call twice, and after a failed start."""
        ...


#: Told what a request has generated since it was last called: the ``choices`` of an OpenAI stream chunk, a JSON list.
Tell = Callable[[bytes], None]


@runtime_checkable
class StreamingEngine(Protocol):
    """What an engine may do as well: say what a request generates while it runs."""

    async def run_telling(self, request: EngineRequest, tell: Tell) -> EngineResponse:
        """As ``Engine.run``, with the same response; ``tell`` is called with each piece before that comes.

        Raises:
            EngineUnavailableError: the engine died under the request.
        """
        ...

"""From one OpenAI request body to its response body, by vLLM's own serving layer.

With ``workers.engines.vllm`` the only module that imports vLLM, and like it only where it is used.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NamedTuple

import msgspec
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from workers.engines.base import EngineRequest, EngineResponse, EngineUnavailableError, Tell
from workers.engines.chunk_assembly import Assembly, EventLines

_log = logging.getLogger(__name__)
_REPORTED_ERRORS = 3


class Endpoint(NamedTuple):
    """How the body of one URL is read, and who answers it."""

    parse: Callable[[Any], Any]
    answer: Callable[[Any], Awaitable[Any]]


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _EmbeddingBody(msgspec.Struct):
    usage: _Usage = msgspec.field(default_factory=_Usage)


async def make_endpoints(llm: Any, arguments: Any) -> dict[str, Endpoint]:
    """Build vLLM's serving layer over an engine. URLs the model cannot serve are left out.

    Args:
        llm: an ``AsyncLLM``.
        arguments: vLLM's parsed command line.
    """
    from starlette.datastructures import State
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest

    state = State()
    await init_app_state(llm, state, arguments, await llm.get_supported_tasks())
    endpoints: dict[str, Endpoint] = {}
    if chat := getattr(state, "openai_serving_chat", None):
        parse = ChatCompletionRequest.model_validate
        endpoints["/v1/chat/completions"] = Endpoint(parse, chat.create_chat_completion)
    if completion := getattr(state, "openai_serving_completion", None):
        endpoints["/v1/completions"] = Endpoint(CompletionRequest.model_validate, completion.create_completion)
    if embedding := getattr(state, "serving_embedding", None):
        endpoints["/v1/embeddings"] = Endpoint(TypeAdapter(EmbeddingRequest).validate_python, embedding)
    return endpoints


async def answer(endpoint: Endpoint, request: EngineRequest, tell: Tell | None = None) -> EngineResponse:
    """Read the body, have vLLM answer it, and write the response; a bad body is a response with status 400.

    With ``tell``, that is called with each piece of the answer before.

    Raises:
        EngineUnavailableError: the engine was told to stop under the request.
        Exception: whatever vLLM's serving layer raises; see ``failure``.
    """
    try:
        body = from_json(request.body)
    except ValueError as error:
        return refusal(f"the body is not JSON: {error}")
    if not isinstance(body, dict):
        return refusal("the body is not a JSON object")
    if body.get("stream"):
        return refusal("a request in a batch cannot be streamed: leave `stream` out", "stream")
    # The job's id makes the response's; vLLM adds a random part of its own, so that attempts never collide.
    body.setdefault("request_id", request.job_id)
    if tell is not None:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    try:
        parsed = endpoint.parse(body)
    except ValidationError as error:
        return _invalid(error)
    except (AttributeError, KeyError, TypeError) as error:
        # vLLM's validators look into a body before its types are checked.
        return refusal(f"the body is not a valid request: {error}")
    result = await endpoint.answer(parsed)
    if tell is not None and isinstance(result, AsyncGenerator):
        return await _told(result, tell)
    return _to_response(result)


async def _told(events: AsyncGenerator[str], tell: Tell) -> EngineResponse:
    """Tell a stream as it comes; the response is what it says as a whole."""
    lines, assembly = EventLines(), Assembly()
    async with aclosing(events):
        async for event in events:
            for data in lines.feed(event.encode()):
                if choices := assembly.add(data):
                    tell(json.dumps(choices).encode())
    if assembly.failure is not None:
        return EngineResponse(*assembly.failure)
    if assembly.aborted or not assembly.done:
        raise EngineUnavailableError("vLLM's engine process was told to stop")
    prompt_tokens, output_tokens, cached_tokens = assembly.usage
    return EngineResponse(200, assembly.body(), prompt_tokens, output_tokens, cached_tokens)


def refusal(message: str, param: str | None = None, status_code: int = 400) -> EngineResponse:
    """Return a response with an OpenAI error object."""
    kind = "NotFoundError" if status_code == 404 else "BadRequestError"
    error = {"message": message, "type": kind, "param": param, "code": status_code}
    return EngineResponse(status_code, json.dumps({"error": error}).encode())


def failure(error: Exception, job_id: str) -> EngineResponse:
    """Return what vLLM's server would answer after this exception: 4xx for a bad request, else 500."""
    from vllm.entrypoints.serve import create_error_response

    made = create_error_response(error)
    if made.error.code >= 500:
        _log.error("vLLM failed on job %s: %s", job_id, type(error).__name__)
    return EngineResponse(made.error.code, made.model_dump_json().encode())


def _invalid(error: ValidationError) -> EngineResponse:
    from vllm.entrypoints.serve.exception_handling.handlers.validation import clean_loc_for_param

    details = error.errors(include_url=False, include_context=False, include_input=False)
    places = [clean_loc_for_param(detail["loc"]) for detail in details]
    said = dict.fromkeys(f"{place}: {detail['msg']}" for place, detail in zip(places, details, strict=True))
    more = f" (and {len(said) - _REPORTED_ERRORS} more)" if len(said) > _REPORTED_ERRORS else ""
    return refusal("; ".join(list(said)[:_REPORTED_ERRORS]) + more, places[0] if places else None)


def _to_response(result: Any) -> EngineResponse:
    """Write down what vLLM's serving layer returned."""
    from starlette.responses import JSONResponse
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse

    if isinstance(result, ErrorResponse):
        return EngineResponse(result.error.code, result.model_dump_json().encode())
    if isinstance(result, JSONResponse):
        body = bytes(result.body)
        ok = result.status_code == 200
        usage = msgspec.json.decode(body, type=_EmbeddingBody).usage if ok else _Usage()
        return EngineResponse(result.status_code, body, prompt_tokens=usage.prompt_tokens)
    if not hasattr(result, "usage"):
        return refusal("this encoding_format cannot be written in a batch: use float or base64", "encoding_format")
    if any(choice.finish_reason == "abort" for choice in result.choices):
        raise EngineUnavailableError("vLLM's engine process was told to stop")
    usage = result.usage
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    return EngineResponse(
        status_code=200,
        body=result.model_dump_json().encode(),
        prompt_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens or 0,
        cached_tokens=cached or 0,
    )

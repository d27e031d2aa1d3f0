"""OpenAI request bodies read, and response bodies written, for an engine without a model. Pure."""

from __future__ import annotations

import base64
import re
from array import array
from dataclasses import dataclass
from hashlib import blake2b
from math import exp, log
from statistics import NormalDist
from typing import Any, Literal

import orjson

Json = dict[str, Any]
Kind = Literal["chat", "completion", "embedding"]

KINDS: dict[str, Kind] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/embeddings": "embedding",
}
BYTES_PER_TOKEN = 4
MAX_CHOICES = 128
_INPUT_FIELD: dict[Kind, str] = {"chat": "messages", "completion": "prompt", "embedding": "input"}
_SPREAD = 0.8  # sigma of the lognormal that output lengths are drawn from
_FILLER = "sim "  # one token of made-up text
_DEFAULT_DIMENSIONS = 16
_MOST_DIMENSIONS = 8192
_NORMAL = NormalDist()
_COUNT = re.compile(r"[1-9][0-9]{0,8}")
#: A request whose ``metadata`` names so many output tokens gets them: benchmarks replay the lengths of a trace.
OUTPUT_TOKENS_KEY = "simulated_output_tokens"


class RefusedError(Exception):
    """The request is answered with an error: ``status`` and an OpenAI error object."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    def body(self) -> bytes:
        """The error object as JSON."""
        return error_body(self.status, str(self), self.param, self.code)


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> bytes:
    """An OpenAI error object as JSON."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


@dataclass(frozen=True, slots=True)
class Limits:
    """What the simulated model takes: the models it answers for, its context, and how long it talks."""

    models: frozenset[str]
    context_tokens: int
    mean_output_tokens: float
    seed: int


@dataclass(frozen=True, slots=True)
class Work:
    """A request as the engine sees it.

    Attributes:
        kind: which API.
        model: the name the request used.
        prompts: tokens of each prompt.
        choices: for each choice its prompt's tokens, its output tokens, and whether max_tokens cuts it.
        body: the request.
    """

    kind: Kind
    model: str
    prompts: list[int]
    choices: list[tuple[int, int, bool]]
    body: Json

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once whatever n is."""
        return sum(self.prompts)

    @property
    def output_tokens(self) -> int:
        """Tokens of all choices."""
        return sum(output for _, output, _ in self.choices)


def read_work(url: str, raw: bytes, limits: Limits) -> Work:
    """Check a request and fix its lengths.

    Raises:
        RefusedError: the URL or model is unknown, the body is not valid, or the prompt is too long.
    """
    kind = KINDS.get(url)
    if kind is None:
        raise RefusedError(404, f"Unknown request URL: {url}", code="unknown_url")
    body = _object(raw)
    model = body.get("model")
    if not isinstance(model, str):
        raise RefusedError(400, "you must provide a model parameter", "model")
    if model not in limits.models:
        raise RefusedError(404, f"The model `{model}` does not exist", "model", "model_not_found")
    prompts = _prompts(kind, body)
    longest = limits.context_tokens if kind == "embedding" else limits.context_tokens - 1
    if max(prompts) > longest:
        text = f"This model's maximum context length is {limits.context_tokens} tokens; the prompt has {max(prompts)}"
        raise RefusedError(400, text, _INPUT_FIELD[kind], "context_length_exceeded")
    if kind == "embedding":
        _dimensions(body)
        return Work(kind, model, prompts, [(prompt, 0, False) for prompt in prompts], body)
    return Work(kind, model, prompts, _choices(prompts, raw, body, limits), body)


def _object(raw: bytes) -> Json:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RefusedError(400, f"the body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise RefusedError(400, "the body has to be a JSON object")
    return body


def _whole_number(body: Json, name: str, default: int, least: int, most: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int or not least <= value <= most:  # bool is an int, and no number here
        raise RefusedError(400, f"{name} has to be a whole number from {least} to {most}", name)
    return value


def _choices(prompts: list[int], raw: bytes, body: Json, limits: Limits) -> list[tuple[int, int, bool]]:
    context = limits.context_tokens
    name = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    most = _whole_number(body, name, context, 1, context)
    least = _whole_number(body, "min_tokens", 1, 0, most)
    count = _whole_number(body, "n", 1, 1, MAX_CHOICES)
    named = _named_length(body)
    choices: list[tuple[int, int, bool]] = []
    for prompt in prompts:
        limit = min(most, context - prompt)
        for _ in range(count):
            wanted = limit
            if body.get("ignore_eos") is not True:
                wanted = max(least, 1, named or _drawn_length(raw, len(choices), limits))
            choices.append((prompt, min(wanted, limit), wanted >= limit))
    return choices


def _named_length(body: Json) -> int | None:
    """Output tokens that the request's metadata names: whatever a router does to the body, they stay the same."""
    metadata = body.get("metadata")
    named = metadata.get(OUTPUT_TOKENS_KEY) if isinstance(metadata, dict) else None
    if named is None:
        return None
    if not isinstance(named, str) or not _COUNT.fullmatch(named):  # metadata are strings, says OpenAI
        param = f"metadata.{OUTPUT_TOKENS_KEY}"
        raise RefusedError(400, f"{param} has to be a whole number above 0, as a string", param)
    return int(named)


def _drawn_length(raw: bytes, index: int, limits: Limits) -> int:
    """Output tokens from a lognormal, decided by a hash: the same request always has the same length."""
    salt = b"%d" % limits.seed
    digest = blake2b(raw, digest_size=6, key=salt, person=b"%d" % index).digest()
    uniform = (int.from_bytes(digest) + 0.5) / 2**48
    location = log(limits.mean_output_tokens) - _SPREAD**2 / 2
    return round(exp(location + _SPREAD * _NORMAL.inv_cdf(uniform)))


def _text_tokens(text: str) -> int:
    size = len(text) if text.isascii() else len(text.encode())
    return max(1, -(-size // BYTES_PER_TOKEN))


def _prompts(kind: Kind, body: Json) -> list[int]:
    """Tokens of each prompt of the request."""
    field = _INPUT_FIELD[kind]
    given = body.get(field)
    if kind == "chat":
        return [_chat_tokens(given)]
    if isinstance(given, str):
        return [_text_tokens(given)]
    if isinstance(given, list) and given:
        if all(type(item) is int for item in given):
            return [len(given)]
        if all(isinstance(item, str) for item in given):
            return [_text_tokens(item) for item in given]
        if all(isinstance(item, list) and item for item in given):
            return [len(item) for item in given]
    raise RefusedError(400, f"{field} has to be a string, a list of strings or a list of tokens", field)


def _chat_tokens(messages: object) -> int:
    if not isinstance(messages, list) or not messages:
        raise RefusedError(400, "messages has to be a list of one message or more", "messages")
    tokens = 0
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RefusedError(400, "each message has to be an object with a role", "messages")
        content = message.get("content")
        if isinstance(content, str):
            tokens += _text_tokens(content)
        elif isinstance(content, list):
            texts = [part.get("text") for part in content if isinstance(part, dict)]
            tokens += sum(_text_tokens(text) for text in texts if isinstance(text, str))
        elif content is not None:
            raise RefusedError(400, "the content of a message has to be a string or a list of parts", "messages")
    return max(tokens, 1)


def finish_reason(cut: bool) -> str:
    """Why a choice ended."""
    return "length" if cut else "stop"


def filler(tokens: int) -> str:
    """Text of that many tokens."""
    return _FILLER * tokens


def usage(work: Work, output_tokens: int, cached_tokens: int | None = None) -> Json:
    """The usage object of a response, with its cached prompt tokens where they are told."""
    prompt_tokens = work.prompt_tokens
    counts: Json = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens + output_tokens}
    if work.kind != "embedding":
        counts["completion_tokens"] = output_tokens
    if cached_tokens is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": cached_tokens}
    return counts


def response_body(work: Work, response_id: str, created: int, cached_tokens: int = 0) -> bytes:
    """The whole response as JSON. ``created`` is in seconds since 1970."""
    if work.kind == "embedding":
        data = [
            {"object": "embedding", "index": index, "embedding": _embedding(prompt, work.body)}
            for index, prompt in enumerate(work.prompts)
        ]
        return orjson.dumps({"object": "list", "data": data, "model": work.model, "usage": usage(work, 0)})
    chat = work.kind == "chat"
    choices: list[Json] = []
    for index, (_, output, cut) in enumerate(work.choices):
        choice: Json = {"index": index, "logprobs": None, "finish_reason": finish_reason(cut)}
        if chat:
            choice["message"] = {"role": "assistant", "content": filler(output), "refusal": None}
        else:
            choice["text"] = filler(output)
        choices.append(choice)
    return orjson.dumps(
        {
            "id": ("chatcmpl-" if chat else "cmpl-") + response_id,
            "object": "chat.completion" if chat else "text_completion",
            "created": created,
            "model": work.model,
            "choices": choices,
            "usage": usage(work, work.output_tokens, cached_tokens),
        }
    )


def _dimensions(body: Json) -> int:
    return _whole_number(body, "dimensions", _DEFAULT_DIMENSIONS, 1, _MOST_DIMENSIONS)


def _embedding(prompt_tokens: int, body: Json) -> list[float] | str:
    """A made-up unit vector, as floats or (``encoding_format`` base64) as little-endian float32."""
    dimensions = _dimensions(body)
    vector = [0.0] * dimensions
    vector[prompt_tokens % dimensions] = 1.0
    if body.get("encoding_format") == "base64":
        return base64.b64encode(array("f", vector).tobytes()).decode()
    return vector

"""From the chunks of an OpenAI stream to the response that the same request gets without one. Pure.

Form: https://platform.openai.com/docs/api-reference/chat-streaming
"""

from __future__ import annotations

from typing import Any

import orjson

Json = dict[str, Any]

#: Longest event (bytes): more is no stream of tokens.
_MOST_BYTES = 16 * 2**20


class EventLines:
    """Server-sent events from bytes that come in any pieces: the data of each."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that are complete now.

        Raises:
            ValueError: an event is too long.
        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > _MOST_BYTES:
            raise ValueError(f"an event is longer than {_MOST_BYTES} bytes")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


class Assembly:
    """One response, chunk by chunk.

    Attributes:
        done: whether the stream has ended as it should.
        error: the error object that ended it; None where none did.
    """

    def __init__(self) -> None:
        self.done = False
        self.error: Json | None = None
        self._head: Json = {}
        self._usage: Json | None = None
        self._choices: dict[int, Json] = {}

    def add(self, data: bytes) -> list[Json]:
        """Take an event's data in; returns its choices.

        Raises:
            ValueError: it is no event of such a stream.
        """
        if data == b"[DONE]":
            self.done = True
            return []
        chunk = orjson.loads(data)
        if not isinstance(chunk, dict):
            raise ValueError("an event is no JSON object")
        if isinstance(chunk.get("error"), dict):
            self.error = chunk["error"]
            return []
        self._usage = chunk.get("usage") or self._usage
        self._head = self._head or {key: chunk.get(key) for key in ("id", "object", "created", "model")}
        choices = [c for c in chunk.get("choices") or [] if isinstance(c, dict) and isinstance(c.get("index"), int)]
        for choice in choices:
            self._merge(choice)
        return choices

    @property
    def failure(self) -> tuple[int, bytes] | None:
        """Status and body of the error that ended it; None where none did."""
        if self.error is None:
            return None
        code = self.error.get("code")
        return code if isinstance(code, int) and 400 <= code < 600 else 500, orjson.dumps({"error": self.error})

    @property
    def aborted(self) -> bool:
        """Whether an engine gave up in the middle of a choice."""
        return any(choice["finish_reason"] == "abort" for choice in self._choices.values())

    @property
    def usage(self) -> tuple[int, int, int]:
        """Tokens of the prompt, tokens generated, and tokens of the prompt found in the prefix cache."""
        usage = self._usage or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0, cached

    def body(self) -> bytes:
        """The whole response as JSON."""
        chat = self._head.get("object") == "chat.completion.chunk"
        head = {**self._head, "object": "chat.completion"} if chat else self._head
        choices = [self._choices[index] for index in sorted(self._choices)]
        return orjson.dumps({**head, "choices": choices, "usage": self._usage})

    def _merge(self, new: Json) -> None:
        index = new["index"]
        choice = self._choices.setdefault(index, {"index": index, "logprobs": None, "finish_reason": None})
        if isinstance(new.get("delta"), dict):
            _merge_delta(choice.setdefault("message", {"role": "assistant", "content": None}), new["delta"])
        if isinstance(new.get("text"), str):
            choice["text"] = choice.get("text", "") + new["text"]
        if isinstance(new.get("logprobs"), dict):
            choice["logprobs"] = _joined_lists(choice["logprobs"] or {}, new["logprobs"])
        for key in ("finish_reason", "stop_reason"):
            if new.get(key) is not None:
                choice[key] = new[key]


def _merge_delta(message: Json, delta: Json) -> None:
    for key, value in delta.items():
        if key == "role" or value is None:
            message["role"] = delta.get("role") or message["role"]
        elif key == "tool_calls":
            _merge_calls(message.setdefault("tool_calls", []), value)
        elif isinstance(value, str):
            message[key] = (message.get(key) or "") + value
        else:
            message[key] = value


def _merge_calls(calls: list[Json], new: list[Json]) -> None:
    """Tool calls come in pieces, too: the first names the function, the others bring more of its arguments."""
    for piece in new:
        while len(calls) <= min(piece.get("index", 0), 127):
            calls.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
        call, function = calls[min(piece.get("index", 0), 127)], piece.get("function") or {}
        call["id"] = piece.get("id") or call["id"]
        for key in ("name", "arguments"):
            call["function"][key] += function.get(key) or ""


def _joined_lists(before: Json, new: Json) -> Json:
    """Lists of both, one after the other; of anything else the newer."""
    joined = {**before, **new}
    for key, value in new.items():
        if isinstance(value, list):
            joined[key] = [*(before.get(key) or []), *value]
    return joined

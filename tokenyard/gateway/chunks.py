"""From the news of a run to the events of an OpenAI stream. Pure.

Form: https://platform.openai.com/docs/api-reference/chat-streaming. News may have gaps, and a job may run twice: then
its stream goes on only where the result begins with what was sent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import orjson

from broker.token_news import TokenNews

DONE = b"data: [DONE]\n\n"
_FIELDS = ("role", "content", "refusal", "reasoning_content", "reasoning", "audio", "function_call")


class BrokenStreamError(Exception):
    """What was sent is not how the answer begins: another run ended the job."""


class StreamWriter:
    """The events of one stream."""

    def __init__(self, head: dict[str, Any], *, chat: bool) -> None:
        """Args:
        head: what every event says: id, object, created, model.
        chat: whether it is a chat; completions otherwise.
        """
        self._head = b"data: " + orjson.dumps(head)[:-1] + b',"choices":'
        self._chat = chat
        self._run = ""
        self._next = 0
        self._broken = False
        self._text: defaultdict[int, list[str]] = defaultdict(list)  # sent of each choice
        self._ended: set[int] = set()  # choices whose end was sent

    def event(self, choices: Sequence[Any], **more: Any) -> bytes:
        """An event."""
        rest = b"," + orjson.dumps(more)[1:] if more else b"}"
        return self._head + orjson.dumps(choices) + rest + b"\n\n"

    def news(self, news: TokenNews) -> bytes:
        """The event of a piece of news; empty where there is nothing to send."""
        if not self._run:
            self._run = news.run
        # Of another run, or after a gap: what was sent may not be how the answer goes on. The result will tell.
        self._broken |= news.run != self._run or news.number > self._next
        if self._broken or news.number < self._next:
            return b""
        self._next += 1
        choices = _choices(bytes(news.choices))
        for choice in choices:
            self._text[choice["index"]].append(self._text_of(choice))
            if choice.get("finish_reason") is not None:
                self._ended.add(choice["index"])
        return self.event(choices) if choices else b""

    def rest(self, body: bytes) -> list[bytes]:
        """The events after the last news, from the whole response.

        Raises:
            BrokenStreamError: what was sent is not how it begins.
        """
        events: list[bytes] = []
        for choice in _choices_of(body):
            if choice["index"] in self._ended:
                continue
            sent = "".join(self._text[choice["index"]])
            whole = self._whole_text(choice)
            if not whole.startswith(sent):
                raise BrokenStreamError
            events.append(self.event([self._last(choice, whole[len(sent) :], begun=bool(sent))]))
        return events

    def _text_of(self, choice: dict[str, Any]) -> str:
        text = (choice.get("delta") or {}).get("content") if self._chat else choice.get("text")
        return text if isinstance(text, str) else ""

    def _whole_text(self, choice: dict[str, Any]) -> str:
        text = (choice.get("message") or {}).get("content") if self._chat else choice.get("text")
        return text if isinstance(text, str) else ""

    def _last(self, choice: dict[str, Any], rest: str, *, begun: bool) -> dict[str, Any]:
        """A choice of a whole response as the last piece of a stream, where ``rest`` of its text is not sent yet."""
        shown = {key: choice.get(key) for key in ("index", "logprobs", "finish_reason")}
        if not self._chat:
            return {**shown, "text": rest}
        message = choice.get("message") or {}
        delta = {key: message[key] for key in _FIELDS if message.get(key) is not None and not begun}
        if rest or not begun:
            delta["content"] = rest
        if calls := message.get("tool_calls"):
            delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
        return {**shown, "delta": delta}


def _choices(raw: bytes) -> list[dict[str, Any]]:
    """The choices of a piece of news; none where it holds no such."""
    try:
        choices = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return []
    return choices if _are_choices(choices) else []


def _choices_of(body: bytes) -> list[dict[str, Any]]:
    """The choices of a whole response.

    Raises:
        BrokenStreamError: it is none.
    """
    try:
        choices = orjson.loads(body).get("choices", [])
    except (orjson.JSONDecodeError, AttributeError):
        raise BrokenStreamError from None
    if not _are_choices(choices):
        raise BrokenStreamError
    return choices


def _are_choices(choices: Any) -> bool:
    return isinstance(choices, list) and all(map(_is_choice, choices))


def _is_choice(choice: Any) -> bool:
    if not (isinstance(choice, dict) and isinstance(choice.get("index"), int)):
        return False
    return isinstance(choice.get("delta") or choice.get("message") or {}, dict)

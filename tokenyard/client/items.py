"""From what a pipeline has (prompts, bodies of OpenAI's API, lines of its Batch API) to requests. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, cast

import msgspec

from broker.errors import UsageError
from broker.openai_batch import LineError, RequestLine, parse_line

#: A prompt; a body of OpenAI's API (with ``messages``, ``prompt`` or ``input``), which may have a ``custom_id``, too;
#: or a line of its Batch API (with ``custom_id``, ``url`` and ``body``).
Item = str | Mapping[str, Any]

#: What tells the endpoint of a body, the first that it has.
_ENDPOINT_OF = {
    "messages": "/v1/chat/completions",
    "prompt": "/v1/completions",
    "input": "/v1/embeddings",
}
_NO_PARAMETERS: Mapping[str, Any] = {}
#: Of the digest in an id that is made here.
DIGEST_BYTES = 6
_MADE_ID = re.compile(r"(\d{1,12})-[0-9a-f]{12}")


class RequestError(UsageError):
    """An item is no request that can run; the message says which and why."""


@dataclass(frozen=True, slots=True)
class RequestMaker:
    """Makes requests of items.

    Attributes:
        model: for items that name none; empty: they must.
        system: for prompts: the system message before them; empty: none.
        parameters: of every body that does not have them itself, for example ``max_tokens`` or ``temperature``.
        max_bytes: longest request, in bytes as JSON.
    """

    model: str = ""
    system: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: _NO_PARAMETERS)
    max_bytes: int = 16 * 2**20

    def request(self, position: int, item: Item) -> RequestLine:
        """The request of the item at this position (from 0).

        Without a custom_id of its own it gets one of its position and its content: the same input again gives the same
        jobs, and an input that changed never gets another's results.

        Raises:
            RequestError: it is none.
        """
        url, body, custom_id = self._taken_apart(position, item)
        if "model" not in body:
            raise RequestError(f"item {position} names no model, and not just one is served: give model=…")
        try:
            encoded = msgspec.json.encode(body)
            name = custom_id if custom_id is not None else made_id(position, encoded)
            line = {"custom_id": name, "method": "POST", "url": url, "body": msgspec.Raw(encoded)}
            raw = msgspec.json.encode(line)
        except (TypeError, ValueError, RecursionError) as e:
            raise RequestError(f"item {position} cannot be written as JSON: {e}") from None
        request = parse_line(raw, line=position + 1, source="items", max_bytes=self.max_bytes)
        if isinstance(request, LineError):
            raise RequestError(f"item {position}: {request.message.partition(': ')[2]}")
        return request

    def _taken_apart(self, position: int, item: Any) -> tuple[Any, dict[str, Any], Any]:
        """Its url, its body and its custom_id, None where it has none."""
        if isinstance(item, str):
            return "/v1/chat/completions", self._body(self._chat(item)), None
        if not isinstance(item, Mapping):
            kind = type(item).__name__
            raise RequestError(f"item {position} is of type {kind}: give a prompt (str) or a request (dict)")
        fields = dict(cast("Mapping[str, Any]", item))
        custom_id = fields.pop("custom_id", None)
        if isinstance(fields.get("body"), Mapping):
            url = fields.get("url", _endpoint(fields["body"]))
            return url, self._body(fields["body"]), custom_id
        return _endpoint(fields), self._body(fields), custom_id

    def _chat(self, prompt: str) -> dict[str, Any]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {"messages": [*system, {"role": "user", "content": prompt}]}

    def _body(self, own: Mapping[str, Any]) -> dict[str, Any]:
        model = {"model": self.model} if self.model else {}
        return {**model, **self.parameters, **own}


def only_model(served: Mapping[str, str]) -> str:
    """A name of the only model that is served (always the same of them); empty where there is none, or several.

    Args:
        served: name -> pool: the names of one pool are names of one model.
    """
    return min(served) if len(set(served.values())) == 1 else ""


def made_id(position: int, body: bytes) -> str:
    """The custom_id of an item that has none: ``POSITION-DIGEST``."""
    return f"{position}-{blake2b(body, digest_size=DIGEST_BYTES).hexdigest()}"


def position_of(custom_id: str) -> int | None:
    """The position that a ``made_id`` names; None where it is none."""
    match = _MADE_ID.fullmatch(custom_id)
    return int(match[1]) if match else None


def digest_of(custom_id: str) -> bytes:
    """The digest that a ``made_id`` names."""
    return bytes.fromhex(custom_id.rpartition("-")[2])


def _endpoint(body: Mapping[str, Any]) -> str:
    return next((url for key, url in _ENDPOINT_OF.items() if key in body), "/v1/chat/completions")

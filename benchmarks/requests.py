"""Requests for an engine that takes no time."""

from __future__ import annotations

import json
from collections.abc import Iterator

from broker.openai_batch import RequestLine

MODEL = "simulated"


def make_requests(numbers: range, body_bytes: int = 0) -> Iterator[RequestLine]:
    """One chat request for each number, which is its custom_id, too; one token of output each.

    Args:
        numbers: which.
        body_bytes: size of each body; one that is smaller than the smallest possible gives that.
    """
    body = _body(body_bytes)
    for number in numbers:
        yield RequestLine(str(number), "/v1/chat/completions", MODEL, body, 1, number + 1)


def _body(size: int) -> bytes:
    fields = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
    smallest = json.dumps(fields, separators=(",", ":")).encode()
    return smallest.replace(b'"x"', b'"x%b"' % (b"x" * (size - len(smallest))))

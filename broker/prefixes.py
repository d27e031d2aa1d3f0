"""Where prompts begin alike: hashes of the beginning of a request's text, without a tokenizer. Pure.

A request's text is what its prompt is made of, in order: tools and documents, then role and content of each message;
or the prompt of a completion. Marks are hashes of that text from its start up to a few cuts: each power of two from
512 bytes to 64 KiB, and the ends of the first messages, because the part that jobs share often ends just there. Where
the cuts lie depends only on the text before them, so two requests have the same marks as far as they are alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec

#: The text form of a request's marks is never longer (characters).
MAX_CHARS = 200
#: Bytes of text below which a request has no marks.
MIN_BYTES = 512
_CUTS = tuple(MIN_BYTES << doubling for doubling in range(8))
_MESSAGE_CUTS = 3
#: Text beyond is not read (bytes).
_REACH = 1 << 20
#: 40 bits: two of 100,000 different marks are alike once in 200 times, and then a job is placed a little worse.
_DIGEST_BYTES = 5

_CHAT = "/v1/chat/completions"
_COMPLETION = "/v1/completions"
#: Change tokens before the text, or (the salt) keep caches apart.
_SEED_FIELDS = (
    "model",
    "cache_salt",
    "chat_template",
    "chat_template_kwargs",
    "reasoning_effort",
    "tool_choice",
    "add_special_tokens",
    "truncate_prompt_tokens",
)
_LEADING_FIELDS = ("tools", "functions", "documents")
_TEXT_PARTS = frozenset({"text", "input_text", "refusal"})

_encode = msgspec.json.encode
_decode = msgspec.json.decode
_FORM = re.compile(r"[1-9]\d{2,6}:[0-9a-f]{10}(?: [1-9]\d{2,6}:[0-9a-f]{10}){0,10}")


class PrefixMark(NamedTuple):
    """The beginning of a text: its first ``size`` bytes, and their hash."""

    size: int
    digest: str


def prefix_marks(url: str, body: Mapping[str, Any] | bytes) -> tuple[PrefixMark, ...]:
    """The marks of a request, short to long, at most eleven; none where its text is short or is no text.

    Never raises: what makes no sense as a request has no marks.

    Args:
        url: OpenAI path.
        body: the request, as JSON or parsed.
    """
    try:
        fields = _decode(body) if isinstance(body, bytes) else body
        if not isinstance(fields, Mapping):
            return ()
        text, ends = _text(url, fields)
        if len(text) < MIN_BYTES:
            return ()
        seed = [url, *((name, value) for name in _SEED_FIELDS if (value := fields.get(name)) is not None)]
        return _cut(_encode(seed), text, ends)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        return ()


def format_marks(marks: Sequence[PrefixMark]) -> str:
    """Marks as a stream entry carries them: ``bytes:hash bytes:hash``."""
    return " ".join([f"{size}:{digest}" for size, digest in marks])


def parse_marks(text: str) -> tuple[PrefixMark, ...]:
    """Marks from their text form; none where it is not one (anyone can write to Redis)."""
    if not text or len(text) > MAX_CHARS or not text.isascii() or not _FORM.fullmatch(text):
        return ()
    pairs = [mark.split(":") for mark in text.split(" ")]
    marks = tuple([PrefixMark(int(size), digest) for size, digest in pairs])
    sizes = [mark.size for mark in marks]
    in_order = all(shorter < longer for shorter, longer in pairwise(sizes))
    return marks if in_order and sizes[0] >= MIN_BYTES else ()


def _cut(seed: bytes, text: bytes, ends: Sequence[int]) -> tuple[PrefixMark, ...]:
    cuts = {cut for cut in _CUTS if cut <= len(text)}
    cuts.update([end for end in ends if end >= MIN_BYTES][:_MESSAGE_CUTS])
    state = blake2b(seed, digest_size=_DIGEST_BYTES)
    view = memoryview(text)
    marks: list[PrefixMark] = []
    start = 0
    for cut in sorted(cuts):
        state.update(view[start:cut])
        start = cut
        marks.append(PrefixMark(cut, state.hexdigest()))
    return tuple(marks)


def _text(url: str, fields: Mapping[str, Any]) -> tuple[bytes, list[int]]:
    """The text, and where its messages end, without its own end."""
    # To tell the log-probabilities of its prompt, vLLM computes all of it.
    if fields.get("prompt_logprobs") is not None:
        return b"", []
    if url == _CHAT:
        return _chat_text(fields)
    if url == _COMPLETION and not fields.get("echo"):
        return _prompt_text(fields.get("prompt")), []
    return b"", []


def _prompt_text(prompt: object) -> bytes:
    if isinstance(prompt, str):
        return prompt[:_REACH].encode("utf-8", "surrogatepass")
    if isinstance(prompt, list) and prompt and type(prompt[0]) is int:
        return _encode(prompt[:_REACH])[1:-1]  # tokens, written with commas
    return b""


def _chat_text(fields: Mapping[str, Any]) -> tuple[bytes, list[int]]:
    messages = fields.get("messages")
    if not isinstance(messages, list):
        return b"", []
    leading = [value for name in _LEADING_FIELDS if (value := fields.get(name))]
    pieces = [_encode(leading)] if leading else []
    size = len(pieces[0]) if pieces else 0
    ends = [size] if pieces else []
    for message in messages:
        text, whole = _message_text(message)
        piece = text[:_REACH].encode("utf-8", "surrogatepass")
        pieces.append(piece)
        size += len(piece)
        if not whole or size >= _REACH:
            return b"".join(pieces), ends
        ends.append(size)
    return b"".join(pieces), ends[:-1]


def _message_text(message: object) -> tuple[str, bool]:
    """The text of a message, and whether that is all of it: an image, for one, ends what can be compared."""
    if not isinstance(message, Mapping):
        return "", False
    content = message.get("content")
    head = f"\x1e{message.get('role')}\x1f"
    if len(message) > 2:  # name, tool calls and the like
        others = {name: value for name, value in message.items() if name not in ("role", "content")}
        head += _encode(others).decode()
    if isinstance(content, str):
        return head + content, True
    return (head, True) if content is None else _parts_text(head, content)


def _parts_text(head: str, parts: object) -> tuple[str, bool]:
    texts = [head]
    if not isinstance(parts, list):
        return head, False
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") in _TEXT_PARTS else None
        if not isinstance(text, str):
            return "".join(texts), False
        texts.append(text)
    return "".join(texts), True

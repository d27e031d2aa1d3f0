"""Results and counts of a batch, as its client reads them from Redis: anyone may have written there. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from broker.jobs import BatchCounts, Result
from broker.trace_context import checked_traceparent

_Id = Annotated[str, msgspec.Meta(max_length=512)]
_Word = Annotated[str, msgspec.Meta(max_length=4096)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=10**15)]
#: No time (milliseconds since the epoch) and no number of tokens is larger.
_MOST = 10**15


class _Entry(msgspec.Struct, frozen=True):
    """What an entry of a result stream must say."""

    job: _Id
    custom_id: Annotated[str, msgspec.Meta(max_length=4096)]
    status_code: Annotated[int, msgspec.Meta(ge=0, le=999)]
    worker: _Word
    attempt: _Count
    error_code: _Word = ""
    prompt_tokens: _Count = 0
    output_tokens: _Count = 0


def parse_result(entry: bytes, raw: Mapping[bytes, bytes]) -> Result | None:
    """A result from its stream entry; None where it is not one."""
    fields = {key: raw.get(key, b"") for key in _TEXTS if key in raw}
    try:
        said = msgspec.convert({k.decode(): v.decode() for k, v in fields.items()}, _Entry, strict=False)
        cursor = entry.decode()
    except (msgspec.ValidationError, UnicodeDecodeError):
        return None
    return Result(
        cursor=cursor,
        job_id=said.job,
        custom_id=said.custom_id,
        status_code=said.status_code,
        body=raw.get(b"body", b""),
        error_code=said.error_code,
        error_message=raw.get(b"error_message", b"").decode(errors="replace"),
        prompt_tokens=said.prompt_tokens,
        output_tokens=said.output_tokens,
        worker=said.worker,
        attempt=said.attempt,
        submitted=_number(raw.get(b"submitted")),
        started=_number(raw.get(b"started")),
        dispatched=_number(raw.get(b"dispatched")),
        ended=_number(entry.partition(b"-")[0]) / 1000,  # a stream's ids are milliseconds on Redis' clock
        predicted_s=_number(raw.get(b"predicted_s")),
        predicted_output_tokens=int(_number(raw.get(b"predicted_output_tokens"))),
        reason=raw.get(b"reason", b"")[:256].decode(errors="replace"),
        cached_tokens=int(_number(raw.get(b"cached_tokens"))),
        traceparent=checked_traceparent(raw.get(b"traceparent", b"").decode(errors="replace")),
    )


_TEXTS = tuple(name.encode() for name in _Entry.__struct_fields__)


def parse_counts(raw: Mapping[bytes, bytes]) -> BatchCounts:
    """How far a batch is, from its hash; a field that is no count counts as none."""
    counts = BatchCounts()
    for name in BatchCounts.__struct_fields__:
        if (text := raw.get(name.encode())) is not None:
            counts = _with_field(counts, name, text)
    return counts


def _with_field(counts: BatchCounts, name: str, text: bytes) -> BatchCounts:
    if name == "state":
        return msgspec.structs.replace(counts, state=text[:64].decode(errors="replace"))
    if name == "sealed":
        return msgspec.structs.replace(counts, sealed=text == b"1")
    if not text.isdigit() or len(text) > len(str(_MOST)):
        return counts
    return msgspec.structs.replace(counts, **{name: int(text)})


def _number(raw: bytes | None) -> float:
    """A number that only informs; 0 where it is none that makes sense."""
    try:
        number = float(raw or 0)
    except ValueError:
        return 0.0
    return number if 0 <= number <= _MOST else 0.0

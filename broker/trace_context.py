"""A caller's place in a trace, as the header ``traceparent`` names it. Pure.

Form: https://www.w3.org/TR/trace-context/#traceparent-header.
"""

from __future__ import annotations

import re
from typing import NamedTuple

#: A later version may have more after the four fields that the first one has.
_FORM = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MOST_CHARS = 256
_SAMPLED, _RANDOM = 1, 2


class TraceParent(NamedTuple):
    """The span of a caller.

    Attributes:
        trace_id: of 128 bits, not 0.
        span_id: of 64 bits, not 0.
        flags: sampled (1) and random (2); other bits are left out.
    """

    trace_id: int
    span_id: int
    flags: int

    @property
    def sampled(self) -> bool:
        """Whether the caller may have recorded its span."""
        return bool(self.flags & _SAMPLED)

    def text(self) -> str:
        """As a header."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.flags:02x}"


def parse_traceparent(text: str) -> TraceParent | None:
    """The caller's span; None where the text is no such header, which is to be ignored then."""
    match = _FORM.fullmatch(text) if len(text) <= _MOST_CHARS else None
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "00" and more is not None:
        return None
    return TraceParent(int(trace_id, 16), int(span_id, 16), int(flags, 16) & (_SAMPLED | _RANDOM))


def checked_traceparent(text: str) -> str:
    """A header that is kept with a job; empty where the text is none."""
    parent = parse_traceparent(text) if text else None
    return parent.text() if parent else ""

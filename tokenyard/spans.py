"""Times as a person gives them. Pure."""

from __future__ import annotations

import re

from broker.errors import UsageError

_SPAN = re.compile(r"(\d*\.?\d+)\s*(s|m|h|d)?")
_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_span(text: str, option: str = "--deadline") -> float:
    """Seconds of a time such as ``90``, ``90s``, ``30m``, ``2h`` or ``1.5d``.

    Raises:
        UsageError: it is not of this form; names the option.
    """
    match = _SPAN.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"{option} {text}: give a time as 90s, 30m, 2h or 1d")
    return float(match[1]) * _UNIT_S[match[2] or "s"]

"""Measured quantities as a person reads them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from tokenyard.views.text import duration

_TEN_MINUTES_S = 600.0


def seconds(value: float | None) -> str:
    """A time with three figures, as h:mm:ss from ten minutes on; a dash where it is not known."""
    if value is None:
        return "-"
    if value >= _TEN_MINUTES_S:
        return duration(value)
    if value >= 100:
        return f"{value:.0f} s"
    if value >= 10:
        return f"{value:.1f} s"
    return f"{value:.2f} s" if value >= 0.1 or value <= 0 else f"{1000 * value:.3g} ms"


def moment(at: float) -> str:
    """Seconds since the epoch as date and time, to the second."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):  # anyone can write to Redis
        return f"{at:.0f} s since 1970"


def signed_percent(share: float | None) -> str:
    """A difference as a share of 1, in whole percent with its sign; a dash where it is not known."""
    return "-" if share is None else f"{100 * share:+.0f} %"

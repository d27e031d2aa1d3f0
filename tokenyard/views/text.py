"""Values as a person reads them. Pure."""

from __future__ import annotations

from rich.text import Text


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole % 3600 // 60:02}:{whole % 60:02}"


def percent(share: float | None) -> str:
    """A share of 1 in whole percent, a dash where it is not known."""
    return "-" if share is None else f"{100 * share:.0f} %"


def counted(number: int, noun: str) -> str:
    """A number of things: ``1 job``, ``2,000 jobs``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def printable(text: str) -> str:
    """Text of somebody else's for a terminal: without the control characters that would steer it."""
    return "".join(c if c.isprintable() else "?" for c in text)


def name_cell(name: str) -> Text:
    """Somebody's name in a table: cut where the column ends, on one line."""
    return Text(printable(name), no_wrap=True, overflow="ellipsis")

"""When a server that refuses work is asked again: it is busy, not broken. Pure.

A status of 429 (RFC 6585, 4) or 503 (RFC 9110, 15.6.4) says nothing against the request and nothing against the
server's health. So the request waits where it is: as long as the server asks for (``Retry-After``, RFC 9110, 10.2.3),
else with exponential backoff. Times are seconds on a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from broker.delivery import delay_s

if TYPE_CHECKING:
    import random

#: What a server answers that takes no more just now.
BUSY = frozenset({429, 503})
#: Longer than this nobody waits at a server's word (seconds).
LONGEST_RETRY_AFTER_S = 60.0
#: A request that the server has had for so long without refusing it, it works on (seconds).
_TAKEN_S = 10.0
#: Beyond the time that the server asks for comes up to this share of it, so that not all come back at once.
_SCATTER = 0.25


def retry_after_s(headers: Mapping[str, str], epoch_s: float) -> float | None:
    """What the server asks for, in seconds, at most ``LONGEST_RETRY_AFTER_S``; None where it asks for nothing.

    Read are ``Retry-After`` (seconds or a date) and ``retry-after-ms``, which OpenAI's servers send.

    Args:
        headers: of its answer; names in lower case, or a mapping that does not care.
        epoch_s: what a date is compared with, seconds since the epoch.
    """
    milliseconds, after = headers.get("retry-after-ms", ""), headers.get("retry-after", "")
    for text, scale in ((milliseconds, 1e-3), (after, 1.0)):
        try:
            return _bounded(float(text) * scale)
        except ValueError:
            continue
    try:
        return _bounded(parsedate_to_datetime(after).timestamp() - epoch_s)
    except (ValueError, OverflowError):
        return None


def _bounded(seconds: float) -> float:
    if not seconds >= 0:  # also where it is no number
        raise ValueError(f"no time to wait: {seconds}")
    return min(seconds, LONGEST_RETRY_AFTER_S)


class BackPressure:
    """What one server's refusals say about when it takes requests."""

    def __init__(self, *, first_s: float, longest_s: float, patience_s: float, rng: random.Random) -> None:
        """Args:
        first_s: the first wait of a request (seconds) where the server asks for none; doubled with each refusal.
        longest_s: the longest of these.
        patience_s: a server that refuses all that it is asked for so long has failed.
        rng: scatters the waits.
        """
        self._first_s = first_s
        self._longest_s = longest_s
        self._patience_s = patience_s
        self._rng = rng
        self._asked: dict[int, float] = {}  # requests that the server has: since when, the oldest first
        self._requests = 0
        self._took = float("-inf")  # when it was last known to take a request
        self._closed_until = float("-inf")

    def pause_s(self, now: float) -> float:
        """Seconds until the server wants to be asked anything at all."""
        left = self._closed_until - now
        return left * (1 + _SCATTER * self._rng.random()) if left > 0 else 0.0

    def ask(self, now: float) -> int:
        """A request goes to the server; returns its number."""
        self._requests += 1
        self._asked[self._requests] = now
        return self._requests

    def gone(self, request: int) -> None:
        """It is at the server no more: answered, refused, or given up by us."""
        del self._asked[request]

    def took(self, now: float) -> None:
        """The server took a request, whatever it made of it."""
        self._took = now

    def refused(self, now: float, first_refused: float, times: int, after_s: float | None) -> float | None:
        """Seconds after which a request is sent again that is refused now; None where patience is at its end.

        Args:
            now: the time.
            first_refused: when this request was refused for the first time.
            times: how often it was, this time included.
            after_s: what the server asks for, see ``retry_after_s``.
        """
        if now - next(iter(self._asked.values()), now) > _TAKEN_S:
            self._took = now
        if now - max(first_refused, self._took) > self._patience_s:
            return None
        if not after_s:
            return delay_s(times, self._rng, self._first_s, self._longest_s)
        self._closed_until = max(self._closed_until, now + after_s)
        return after_s * (1 + _SCATTER * self._rng.random())

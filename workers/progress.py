"""How far requests are that nobody can ask: estimated from the engine's total and time. Pure."""

from __future__ import annotations

from collections import deque

#: Looks at the engine that are kept; at one heartbeat a second, ten minutes.
_LOOKS_KEPT = 600

#: In less time than this nothing is generated (seconds of all requests together).
_LEAST_S = 1e-9


class Progress:
    """Estimates the output tokens of a running request.

    While it ran, the engine generated D output tokens and its requests together spent R request-seconds; so it got
    about D / R tokens a second, and has that times its own age. Waiting and prefill inside the engine count as request
    time, as they do for the request in question. Times are seconds on a monotonic clock.
    """

    def __init__(self) -> None:
        self._begun: dict[str, float] = {}
        self._request_s = 0.0
        self._at = 0.0
        self._looks: deque[tuple[float, int, float]] = deque(maxlen=_LOOKS_KEPT)

    def begin(self, entry_id: str, now: float) -> None:
        """The engine was given this delivery."""
        self._pass_time(now)
        self._begun[entry_id] = now

    def end(self, entry_id: str, now: float) -> None:
        """It is out of the engine."""
        self._pass_time(now)
        self._begun.pop(entry_id, None)

    def look(self, now: float, output_tokens_total: int) -> None:
        """What the engine says of itself now; its total begins anew when it was started again."""
        self._pass_time(now)
        if self._looks and output_tokens_total < self._looks[-1][1]:
            self._looks.clear()
        self._looks.append((now, output_tokens_total, self._request_s))

    def has_begun(self, entry_id: str) -> bool:
        """Whether the engine has it."""
        return entry_id in self._begun

    def output_tokens(self, entry_id: str, now: float, output_tokens_total: int) -> int:
        """Output tokens of a delivery so far; 0 where it has not begun or the engine was never looked at."""
        begun = self._begun.get(entry_id)
        if begun is None:
            return 0
        self.look(now, output_tokens_total)
        before = [look for look in self._looks if look[0] <= begun]
        _, first_total, first_request_s = before[-1] if before else self._looks[0]
        request_s = self._request_s - first_request_s
        if request_s < _LEAST_S:
            return 0
        return round((output_tokens_total - first_total) / request_s * (now - begun))

    def _pass_time(self, now: float) -> None:
        self._request_s += len(self._begun) * (now - self._at)
        self._at = now

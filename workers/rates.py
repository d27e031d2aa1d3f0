"""Rates of growing counters over the last seconds. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class RateWindow:
    """Growth a second of a pair of counters over about the last ``length_s`` seconds."""

    length_s: float = 4.0
    _points: deque[tuple[float, int, int]] = field(default_factory=deque[tuple[float, int, int]])

    def add(self, now: float, prompt_tokens: int, output_tokens: int) -> tuple[float, float]:
        """Take the counters' state at ``now`` (seconds); returns prompt and output tokens a second."""
        points = self._points
        if points and (prompt_tokens < points[-1][1] or output_tokens < points[-1][2]):
            points.clear()  # the engine was restarted: its counters began anew
        points.append((now, prompt_tokens, output_tokens))
        while len(points) > 2 and now - points[1][0] >= self.length_s:
            points.popleft()
        since, first_prompt, first_output = points[0]
        if now <= since:
            return 0.0, 0.0
        return (prompt_tokens - first_prompt) / (now - since), (output_tokens - first_output) / (now - since)

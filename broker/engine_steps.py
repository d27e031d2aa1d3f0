"""What an engine tells of one step, for those that do. Pure."""

from __future__ import annotations

from typing import NamedTuple


class EngineStep(NamedTuple):
    """One step of an engine's batch.

    Attributes:
        at: when its outcome was known, seconds on a clock that never runs back.
        elapsed: seconds it took inside the engine, without what the host does between two steps.
        prompt_tokens: prompt tokens it computed, of all requests together.
        decoding: requests that it gave a further token.
    """

    at: float
    elapsed: float
    prompt_tokens: int
    decoding: int

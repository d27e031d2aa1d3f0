"""How full a device's KV memory will be, step by step, with the jobs it has. Pure.

A job of p prompt and o output tokens that starts at step s holds p + (t - s) tokens at step t, until s + o. Summed over
the jobs in flight that gives the peak to come; a job fits where the peak with it stays below the memory there is. So
memory is filled further than by the jobs' final sizes, and the engine still need not preempt (the idea is that of the
Past-Future scheduler, ASPLOS '25). Time is counted in steps of the engine, in bins of a few steps.

Where o is a mere guess, a job is taken to go on at each step with the same chance, as if outputs were distributed
exponentially about it: some end at once, others hold memory long after. What the engine says it holds now, against
what is counted, then tells how many of the long ones there are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_STEPS = 16  # a bin's width
_BINS = 256  # what ends beyond the last bin is counted into it

_TAIL = 4  # a guessed job is counted for this many times its guess
_MOST_SCALE = 3.0
_TAIL_SHARE = 0.2  # of the peak: what is held beyond is the tail

Array = NDArray[np.float64]

_EDGES = np.arange(1, _BINS + 1, dtype=float) * _STEPS


class KvCalendar:
    """Tokens held in each bin, from the present one on."""

    __slots__ = ("_answer", "_asked", "_bins", "_first", "excess", "scale", "step")

    def __init__(self) -> None:
        self.step = 0.0
        self.excess = 0.0  # tokens that the engine holds now beyond what we count: jobs that outlast their prediction
        self.scale = 1.0  # what it holds now over what we expected of guessed jobs
        self._first = 0  # number of the bin at index 0
        self._bins = np.zeros(_BINS)
        self._asked: tuple[float, int, int, bool, int] | None = None
        self._answer = self._bins[:0]

    def advance(self, step: float) -> None:
        """Steps have passed: the bins before the present one are dropped."""
        self.step = max(self.step, step)
        passed = min(int(self.step // _STEPS) - self._first, _BINS)
        if passed > 0:
            self._bins[:-passed] = self._bins[passed:]
            self._bins[-passed:] = 0.0
            self._first += int(self.step // _STEPS) - self._first

    def add(
        self, start: float, prompt_tokens: int, output_tokens: int, *, guessed: bool = False, sign: int = 1
    ) -> None:
        """Count a job that starts at that step in, or out with a ``sign`` of -1."""
        held = self.held(start, prompt_tokens, output_tokens, guessed=guessed)
        if sign > 0:
            self._bins[: len(held)] += held
        else:
            self._bins[: len(held)] -= held

    def held(self, start: float, prompt_tokens: int, output_tokens: int, *, guessed: bool = False) -> Array:
        """Tokens such a job holds, or is expected to hold, in each bin from the present one on. Not to be written to.

        The same is asked up to three times in a row: does it fit, it goes there, it is bound.
        """
        asked = (start, prompt_tokens, output_tokens, guessed, self._first)
        if asked != self._asked:
            self._asked, self._answer = asked, self._held(start, prompt_tokens, output_tokens, guessed)
        return self._answer

    def _held(self, start: float, prompt_tokens: int, output_tokens: int, guessed: bool) -> Array:
        origin = self._first * _STEPS
        end = start + output_tokens * (_TAIL if guessed else 1)
        # Out goes what went in: no bin that was beyond the last one when the job started.
        last = min(int(end // _STEPS), int(start // _STEPS) + _BINS - 1)
        bins = min(last - self._first + 1, _BINS)
        if bins <= 0:
            return _EDGES[:0]
        age = _EDGES[:bins] + (origin - start)
        if guessed:
            return (prompt_tokens + age) * np.exp(np.minimum((_STEPS / 2 - age) / max(output_tokens, 1), 0.0))
        held = age + prompt_tokens
        at_edge = bins * _STEPS + (origin - start) + prompt_tokens
        held[-1] = min(at_edge, prompt_tokens + output_tokens)  # the bin in which it ends
        return held

    def tell(self, held_tokens: float, *, guessed: bool = False) -> None:
        """The engine holds so many tokens now."""
        counted = self.now
        self.scale = min(max(held_tokens / counted, 1.0), _MOST_SCALE) if guessed and counted > 0 else 1.0
        self.excess = max(0.0, held_tokens - counted * self.scale)

    def free(self, tokens: float) -> Array:
        """What is left in each bin of a memory of that many tokens."""
        return (tokens - self.excess) - self._bins * self.scale

    @property
    def steps_left(self) -> float:
        """Steps until the last job counted here ends; the far tail of guessed ones left out."""
        held = np.flatnonzero(self._bins > max(0.5, _TAIL_SHARE * float(self._bins.max()) if self.scale > 1 else 0.5))
        return max(0.0, (self._first + int(held[-1]) + 0.5) * _STEPS - self.step) if len(held) else 0.0

    @property
    def now(self) -> float:
        """Tokens counted as held in the present bin."""
        return float(self._bins[0])

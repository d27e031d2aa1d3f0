"""How full a device's KV memory will be, step by step, with the jobs it has. Pure.

A job of p prompt and o output tokens whose prefill ends at step s holds p tokens until then, and p + (t - s) at step t,
until s + o. Summed over the jobs in flight that gives the peak to come; a job fits where the peak with it stays below
the memory there is. So memory is filled further than by the jobs' final sizes, and the engine still need not preempt
(the idea is that of the Past-Future scheduler, ASPLOS '25). Time is counted in steps of the engine, some to a bin.

Where o is a mere guess, a job is taken to go on at each step with the same chance, as if outputs were distributed
exponentially about it: some end at once, others hold memory long after. What the engine says it holds now, against
what is counted, then tells how many of the long ones there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import exp, log

import numpy as np
from numpy.typing import NDArray

#: A bin's width.
BIN_STEPS = 32
_PER_STEP = 1 / BIN_STEPS  # a power of two: nothing is rounded
_SPAN = 128  # bins of one job: what ends beyond is counted into the last
SPAN_STEPS = _SPAN * BIN_STEPS
_LEAD = 64  # it starts no later than so many bins from now
_LATEST = (_LEAD - 1) * BIN_STEPS
_BINS = _SPAN + _LEAD
_RING = 8 * _BINS  # bins in memory: they are moved to the front only when these are used up

_TAIL = 2  # a guessed job is counted for this many times its guess
_LEAST_GUESS = 8.0
_GUESS_WIDTH = 1.05  # guesses within this factor share a table
_MOST_SCALE = 3.0
_TAIL_SHARE = 0.2  # of the peak: what is held beyond is the tail

Array = NDArray[np.float64]
#: A job whose lengths are known: prompt and output tokens, and the step at which its prefill ends.
Known = tuple[int, int, float]

#: Steps from the start of the present bin to the end of each.
EDGES = np.arange(1, _BINS + 1, dtype=float) * BIN_STEPS


class KvCalendar:
    """Tokens held in each bin, from the present one on.

    A job holds a token more with each step, so what n jobs hold at step t is a level plus n times t until one of them
    ends: sums of both for all jobs, and of what ends in each bin, tell all bins at one look, and a job is counted in or
    out without a walk through its bins. Only what does not grow like that is kept bin by bin.
    """

    __slots__ = (
        "_at",
        "_bins",
        "_count",
        "_dense",
        "_ends",
        "_first",
        "_gap",
        "_guesses",
        "_guessing",
        "_held",
        "_last",
        "_level",
        "_next",
        "_total",
        "excess",
        "scale",
        "step",
    )

    def __init__(self) -> None:
        self.step = 0.0
        self.excess = 0.0  # tokens that the engine holds now beyond what we count: jobs that outlast their prediction
        self.scale = 1.0  # what it holds now over what we expected of guessed jobs
        self._gap: float | None = None  # as the excess, or below zero where it holds less; None: it never told
        self._guessing = False  # whether most were guessed then
        self._first = 0  # number of the present bin
        self._next = float(BIN_STEPS)  # step at which the next one begins
        self._at = 0  # where that is in memory
        self._level, self._count = 0.0, 0  # of the jobs that hold tokens now: sum of prompt - start, and how many
        # What comes to both where jobs hold none from a bin on: level + count * 1j, side by side in memory.
        self._ends = np.zeros(_RING, dtype=complex)
        self._bins = np.zeros(_RING)  # what is kept bin by bin
        self._dense = False  # whether there is any
        self._held = 0  # jobs counted
        self._guesses = 0  # those of them that are guessed
        self._total = 0.0  # tokens that they hold at their ends, all together
        self._last = -1  # number of the last bin in which one ever ended: there is nothing beyond

    def advance(self, step: float) -> None:
        """Steps have passed: the bins before the present one are dropped."""
        if step <= self.step:
            return
        self.step = step
        if step < self._next:
            return
        passed = int(step // BIN_STEPS) - self._first
        over = self._ends[self._at + 1 : self._at + passed + 1]
        ended = complex(over.sum())
        self._level += ended.real
        self._count += int(ended.imag)
        over[:] = 0.0
        self._first += passed
        self._next = float((self._first + 1) * BIN_STEPS)
        self._at += passed
        if self._at + _BINS >= _RING:
            self._to_front(min(self._at, _RING))

    def _to_front(self, at: int) -> None:
        left = _RING - at
        self._ends[:left] = self._ends[at:].copy()
        self._ends[left:] = 0.0
        self._bins[:left] = self._bins[at:].copy()
        self._bins[left:] = 0.0
        self._at = 0

    def add(
        self, start: float, prompt_tokens: int, output_tokens: int, *, guessed: bool = False, sign: int = 1
    ) -> None:
        """Count a job that starts at that step in, or out with a ``sign`` of -1."""
        self._total += sign * (prompt_tokens + output_tokens)
        self._held += sign
        if guessed:
            self._guesses += sign
            held = self.held(start, prompt_tokens, output_tokens, guessed=True)
            bins = len(held)
            self._keep(held, sign)
        else:
            bins = self.bins(start, output_tokens)
            if bins <= 0:
                return
            level = sign * (prompt_tokens - start)
            self._level += level
            self._count += sign
            self._ends[self._at + bins] -= complex(level, sign)
            if start >= self._next:  # it waits for its prefill, and does not grow
                self._keep(self._lead(start), sign)
        if self._first + bins > self._last:
            self._last = self._first + bins - 1

    def _keep(self, tokens: Array, sign: int) -> None:
        self._dense = True
        counted = self._bins[self._at : self._at + len(tokens)]
        if sign > 0:
            counted += tokens
        else:
            counted -= tokens

    def _lead(self, start: float) -> Array:
        """What a job holds in the bins before its start beyond the line on which it will grow."""
        lead = int(start * _PER_STEP) - self._first
        return (start - self.origin) - EDGES[:lead]

    def bins_until(self, end: float) -> int:
        """Bins from the present one to that in which something ends that is there now."""
        return max(1, -int(-end // BIN_STEPS) - self._first)

    def bins(self, start: float, output_tokens: float) -> int:
        """Bins from the present one to that in which such a job ends; 0 or less where it is over."""
        begun = int(start * _PER_STEP)
        end = (start + output_tokens) * _PER_STEP
        ends = int(end)
        if ends < end:
            ends += 1
        if ends > begun + _SPAN:
            ends = begun + _SPAN
        return (ends if ends > begun else begun + 1) - self._first

    def held(self, start: float, prompt_tokens: int, output_tokens: int, *, guessed: bool = False) -> Array:
        """Tokens such a job holds, or is expected to hold, in each bin from the present one on."""
        bins = self.bins(start, output_tokens * (_TAIL if guessed else 1))
        if bins <= 0:
            return EDGES[:0]
        held = EDGES[:bins] + (prompt_tokens + self.origin - start)
        old = self._first - int(start // BIN_STEPS)
        lead = 0
        if old < 0:  # it waits for its prefill, and does not grow
            lead = -old
            held[:lead] = prompt_tokens
        if guessed:
            guess = max(float(output_tokens), _LEAST_GUESS)
            age = BIN_STEPS - start % BIN_STEPS  # at the end of its first bin
            table = _survival(round(log(guess) / log(_GUESS_WIDTH)))
            held[lead:] *= table[old + lead : old + bins]
            held[lead:] *= min(exp((BIN_STEPS / 2 - age) / guess), 1.0)
        return held

    def start(self, queued_tokens: float, max_batched_tokens: float) -> float:
        """The step at which a job will have its first token, behind so many prompt tokens, its own with them."""
        steps = queued_tokens / (max_batched_tokens or 1)
        return self.step + (steps if steps < _LATEST else _LATEST)

    def tell(self, held_tokens: float, *, guessed: bool = False) -> None:
        """The engine holds so many tokens now."""
        counted = self.now
        self.scale = min(max(held_tokens / counted, 1.0), _MOST_SCALE) if guessed and counted > 0 else 1.0
        self._gap, self._guessing = held_tokens - counted * self.scale, guessed
        self.excess = max(0.0, self._gap)

    def ended(
        self, start: float, prompt_tokens: int, output_tokens: int, held_tokens: float, *, guessed: bool = False
    ) -> None:
        """Count a job out that held so many tokens in the end, whatever was predicted.

        The engine holds that much less from now on: to go by what it last told would leave them held until it tells
        again.
        """
        holds = None if self._gap is None else self.now * self.scale + self._gap - held_tokens
        self.add(start, prompt_tokens, output_tokens, guessed=guessed, sign=-1)
        if holds is not None:
            self.tell(max(holds, 0.0), guessed=self._guessing)

    def load(self, bins: int = _BINS, more: Sequence[Known] = ()) -> Array:
        """Tokens counted as held in each bin, for so many bins, or as many as hold any if these are more.

        Args:
            bins: so many at least.
            more: jobs that are taken to be there, too.
        """
        return self._reckoned(bins, more, 0.0, 0)

    def tall(self, bins: int, more: Sequence[Known] = ()) -> Array:
        """What the engine will hold in each of at least so many bins, plus the step at which the bin ends."""
        if self.scale == 1:  # the step grows as one job more would
            return self._reckoned(bins, more, self.excess, 1)
        load = self.load(bins, more) * self.scale
        load += EDGES[: len(load)]
        load += self.origin + self.excess
        return load

    def _reckoned(self, bins: int, more: Sequence[Known], level: float, count: int) -> Array:
        level += self._level
        count += self._count
        for prompt_tokens, output_tokens, start in more:
            level += prompt_tokens - start
            count += 1
            bins = max(bins, self.bins(start, output_tokens))
        bins = min(max(bins, self._last - self._first + 1), _BINS)
        at = self._at
        ends = self._ends[at : at + bins]
        if more:
            ends = ends.copy()
            for prompt_tokens, output_tokens, start in more:
                its = self.bins(start, output_tokens)
                if its < bins:
                    ends[its] -= complex(prompt_tokens - start, 1)
        ends[0] = complex(level, count)  # nothing ends before the present bin does
        sums: NDArray[np.complex128] = np.add.accumulate(ends)
        held = EDGES[:bins] + (self._next - BIN_STEPS)
        held *= sums.imag
        held += sums.real
        if self._dense:
            held += self._bins[at : at + bins]
        for _, _, start in more:
            if start >= self._next:
                lead = self._lead(start)
                held[: len(lead)] += lead
        return held

    def free(self, tokens: float) -> Array:
        """What is left in each bin of a memory of that many tokens."""
        return (tokens - self.excess) - self.load() * self.scale

    def surely_free(self, tokens: float) -> float:
        """What is left of such a memory in any bin, at least: as if all ended at the same time."""
        return 0.0 if self._guesses else tokens - self.excess - self._total

    @property
    def jobs(self) -> int:
        """Jobs counted."""
        return self._held

    @property
    def bin(self) -> int:
        """Number of the present bin."""
        return self._first

    @property
    def origin(self) -> float:
        """Step at which the present bin begins."""
        return self._next - BIN_STEPS

    @property
    def steps_left(self) -> float:
        """Steps until the last job counted here ends; the far tail of guessed ones left out."""
        if not self._held:
            return 0.0
        load = self.load(1)
        held = np.flatnonzero(load > max(0.5, _TAIL_SHARE * float(load.max()) if self.scale > 1 else 0.5))
        return max(0.0, (self._first + int(held[-1]) + 0.5) * BIN_STEPS - self.step) if len(held) else 0.0

    @property
    def now(self) -> float:
        """Tokens counted as held in the present bin."""
        held = self._level + self._count * self._next
        return held + float(self._bins[self._at]) if self._dense else held


@lru_cache(maxsize=512)
def _survival(exponent: int) -> Array:
    """The chance to go on, at the end of each bin from a job's first on, over that at the end of the first."""
    guess = _GUESS_WIDTH**exponent
    return np.exp(-np.arange(_SPAN) * (BIN_STEPS / guess))

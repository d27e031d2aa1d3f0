"""What a device's KV memory still holds, while jobs are given to it in one round of decisions. Pure."""

from __future__ import annotations

from math import inf

import numpy as np

from broker.kv_calendar import BIN_STEPS, EDGES, SPAN_STEPS, Array, Known, KvCalendar

#: After no more jobs than these the peaks are not reckoned anew for one that may or may not fit: it waits for a look.
_FEW = 4


class KvRoom:
    """A look at a calendar, with the jobs that were put in since; the calendar itself does not change."""

    __slots__ = ("_bound", "_calendar", "_ends", "_first_end", "_least", "_new", "_peaks", "_prompts", "_put", "sure")

    def __init__(self, calendar: KvCalendar, bound: float) -> None:
        """Look.

        Args:
            calendar: the jobs in flight.
            bound: KV tokens that jobs may hold at any time to come.
        """
        self._calendar, self._bound = calendar, bound
        #: Tokens that fit whatever the others do: as if all jobs ended at the same time.
        self.sure = calendar.surely_free(bound)
        #: The most tokens held up to each bin, plus the step at which that bin ends.
        self._peaks: Array | None = None
        self._least: float | None = None
        self._put: list[Known] = []
        # Of those that were put in since the peaks were reckoned: how many, their prompts, what they hold at their ends
        # at most, and the step at which the first of them ends.
        self._new = self._prompts = self._ends = 0
        self._first_end = inf

    def fits(self, prompt_tokens: int, output_tokens: int, start: float) -> bool:
        """Whether memory holds these and one more, whose prefill ends at step ``start``, at every step to come."""
        bins = self._calendar.bins(start, output_tokens)
        # The job grows a token a step: in each bin it holds its prompt and the steps since its start.
        most = self._bound - (prompt_tokens - start)
        if self._new and self._peaks is not None:
            least, highest = self._between(self._peaks, bins)
            if least > most or highest <= most or self._new <= _FEW:
                return highest <= most
        return bool(self._highest(bins)[bins - 1] <= most)

    def put(self, prompt_tokens: int, output_tokens: int, start: float) -> None:
        """Use up the room of one job."""
        tokens = prompt_tokens + output_tokens
        self.sure -= tokens
        if self._least is not None:
            self._least -= tokens
        self._put.append((prompt_tokens, output_tokens, start))
        self._new += 1
        self._prompts += prompt_tokens
        self._ends += tokens + BIN_STEPS
        end = start + (output_tokens if output_tokens < SPAN_STEPS else SPAN_STEPS)
        if end < self._first_end:
            self._first_end = end

    def least(self) -> float:
        """Tokens free at the peak to come; at least so many, once jobs were put in."""
        if self._least is None:
            tall = self._calendar.tall(1, self._put)
            held = tall - EDGES[: len(tall)]
            self._least = self._bound - (float(held.max()) - self._calendar.origin)
        return self._least

    def _between(self, peaks: Array, bins: int) -> tuple[float, float]:
        """The peak with what was put since lies between the old one with their prompts, and that with their ends.

        That mostly tells enough, and is cheaper than to reckon anew.
        """
        shortest = min(bins, self._calendar.bins_until(self._first_end))
        last = len(peaks)
        if bins > last:  # nothing was held there
            return float(peaks[min(shortest, last) - 1]) + self._prompts, float("inf")
        return float(peaks[shortest - 1]) + self._prompts, float(peaks[bins - 1]) + self._ends

    def _highest(self, bins: int) -> Array:
        if self._peaks is None or self._new or len(self._peaks) < bins:
            self._peaks = np.maximum.accumulate(self._calendar.tall(bins, self._put))
            self._new = self._prompts = self._ends = 0
            self._first_end = inf
        return self._peaks

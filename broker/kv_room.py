"""What a device's KV memory still holds, while jobs are given to it in one round of decisions. Pure."""

from __future__ import annotations

import numpy as np

from broker.kv_calendar import BIN_STEPS, EDGES, Array, KvCalendar

#: After no more jobs than these the peaks are not reckoned anew for one that may or may not fit: it waits for a look.
_FEW = 4


class KvRoom:
    """A look at a calendar, with the jobs that were put in since; the calendar itself does not change."""

    __slots__ = ("_bound", "_calendar", "_least", "_peaks", "_put", "_tall", "sure")

    def __init__(self, calendar: KvCalendar, bound: float) -> None:
        """Look.

        Args:
            calendar: the jobs in flight.
            bound: KV tokens that jobs may hold at any time to come.
        """
        self._calendar, self._bound = calendar, bound
        #: Tokens that fit whatever the others do: as if all jobs ended at the same time.
        self.sure = calendar.surely_free(bound)
        self._tall: Array | None = None  # tokens held in each bin, plus the step at which the bin ends
        self._peaks: Array | None = None  # the most of these up to each bin
        self._least: float | None = None
        self._put: list[tuple[int, int, float, int]] = []  # and the bin in which each ends

    def fits(self, prompt_tokens: int, output_tokens: int, start: float) -> bool:
        """Whether memory holds these and one more, whose prefill ends at step ``start``, at every step to come."""
        bins = self._calendar.bins(start, output_tokens)
        # The job grows a token a step: in each bin it holds its prompt and the steps since its start.
        most = self._bound - (prompt_tokens - start)
        if self._put and self._peaks is not None:
            least, highest = self._between(self._peaks, bins)
            if least > most or highest <= most or len(self._put) <= _FEW:
                return highest <= most
        return bool(self._highest(bins)[bins - 1] <= most)

    def put(self, prompt_tokens: int, output_tokens: int, start: float) -> None:
        """Use up the room of one job."""
        tokens = prompt_tokens + output_tokens
        self.sure -= tokens
        if self._least is not None:
            self._least -= tokens
        self._put.append((prompt_tokens, output_tokens, start, self._calendar.bins(start, output_tokens)))

    def least(self) -> float:
        """Tokens free at the peak to come; at least so many, once jobs were put in."""
        if self._least is None:
            tall = self._reckoned(1)
            held = tall - EDGES[: len(tall)]
            self._least = self._bound - (float(held.max()) - self._calendar.origin)
        return self._least

    def _between(self, peaks: Array, bins: int) -> tuple[float, float]:
        """The peak with what was put since lies between the old one with their prompts, and that with their ends.

        That mostly tells enough, and is cheaper than to reckon anew.
        """
        shortest, prompts, ends = bins, 0, 0
        for prompt_tokens, output_tokens, _, its_bins in self._put:
            if its_bins < shortest:
                shortest = its_bins
            prompts += prompt_tokens
            ends += prompt_tokens + output_tokens + BIN_STEPS
        last = len(peaks)
        if bins > last:  # nothing was held there
            return float(peaks[min(shortest, last) - 1]) + prompts, float("inf")
        return float(peaks[shortest - 1]) + prompts, float(peaks[bins - 1]) + ends

    def _highest(self, bins: int) -> Array:
        if self._peaks is None or self._put or len(self._peaks) < bins:
            self._peaks = np.maximum.accumulate(self._reckoned(bins))
        return self._peaks

    def _reckoned(self, bins: int) -> Array:
        """Count in what was put."""
        calendar = self._calendar
        tall = self._tall
        if tall is None or len(tall) < bins:
            tall = calendar.tall(bins) if tall is None else _longer(tall, calendar.tall(bins))
        for prompt_tokens, output_tokens, start, _ in self._put:
            held = calendar.held(start, prompt_tokens, output_tokens)
            if len(held) > len(tall):
                tall = _longer(tall, calendar.tall(len(held)))
            tall[: len(held)] += held
        self._put = []
        self._tall = tall
        return tall


def _longer(counted: Array, fresh: Array) -> Array:
    """The first bins as they were counted, the others as they are."""
    fresh[: len(counted)] = counted
    return fresh

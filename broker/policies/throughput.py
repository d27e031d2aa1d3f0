"""The cluster's throughput as the goal: shares from a linear program, carried out by late binding. Pure.

Two situations, told apart in every round:

- *More waits than fits.* Each device with room takes jobs of the length classes that the linear program (see
  ``broker.fluid``) gives to its kind, in these proportions. Where all that waits can be seen, the program knows what is
  in flight, too, long jobs go first, and a device on which a job would end after all else is done does not get it.
- *All fits.* Each job, long ones first, goes where it is predicted to end soonest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import ClassVar

from broker.policies.base import CachedPrefixes, Candidate, Offer, Placement, Round
from broker.policies.kind_shares import KindShares
from broker.policies.outlook import predicted_seconds
from broker.policies.shares import Shares
from broker.policies.soonest import place_soonest
from broker.window import ClassKey, Line

#: More jobs than these are a batch: its throughput counts, not when each is done.
_FEW = 64
#: Jobs that are looked at to judge how many fit.
_SAMPLE = 16
#: Prefixes of a device that are looked for, the latest first.
_PREFIXES = 16
#: Jobs that are looked at for one whose prefix no other device has.
_LOOK_AHEAD = 8
#: Jobs that a device takes in its turn, where far more wait than fit.
_HANDFUL = 8


class Throughput:
    """The default."""

    name: ClassVar[str] = "throughput"

    def __init__(self) -> None:
        self._shares = Shares()

    def place(self, turn: Round) -> list[Placement]:
        placed: list[Placement] = []
        for line in turn.waiting.lines.values():
            if not len(line):
                continue
            if turn.whole and len(line) <= _FEW and _all_fit(turn.open, line):
                done = place_soonest(turn, line, turn.limit - len(placed))
            else:
                self._shares.renew(turn)
                done = _Pull(self._shares, line, turn).place(turn.limit - len(placed))
            placed += done
            if len(done) < len(line):  # strictly by priority: the next waits until this one is empty
                break
        return placed


def _all_fit(offers: Sequence[Offer], line: Line) -> bool:
    """Whether all jobs of the line fit now, judged by the lengths of its first."""
    if sum(max(offer.slots_left, 0) for offer in offers) < len(line):
        return False
    sample = [c.prompt_tokens + c.output_tokens // 2 for c in islice(line, _SAMPLE)]
    tokens = max(sum(sample) // len(sample), 1)
    return sum(max(0, min(offer.slots_left, int(offer.kv_left() // tokens))) for offer in offers) >= len(line)


class _Pull:
    """Devices with room take jobs of a line by their shares."""

    def __init__(self, shares: Shares, line: Line, turn: Round) -> None:
        self._shares = shares
        self._turn = turn
        self._line = line
        self._jobs: dict[ClassKey, Iterator[Candidate]] = {}
        self._next: dict[ClassKey, Candidate] = {}
        self._gone: set[ClassKey] = set()
        self._taken: set[str] = set()  # those that were not the first of their class
        self._prefixes = turn.prefixes if line.by_prefix else None

    def place(self, limit: int) -> list[Placement]:
        placed: list[Placement] = []
        open_offers = list(self._turn.open)
        limit = min(limit, len(self._line))
        handful = 1 if self._turn.whole else _HANDFUL
        while open_offers and len(placed) < limit:
            still: list[Offer] = []
            for offer in open_offers:  # in turn: none takes all while another has none
                if self._some(offer, placed, min(limit, len(placed) + handful)):
                    still.append(offer)
                if len(placed) >= limit:
                    break
            open_offers = still
        return placed

    def _some(self, offer: Offer, placed: list[Placement], most: int) -> bool:
        """A device takes jobs until so many are placed; returns whether it may take more."""
        shares = self._shares.of(offer)
        if shares is not None and self._prefixes is None and self._shares.steady:
            return self._handful(offer, shares, placed, most)
        while offer.slots_left > 0 and len(placed) < most:
            placement = self._one(offer, shares)
            if placement is None:
                return False
            placed.append(placement)
        return offer.slots_left > 0

    def _handful(self, offer: Offer, shares: KindShares, placed: list[Placement], most: int) -> bool:
        """``_some`` in fewer steps, for what a large cluster does most: more waits than fits, and no prefix matters."""
        waiting, gone, heads = self._line.by_class, self._gone, self._next
        served, went = shares.served, self._shares.went
        while offer.slots_left > 0 and len(placed) < most:
            key = shares.next_class(waiting, gone, self._shares.round)
            candidate = (heads.get(key) or self._first(key)) if key is not None else None
            if key is None or candidate is None or candidate[1] + candidate[2] > shares.most_tokens:
                placement = self._one(offer, shares)
                if placement is None:
                    return False
                placed.append(placement)
                continue
            if not offer.fits(candidate):
                offer.blocked = True
                return False
            served[key] += 1
            went[key] += 1
            del heads[key]
            seconds = predicted_seconds(offer, candidate[1], candidate[2], others_follow=True)
            placed.append(offer.put(candidate, seconds, "share"))
        return offer.slots_left > 0

    def _one(self, offer: Offer, shares: KindShares | None) -> Placement | None:
        passed_over: set[ClassKey] = set()
        while True:
            gone = self._gone | passed_over if passed_over else self._gone
            key, reason = self._shares.choose(offer, shares, self._line.by_class, gone, self._turn.now)
            if key is None:
                return None
            if self._prefixes is None:
                candidate, cached = self._next.get(key) or self._first(key), 0
            else:
                candidate, cached = self._pick(self._prefixes, offer, key)
            if candidate is None:
                continue  # gone now
            prompt_tokens, output_tokens = candidate[1], candidate[2]
            if self._shares.suits(shares, prompt_tokens + output_tokens):
                break
            passed_over.add(key)  # its next job is longer than those that the plan was made for
        if not offer.fits(candidate):
            offer.blocked = True
            return None
        self._shares.took(offer, shares, key)
        self._take(key, candidate)
        seconds = predicted_seconds(offer, prompt_tokens - cached, output_tokens, others_follow=True)
        return offer.put(candidate, seconds, "prefix" if cached else reason)

    def _pick(self, prefixes: CachedPrefixes, offer: Offer, key: ClassKey) -> tuple[Candidate | None, int]:
        """A job of the class for this device, and how much of its prompt is cached there.

        First one whose prefix the device has, else the first in line; one whose prefix another device has is left to
        that for a while.
        """
        for prefix in prefixes.held(offer.device, _PREFIXES):
            for candidate in self._line.by_prefix.get((key, prefix), {}).values():
                if candidate.job.job_id not in self._taken:
                    return candidate, candidate.shared_tokens
        head = self._first(key)
        for candidate in islice(self._line.by_class[key].values(), _LOOK_AHEAD):
            free = not candidate.prefix or not prefixes.holders_of(candidate.prefix)
            if free and candidate.job.job_id not in self._taken:
                return candidate, 0
        return head, 0

    def _first(self, key: ClassKey) -> Candidate | None:
        """The first of a class that is not taken yet; a class without is gone."""
        jobs = self._jobs.get(key)
        if jobs is None:
            jobs = self._jobs[key] = iter(self._line.by_class[key].values())
        candidate, taken = self._next.get(key), self._taken
        while candidate is None or (taken and candidate.job.job_id in taken):
            candidate = next(jobs, None)
            if candidate is None:
                self._gone.add(key)
                self._next.pop(key, None)
                return None
        self._next[key] = candidate
        return candidate

    def _take(self, key: ClassKey, candidate: Candidate) -> None:
        """It does not wait any more."""
        if self._next.get(key) is candidate:
            del self._next[key]
        if self._prefixes is not None:
            self._taken.add(candidate.job.job_id)

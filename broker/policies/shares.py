"""Which length class a device takes next: the linear program's shares, kept up to date. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from math import pi, sqrt

import numpy as np

from broker.fluid import cost_at, solve
from broker.length_class import LengthClass
from broker.policies.base import Offer, Round
from broker.policies.device_groups import device_groups
from broker.policies.in_time import plan_in_time
from broker.policies.kind_shares import KindShares
from broker.policies.outlook import busy_seconds, predicted_seconds
from broker.throughput import DeviceKind, Work, work_of
from broker.window import ClassKey, Jobs, typical_lengths

#: The program is solved again no more often than this (seconds); in a steady state, and with the end in sight.
_STEADY_INTERVAL_S = 2.0
_LEAST_INTERVAL_S = 0.5
#: Nor than this for each pair of a kind and a class: a large program takes long, and the loop waits for it.
_INTERVAL_A_PAIR_S = 1e-3
#: It is solved again when this share of the mix is of other lengths than it was.
_MIX_MOVED = 0.1
#: And where the end can be seen, when this share of what waited has gone.
_GONE = 0.7
#: Where the end is in sight, jobs go first whose steps are more than this share of those that their device has left.
_URGENT = 0.5
#: A device out of jobs of its own takes others' where it would be done within this share of the time that all need.
_SPARE = 0.9
#: And where it would be if the job had so many times the steps that are foretold: of two jobs, one is longer.
_LONGER = 2.5
#: A job that costs no more than this, in seconds of the cluster, costs nothing.
_NOTHING = 1e-12
#: What came and went lately tells of what will come, too; with each look what went before counts for this much.
_FADES = 0.5
#: Jobs of a class that are looked at for its mean lengths.
_SAMPLE = 8


@dataclass(slots=True)
class Shares:
    """The plan in force."""

    _kinds: dict[DeviceKind, KindShares] = field(default_factory=dict[DeviceKind, KindShares])
    _counts: dict[ClassKey, float] = field(default_factory=dict[ClassKey, float])
    _looked_at: float = float("-inf")
    _fleet: dict[DeviceKind, int] = field(default_factory=dict[DeviceKind, int])
    _whole: bool = False
    _known: dict[int, tuple[DeviceKind, KindShares]] = field(default_factory=dict[int, tuple[DeviceKind, KindShares]])
    _members: dict[str, KindShares] = field(default_factory=dict[str, KindShares])  # by device, where the end is near
    _largest: int = 0
    _work: dict[ClassKey, Work] = field(default_factory=dict[ClassKey, Work])
    _solved_at: float = 0.0
    _taken: int = 0  # jobs that went since
    round: int = 0  # its number
    _strange: set[ClassKey] = field(default_factory=set[ClassKey])  # of the last look: classes that the plan lacks
    _unplaced: frozenset[ClassKey] = frozenset()  # no device can hold them
    went: dict[ClassKey, float] = field(default_factory=lambda: defaultdict[ClassKey, float](float))  # jobs, lately
    seconds: float = 0.0

    def renew(self, turn: Round) -> None:
        """A round begins: solve the program again where the jobs, the devices or their speed are not what they were."""
        self.round += 1
        least = _LEAST_INTERVAL_S if turn.whole or self._whole else _STEADY_INTERVAL_S
        if turn.now - self._looked_at < max(least, _INTERVAL_A_PAIR_S * len(self._fleet) * len(self._counts)):
            return
        self._looked_at = turn.now
        for shares in (*self._kinds.values(), *self._members.values()):
            shares.look_again()
        counts = _count(turn, {} if turn.whole else self.went)
        fleet = _fleet(turn)
        self._fade()
        if fleet == self._fleet and turn.whole == self._whole and not self._moved(counts, turn.now):
            return
        self._counts, self._fleet, self._whole = counts, fleet, turn.whole
        self._solve(turn)

    def _fade(self) -> None:
        for key, jobs in list(self.went.items()):
            if jobs >= 1:
                self.went[key] = jobs * _FADES
            else:
                del self.went[key]

    @property
    def steady(self) -> bool:
        """Whether the plan in force is for work without an end in sight."""
        return not self._whole

    def choose(
        self,
        offer: Offer,
        shares: KindShares | None,
        waiting: Mapping[ClassKey, Jobs],
        gone: Container[ClassKey],
        now: float,
    ) -> tuple[ClassKey | None, str]:
        """The class of which a device should take a job now, and why; of those that wait and are not ``gone``.

        ``shares`` are those of its kind, see ``of``.
        """
        if shares is None:
            return next((key for key in waiting if key not in gone), None), "unmodelled"
        if self._whole:
            best = self._urgent(shares, waiting, gone, now)
            return (best, "share") if best is not None else (self._spare(offer, shares, waiting, gone, now), "spare")
        best = shares.next_class(waiting, gone, self.round)
        if best is not None:
            return best, "share"
        best = shares.next_spare(waiting, gone, self.round)
        return best if best is not None else self._spare(offer, shares, waiting, gone, now), "spare"

    def _spare(
        self,
        offer: Offer,
        shares: KindShares,
        waiting: Mapping[ClassKey, Jobs],
        gone: Container[ClassKey],
        now: float,
    ) -> ClassKey | None:
        """Of the other kinds' classes, the one that suits this kind best."""
        end = self._solved_at + _SPARE * self.seconds
        busy = now + busy_seconds(offer) if self._whole else 0.0
        overdue = now >= self._solved_at + self.seconds  # it was wrong: until there is a new one it forbids nothing

        def allowed(key: ClassKey) -> bool:
            if key in gone or key in self._unplaced:  # no kind can hold it: its engine is to refuse the jobs
                return key not in gone
            if shares.efficiency.get(key, 1.0) <= 0:
                return False
            # nothing that would end after all else is done
            if not self._whole or overdue or key not in self._work:
                return True
            return max(busy + self._cost(offer, key), now + self._duration(offer, key)) <= end

        return shares.most_efficient(waiting, allowed)

    def _urgent(
        self, shares: KindShares, waiting: Mapping[ClassKey, Jobs], gone: Container[ClassKey], now: float
    ) -> ClassKey | None:
        """Of what is left of a device's share: first the longest of what will soon be too long, else as ever."""
        left = shares.steps_left * (1 - min((now - self._solved_at) / max(self.seconds, 1e-9), 1.0))
        best, least = None, (1, float("inf"))
        for key, jobs in shares.jobs.items():
            done = shares.served[key] / jobs
            if done >= 1 or key not in waiting or key in gone:
                continue
            steps = shares.steps[key]
            rank = (0, -steps) if steps > _URGENT * left else (1, done)
            if rank < least:
                best, least = key, rank
        return best

    def _duration(self, offer: Offer, key: ClassKey) -> float:
        """Seconds that a long job of that class would take there, with the batch as it is."""
        work = self._work.get(key)
        return predicted_seconds(offer, work.prompt, _LONGER * work.steps + 1) if work is not None else 0.0

    def _cost(self, offer: Offer, key: ClassKey) -> float:
        """Seconds of the device that a job of that class takes, with all that is its own."""
        kind, work = offer.kind, self._work.get(key)
        return kind.profile.own_seconds(work) * kind.slowdown if kind is not None and work is not None else 0.0

    def suits(self, shares: KindShares | None, tokens: int) -> bool:
        """Whether a device of that kind may be given a job of that size: it can hold it, or no device can.

        What no device can hold goes anywhere, for the engine to refuse: predictions may be wrong.
        """
        return shares is None or tokens <= shares.most_tokens or tokens > self._largest

    def took(self, offer: Offer, shares: KindShares | None, key: ClassKey) -> None:
        """A device took a job of that class."""
        self._taken += 1
        self.went[key] += 1
        if self._whole:
            offer.added_s += self._cost(offer, key)
            offer.added_steps = max(offer.added_steps, shares.steps.get(key, 0.0) if shares is not None else 0.0)
        if shares is not None:
            shares.took(key)

    def of(self, offer: Offer) -> KindShares | None:
        """The shares of a device's group or kind. By identity first: a kind is long to hash."""
        if self._members:
            return self._members.get(offer.device)
        kind = offer.kind
        if kind is None:
            return None
        known = self._known.get(id(kind))
        if known is None:
            shares = self._kinds.get(kind) or self._alike(kind)
            if shares is None:
                return None
            known = self._known[id(kind)] = (kind, shares)  # the kind is kept, so that its id stays its own
        return known[1]

    def _alike(self, kind: DeviceKind) -> KindShares | None:
        """The shares of the same device at another speed: it changed since the program was solved."""
        return next((shares for known, shares in self._kinds.items() if known.profile == kind.profile), None)

    def _moved(self, counts: dict[ClassKey, float], now: float) -> bool:
        total, before = sum(counts.values()), sum(self._counts.values())
        if not before or (self._whole and total < (1 - _GONE) * before):
            return True
        # A plan for all that waited says nothing of what came since; and where it is over, it was wrong.
        if self._whole and (total + self._taken > (1 + _MIX_MOVED) * before or now > self._solved_at + self.seconds):
            return True
        strange = counts.keys() - self._counts.keys()
        if strange & self._strange:  # a class that is in no plan waits until it is, were it ever so small
            return True
        self._strange = strange
        distance = sum(abs(counts.get(key, 0) / total - n / before) for key, n in self._counts.items())
        distance += sum(n for key, n in counts.items() if key not in self._counts) / total
        # Of two draws from one mix, as large as the smaller of these, chance alone makes this much.
        chance = sum(sqrt(n) for n in self._counts.values()) / sqrt(before * pi * min(before, total))
        return distance / 2 > _MIX_MOVED + chance

    def _solve(self, turn: Round) -> None:
        keys, classes = _classes(turn, self._counts)
        groups = device_groups(classes, turn.offers) if turn.whole else []
        kinds = list(self._fleet)
        fleet = [group.kind for group in groups] or [replace(kind, count=self._fleet[kind]) for kind in kinds]
        plan, late = plan_in_time(classes, fleet) if turn.whole else (solve(classes, fleet, in_one_piece=True), None)
        self.seconds, self._solved_at, self._taken = plan.seconds, turn.now, 0
        self._largest = max((kind.most_tokens for kind in kinds), default=0)
        self._work = {key: c.work for key, c in zip(keys, classes, strict=True)}
        self._unplaced = frozenset(keys[c] for c in plan.unplaced)
        worth = [plan.seconds_of(fleet, c.work, c.longest) for c in classes]
        self._kinds, self._known, self._members = {}, {}, {}
        for k, kind in enumerate(fleet):
            jobs = {key: float(plan.jobs[c, k]) for c, key in enumerate(keys) if plan.jobs[c, k] > 1e-9}
            served = {key: -turn.rng.random() * n if not turn.whole else 0.0 for key, n in jobs.items()}
            steps = {key: classes[c].work.steps for c, key in enumerate(keys)}
            efficiency = {
                key: _efficiency(worth[c], cost_at(kind, plan.prices[k], classes[c].work))
                if kind.can_hold(classes[c].longest) and not (late is not None and late[c, k])
                else 0.0
                for c, key in enumerate(keys)
            }
            steps_left = float(plan.steps[k]) / kind.count
            shares = KindShares(jobs, served, steps, steps_left, efficiency, kind.most_tokens)
            if groups:
                self._members.update(dict.fromkeys(groups[k].devices, shares))
            else:
                self._kinds[kinds[k]] = shares


def _efficiency(worth: float, cost: float) -> float:
    """1 where a job costs no more than it is worth; also on a device that has time to spare."""
    return worth / cost if cost > _NOTHING else 1.0


def _count(turn: Round, went: Mapping[ClassKey, float]) -> dict[ClassKey, float]:
    counts = dict(went)
    for line in turn.waiting.lines.values():
        for key, jobs in line.by_class.items():
            counts[key] = counts.get(key, 0) + len(jobs)
    return counts


def _fleet(turn: Round) -> dict[DeviceKind, int]:
    counts: dict[int, int] = {}  # by identity first: a kind is long to hash
    kinds: dict[int, DeviceKind] = {}
    for offer in turn.offers:
        if (kind := offer.kind) is not None:
            counts[id(kind)] = counts.get(id(kind), 0) + 1
            kinds[id(kind)] = kind
    fleet: dict[DeviceKind, int] = {}
    for number, kind in kinds.items():
        fleet[kind] = fleet.get(kind, 0) + counts[number]
    return fleet


def _classes(turn: Round, counts: Mapping[ClassKey, float]) -> tuple[list[ClassKey], list[LengthClass]]:
    samples: dict[ClassKey, tuple[list[Work], int]] = {}
    for line in turn.waiting.lines.values():
        for key, jobs in line.by_class.items():
            works, longest = samples.get(key, ([], 0))
            sample = list(islice(jobs.values(), _SAMPLE))
            works = works + [work_of(c.prompt_tokens, c.output_tokens, c.shared_tokens) for c in sample]
            longest = max(longest, *(c.prompt_tokens + c.output_tokens for c in sample))
            samples[key] = (works, longest)
    for key in counts.keys() - samples.keys():  # none of them waits now
        prompt, output = typical_lengths(key)
        samples[key] = ([work_of(prompt, output)], int(prompt + output))
    classes = [
        LengthClass(counts[key], Work(*np.mean(np.array(works), axis=0).tolist()), longest)
        for key, (works, longest) in samples.items()
    ]
    return list(samples), classes

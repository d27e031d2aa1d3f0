"""One kind of device's part in a plan, and which length class it takes next. Pure."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace

from broker.window import ClassKey, Jobs

#: How well a class suits a kind that the plan does not know.
_SO_SO = 0.5


@dataclass(slots=True)
class KindShares:
    """One kind's part.

    Attributes:
        jobs: how many jobs of each class it should have.
        served: how many it had.
        steps: decode steps of a job of each class, those of other kinds, too.
        steps_left: steps that each of its devices makes by the plan.
        efficiency: how well each class suits it: 1 where no kind does it at a lower price.
        most_tokens: prompt and output tokens of the longest job that it holds.
    """

    jobs: dict[ClassKey, float]
    served: dict[ClassKey, float]
    steps: dict[ClassKey, float]
    steps_left: float
    efficiency: dict[ClassKey, float]
    most_tokens: int
    _dry_in: int = -1  # the round in which none of its classes waits any more
    _order: list[tuple[float, ClassKey]] = field(default_factory=list[tuple[float, ClassKey]])
    _absent: list[ClassKey] = field(default_factory=list[ClassKey])  # none of them waited lately
    _by_efficiency: tuple[list[ClassKey], list[ClassKey]] = field(default_factory=lambda: ([], []))
    _possible: list[ClassKey] = field(default_factory=list[ClassKey])
    _spare_in: int = -1  # the round in which others' classes were looked at
    _spare_at: int = 0  # those before are gone

    def __post_init__(self) -> None:
        self._order = [(self.served[key] / jobs, key) for key, jobs in self.jobs.items()]
        heapify(self._order)
        best_first = sorted(self.efficiency, key=lambda key: -self.efficiency[key])
        better = sum(value >= _SO_SO for value in self.efficiency.values())
        self._by_efficiency = best_first[:better], best_first[better:]
        self._possible = [key for key in best_first if self.efficiency[key] > 0]

    def look_again(self) -> None:
        """Classes that were absent may wait again."""
        for key in self._absent:
            heappush(self._order, (self.served[key] / self.jobs[key], key))
        self._absent.clear()

    def next_spare(self, waiting: Mapping[ClassKey, Jobs], gone: Container[ClassKey], turn: int) -> ClassKey | None:
        """Of the classes that it can do, the best that waits. In a round, what is gone does not come back."""
        if self._spare_in != turn:
            self._spare_in, self._spare_at = turn, 0
        possible = self._possible
        for i in range(self._spare_at, len(possible)):
            key = possible[i]
            if key in waiting and key not in gone:
                self._spare_at = i
                return key
        self._spare_at = len(possible)
        return None

    def next_class(self, waiting: Mapping[ClassKey, Jobs], gone: Container[ClassKey], turn: int) -> ClassKey | None:
        """Of the classes that wait, the one of which the kind has had least for its share (stride scheduling).

        In a round, what is gone does not come back.
        """
        if self._dry_in == turn:
            return None
        key = self._first_present(waiting, gone)
        if key is None and any(absent in waiting and absent not in gone for absent in self._absent):
            self.look_again()
            key = self._first_present(waiting, gone)
        if key is None:
            self._dry_in = turn
        return key

    def _first_present(self, waiting: Mapping[ClassKey, Jobs], gone: Container[ClassKey]) -> ClassKey | None:
        order = self._order
        while order:
            rank, key = order[0]
            present = self.served[key] / self.jobs[key]
            if rank != present:  # it got jobs since it was filed
                heapreplace(order, (present, key))
            elif key in waiting and key not in gone:
                return key
            else:
                heappop(order)
                self._absent.append(key)
        return None

    def most_efficient(self, waiting: Mapping[ClassKey, Jobs], allowed: Callable[[ClassKey], bool]) -> ClassKey | None:
        """Of the classes that wait and are allowed, the one that suits the kind best; what is not known is so so."""
        better, worse = self._by_efficiency
        for key in better:
            if key in waiting and allowed(key):
                return key
        for key in waiting:
            if key not in self.efficiency and allowed(key):
                return key
        return next((key for key in worse if key in waiting and allowed(key)), None)

    def took(self, key: ClassKey) -> None:
        """The kind got a job of that class."""
        if key in self.served:
            self.served[key] += 1

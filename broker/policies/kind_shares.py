"""One kind of device's part in a plan, and which length class it takes next. Pure."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace

from broker.window import ClassKey, Jobs


@dataclass(slots=True)
class KindShares:
    """One kind's part.

    Attributes:
        jobs: how many jobs of each class it should have.
        served: how many it had.
        steps: decode steps of a job of each class, those of other kinds, too.
        steps_left: steps that each of its devices makes by the plan.
        efficiency: how well each class suits it: 1 where no kind does it at a lower price.
    """

    jobs: dict[ClassKey, float]
    served: dict[ClassKey, float]
    steps: dict[ClassKey, float]
    steps_left: float
    efficiency: dict[ClassKey, float]
    _order: list[tuple[float, ClassKey]] = field(default_factory=list[tuple[float, ClassKey]])

    def __post_init__(self) -> None:
        self._order = [(self.served[key] / jobs, key) for key, jobs in self.jobs.items()]
        heapify(self._order)

    def next_class(self, waiting: Mapping[ClassKey, Jobs], gone: Container[ClassKey]) -> ClassKey | None:
        """Of the classes that wait, the one of which the kind has had least for its share (stride scheduling)."""
        absent: list[tuple[float, ClassKey]] = []
        order, found = self._order, None
        while order:
            key = order[0][1]
            if key in waiting and key not in gone:
                found = key
                break
            absent.append(heappop(order))
        for entry in absent:
            heappush(order, entry)
        return found

    def took(self, key: ClassKey) -> None:
        """The kind got a job of that class."""
        if key not in self.served:
            return
        self.served[key] += 1
        entry = (self.served[key] / self.jobs[key], key)
        if self._order[0][1] == key:
            heapreplace(self._order, entry)
        else:
            self._order = [entry if known == key else (rank, known) for rank, known in self._order]
            heapify(self._order)

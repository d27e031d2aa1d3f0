"""What to look for among plans, and what was found, as plain values. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from broker.throughput import DeviceKind
from planner.program_rows import Column
from planner.sparse_rows import Array


@dataclass(frozen=True, slots=True)
class Goal:
    """What to look for: ``rate_weight * rate - price_weight * price`` as large as can be.

    Attributes:
        rate_weight: value of a job a second.
        price_weight: value of one unit of price an hour.
        least_rate: jobs a second that it must reach.
        most_price_a_rate: most price an hour for each job a second; None: any.
        of_value: what the gap is a share of, where the goal itself is a small difference; 0: of the goal.
    """

    rate_weight: float = 1.0
    price_weight: float = 0.0
    least_rate: float = 0.0
    most_price_a_rate: float | None = None
    of_value: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """A solution.

    Attributes:
        layouts: machines of each type that get each layout.
        rate: jobs a second.
        price_per_hour: of the machines in use.
        gap: how far a better one could at most be, as a share of the objective.
        short: the same in the units of the goal.
        stopped: whether the time ran out before ``gap`` was as small as asked for.
    """

    layouts: Mapping[Column, int]
    rate: float
    price_per_hour: float
    gap: float
    short: float = 0.0
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Fractions:
    """A solution whose counts need not be whole: no plan is better.

    Attributes:
        rate: jobs a second.
        price_per_hour: of the machines in use, or of parts of them.
        most: of the goal, in its units.
    """

    rate: float
    price_per_hour: float
    most: float


@dataclass(frozen=True, slots=True)
class Values:
    """What a job and an engine are worth where the rate is as high as it can be, by the relaxation.

    With these values no set of engines does more jobs a second than they are worth together.

    Attributes:
        jobs: of a job of each class; 1 on average over the mix.
        engines: jobs a second that one is worth.
    """

    jobs: Array
    engines: Mapping[DeviceKind, float]

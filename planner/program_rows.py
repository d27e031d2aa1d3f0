"""Columns and rows of the program of ``planner.program``. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from broker.length_class import LengthClass
from broker.throughput import DeviceKind
from planner.engine_worth import engine_worth
from planner.layouts import MachineType
from planner.relaxation import Sharing
from planner.sparse_rows import Array, Index, Matrix, Rows

#: A machine type and one of its layouts, by index.
Column = tuple[int, int]
#: Lengths within this factor go together where a relaxation begins.
_GROUP_WIDTH = 4.0


class ProgramRows:
    """The columns x, y, z, u, w, rate, in this order, and the rows that hold for every goal.

    Attributes:
        types: the machines.
        columns: of each z its machine type and layout.
        kinds: of engines.
        tiers: of each u its machine type, price and number of machines.
        spared: of each w its machine type, and layouts that it may have to do without.
        shares: of the jobs of each class.
        pairs: how many x there are; ``cs`` and ``ks`` are their classes and kinds.
        z: index of the first z; ``u``, ``w`` and ``rate`` likewise.
        scale: jobs a second that ``rate`` and x are counted in.
        matrix: the rows; those of the classes are the first, then four of each kind, the first of them its time.
    """

    def __init__(
        self,
        types: Sequence[MachineType],
        classes: Sequence[LengthClass],
        spared: Mapping[int, Collection[int]],
    ) -> None:
        """Lay out the columns.

        Args:
            types: the machines.
            classes: jobs that some option can hold; their numbers are shares.
            spared: types of machines and layouts of each: one type at least does without all of its.
        """
        self.types = types
        self.columns: list[Column] = [(m, n) for m, machines in enumerate(types) for n in range(len(machines.layouts))]
        self._engines = _engines_of(types, self.columns)
        self.kinds = list(self._engines)
        jobs = np.array([c.jobs for c in classes], dtype=float)
        self.shares: Array = jobs / jobs.sum()
        self._work: Array = np.array([c.work for c in classes], dtype=float)
        self._longest = longest = np.array([c.longest for c in classes])
        most = np.array([kind.most_tokens for kind in self.kinds])
        self.cs: Index
        self.ks: Index
        self.cs, self.ks = np.nonzero(longest[:, None] <= most[None, :])
        self.pairs = len(self.cs)
        self.z = self.pairs + len(self.kinds)
        self.u = self.z + len(self.columns)
        self.tiers = [(m, price, n) for m, machines in enumerate(types) for price, n in _tiers(machines)]
        self.w = self.u + len(self.tiers)
        self.spared = spared
        self.rate = self.w + len(spared)
        self._times = np.array(
            [[q.prefill_b, q.prefill_c, q.decode_e, q.decode_f] for q in (kind.profile for kind in self.kinds)]
        ).reshape(-1, 4)
        self.scale = self._rate_scale()
        self.matrix = self._build()

    @property
    def sharing(self) -> Sharing:
        """What a relaxation needs to know of the x."""
        octaves = np.floor(np.log(np.maximum(self._work[:, (0, 2)], 1.0)) / np.log(_GROUP_WIDTH))
        _, groups = np.unique(octaves, axis=0, return_inverse=True)
        return Sharing(self.cs, self.ks, self.shares, groups.reshape(-1), self.rate)

    def worth(self, prices: Array) -> tuple[Array, Array]:
        """What a job of each class, 1 on average, and an engine of each kind are worth, in the units of ``rate``.

        Args:
            prices: legal dual values of the rows. Of engines that no solution uses they say too much.
        """
        classes = len(self.shares)
        jobs = prices[:classes] / float(self.shares @ prices[:classes])
        said = -prices[classes : classes + 4 * len(self.kinds) : 4] / float(self.shares @ prices[:classes])
        return jobs, np.minimum(said, engine_worth(self.kinds, self._work, self._longest, jobs) / self.scale)

    def layouts_worth(self, engines: Array) -> Array:
        """Of each z what its engines are worth together."""
        worth = np.zeros(len(self.columns))
        for value, of_kind in zip(engines, self._engines.values(), strict=True):
            worth[[*of_kind]] += value * np.array([*of_kind.values()])
        return worth

    def _rate_scale(self) -> float:
        """A rate of the right order, so that the numbers stay near 1: what one engine does at best, times the
        machines."""
        costs = self._times @ (self.shares @ self._work[:, :4])
        fastest = min((cost for cost in costs.tolist() if cost > 0), default=1.0)
        return sum(len(machines.names) for machines in self.types) / fastest

    def _build(self) -> Matrix:
        rows = Rows()
        for c, share in enumerate(self.shares):
            mine = np.flatnonzero(self.cs == c)
            rows.add(np.append(mine, self.rate), np.append(np.ones(len(mine)), -share), 0.0, 0.0)
        for k, kind in enumerate(self.kinds):
            self._add_kind(rows, k, kind)
        of_type: dict[int, list[int]] = {m: [] for m in range(len(self.types))}
        for i, (m, _) in enumerate(self.columns):
            of_type[m].append(self.z + i)
        tiers_of: dict[int, list[int]] = {m: [] for m in range(len(self.types))}
        for i, (m, _, _) in enumerate(self.tiers):
            tiers_of[m].append(self.u + i)
        for m, machines in enumerate(self.types):
            mine, tiers = of_type[m], tiers_of[m]
            rows.add([*mine, *tiers], [*([1.0] * len(mine)), *([-1.0] * len(tiers))], -np.inf, 0.0)
            if machines.machine.min_workers and mine:  # such a machine is never idle
                rows.add([*mine], [1.0] * len(mine), float(len(machines.names)), float(len(machines.names)))
        self._add_spared(rows)
        return rows.matrix(self.rate + 1)

    def _add_kind(self, rows: Rows, k: int, kind: DeviceKind) -> None:
        mine = np.flatnonzero(self.ks == k)
        work, profile, engines = self._work[self.cs[mine]], kind.profile, self._engines[kind]
        y, at = self.pairs + k, self.z + np.array([*engines], dtype=np.intp)
        own, counts = work[:, :4] @ self._times[k] * self.scale, -np.array([*engines.values()], dtype=float)
        time = np.concatenate([own, [profile.decode_d * self.scale], counts])
        rows.add(np.concatenate([mine, [y], at]), time, -np.inf, 0.0)
        rooms = (profile.kv_tokens, profile.seats, kind.max_batched_tokens)
        for feature, room in zip((3, 2, 4), rooms, strict=True):
            rows.add(np.append(mine, y), np.append(work[:, feature] / room, -1.0), -np.inf, 0.0)

    def _add_spared(self, rows: Rows) -> None:
        for i, (m, layouts) in enumerate(self.spared.items()):
            mine = [self.z + n for n, (number, layout) in enumerate(self.columns) if number == m and layout in layouts]
            machines = float(len(self.types[m].names))
            rows.add([*mine, self.w + i], [*([1.0] * len(mine)), machines], -np.inf, machines)
        if self.spared:
            rows.add(range(self.w, self.rate), [1.0] * len(self.spared), 1.0, np.inf)


def _tiers(machines: MachineType) -> list[tuple[float, int]]:
    """The prices of machines that are alike, ascending, and how many have each."""
    return sorted(Counter(price or 0.0 for price in machines.prices).items())


def _engines_of(types: Sequence[MachineType], columns: Sequence[Column]) -> dict[DeviceKind, dict[int, int]]:
    """Of each kind of engine, the columns that bring some, and how many each: alike ones of all machines together."""
    engines: dict[DeviceKind, dict[int, int]] = {}
    for i, (m, layout) in enumerate(columns):
        for option, count in types[m].layouts[layout]:
            of_column = engines.setdefault(types[m].options[option].kind, {})
            of_column[i] = of_column.get(i, 0) + count
    return engines

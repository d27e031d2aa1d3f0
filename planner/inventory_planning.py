"""Plans for an inventory, proposed and judged as re-planning asks for them (``planner.planning.Planning``). Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from broker.errors import UsageError
from broker.length_class import LengthClass
from broker.pool_plan import PlannedWorker, PoolPlan
from broker.profiles import ProfileRecord
from broker.recent_mix import RecentMix
from broker.throughput import DeviceKind
from planner.cluster_plan import expected_plan, pool_plan, throughput
from planner.configurations import EngineOption, Space, options_of
from planner.estimate import Estimator, Measured
from planner.inventory import Machine
from planner.kernel_rates import KernelRates
from planner.layouts import machine_types
from planner.reach import as_reached
from planner.search import SearchResult, search


def as_expected(result: SearchResult, classes: Sequence[LengthClass]) -> SearchResult:
    """What the search found, with what the engines reach of it on the mix; the better plan by that comes first."""
    found = [result.best, *([result.runner_up] if result.runner_up is not None else [])]
    best, *others = sorted(
        (expected_plan(plan, classes) for plan in found), key=lambda plan: plan.jobs_per_s, reverse=True
    )
    return replace(result, best=best, runner_up=others[0] if others else None)


@dataclass(frozen=True, slots=True)
class InventoryPlanning:
    """Plans for machines that run one model.

    Attributes:
        machines: the inventory.
        space: the model, and what may be chosen.
        worker: the options of ``tokenyard worker`` that name the model.
        names: what profiles may call the model.
        rates: what kernels reach on devices that nobody measured an engine on.
        measured: what was measured beside the pool's own profiles, such as other models on the same devices.
    """

    machines: tuple[Machine, ...]
    space: Space
    worker: tuple[str, ...]
    names: tuple[str, ...] = ()
    measured: tuple[Measured, ...] = ()
    rates: tuple[KernelRates, ...] = ()

    def search(self, classes: Sequence[LengthClass], profiles: Sequence[ProfileRecord]) -> SearchResult:
        """The best plan for a mix, and the runner-up.

        Raises:
            UsageError: nothing is known of a device, nothing fits it, or there is no job.
        """
        if not classes:
            raise UsageError("no request has ended yet: without a mix of lengths there is nothing to plan for")
        return search(machine_types(self.machines, self.space, self._estimator(profiles), classes), classes)

    def propose(self, mix: RecentMix, profiles: Sequence[ProfileRecord]) -> PoolPlan:
        """The best plan for this mix; its version and ``made`` do not matter.

        Raises:
            UsageError: there is none; the message says which constraint fails.
        """
        classes = mix.length_classes()
        best = as_expected(self.search(classes, profiles), classes).best
        reason = f"{best.tokens_per_s:,.0f} tokens/s expected on {mix.jobs:,} recent requests"
        return pool_plan(best, self.worker, version=0, made=0.0, reason=reason, utilization=self.space.utilization)

    def expected(
        self, workers: Sequence[PlannedWorker], mix: RecentMix, profiles: Sequence[ProfileRecord]
    ) -> float | None:
        """Tokens a second that these workers do together on this mix; None where nothing is known of them."""
        classes = mix.length_classes()
        kinds = self._kinds(workers, self._estimator(profiles))
        if not kinds or not classes:
            return None
        return throughput(classes, as_reached(kinds, classes)).tokens_per_s

    def _estimator(self, profiles: Sequence[ProfileRecord]) -> Estimator:
        own = [Measured.of_record(record) for record in profiles]
        return Estimator(self.space.shape, [*self.measured, *own], self.names, self.rates)

    def _kinds(self, workers: Sequence[PlannedWorker], estimator: Estimator) -> list[DeviceKind] | None:
        """What each worker is expected to be; None where one is not known."""
        machines = {machine.name: machine for machine in self.machines}
        kinds: list[DeviceKind] = []
        for worker in workers:
            machine = machines.get(worker.host)
            option = self._option(machine, worker, estimator) if machine else None
            if option is None:
                return None
            kinds.append(option.kind)
        return kinds

    def _option(self, machine: Machine, worker: PlannedWorker, estimator: Estimator) -> EngineOption | None:
        said = _values(worker.options)
        group = next((group for group in machine.groups if group.kind == worker.device), None)
        seats = said.get("--seats", "")
        if group is None or not seats.isdigit() or not worker.devices:
            return None
        degrees = () if group.is_cpu else (len(worker.devices),)
        dtypes = (said["--dtype"],) if said.get("--dtype") in self.space.dtypes else self.space.dtypes[:1]
        space = replace(self.space, seats=(int(seats),), dtypes=dtypes, degrees=degrees)
        found, _ = options_of(machine, group, space, estimator)
        return next((option for option in found if option.units == len(worker.devices)), None)


def _values(words: Sequence[str]) -> Mapping[str, str]:
    """The values of options that are words of their own."""
    return {name: value for name, value in pairwise(words) if name.startswith("--") and not value.startswith("--")}

"""What machines there are, and what they become in a what-if. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from broker.errors import UsageError
from planner.device_catalogue import begins, find_spec, words
from planner.what_if import Change

CPU = "cpu"
PCIE = "pcie"
NVLINK = "nvlink"
#: No machine has more devices of a kind than this.
MOST_DEVICES = 16

Interconnect = Literal["nvlink", "pcie"]


@dataclass(frozen=True, slots=True)
class DeviceGroup:
    """Devices of one kind in a machine; a CPU's are its cores.

    Attributes:
        kind: their name; ``cpu`` for cores.
        count: how many.
        memory_bytes: of each device; of a CPU the machine's.
    """

    kind: str
    count: int
    memory_bytes: int

    @property
    def is_cpu(self) -> bool:
        """Whether these are cores, which share one memory."""
        return words(self.kind) == CPU


@dataclass(frozen=True, slots=True)
class Machine:
    """A host.

    Attributes:
        name: its host name, unique.
        groups: its devices by kind.
        interconnect: how its devices reach each other.
        price_per_hour: what it costs while it is in use; None where not known.
        min_workers: least workers on it.
        max_workers: most workers on it; None: as many as fit.
    """

    name: str
    groups: tuple[DeviceGroup, ...]
    interconnect: Interconnect = "pcie"
    price_per_hour: float | None = None
    min_workers: int = 0
    max_workers: int | None = None

    @property
    def alike(self) -> Machine:
        """The same without its name: machines for which this is equal are planned together."""
        return replace(self, name="")


def changed(machines: Sequence[Machine], changes: Sequence[Change]) -> tuple[Machine, ...]:
    """The inventory with devices more and fewer; what comes is one machine with all of them, priced as not known.

    Raises:
        UsageError: a device's memory is not known, fewer are there than shall go, or none is left.
    """
    left = list(machines)
    for number, change in enumerate(changes, 1):
        if change.tp:
            raise UsageError(f"--what-if: {change.device} tp {change.tp}: the plan chooses the degree: leave it out")
        if change.more > 0:
            left.append(_added(machines, change, f"what-if-{number}"))
        else:
            left = _removed(left, change)
    if not left:
        raise UsageError("--what-if: no device is left: take fewer away")
    return tuple(left)


def linked(kinds: Sequence[str]) -> Interconnect:
    """How such devices reach each other, where nobody says: by NVLink if one of them has it."""
    specs = [find_spec(kind) for kind in kinds]
    return NVLINK if any(spec and spec.link for spec in specs) else PCIE


def _added(machines: Sequence[Machine], change: Change, name: str) -> Machine:
    if change.more > MOST_DEVICES:
        raise UsageError(f"--what-if: {change.more} x {change.device}: no machine has more than {MOST_DEVICES}")
    for machine in machines:
        for group in machine.groups:
            if same_kind(group.kind, change.device):
                return Machine(name, (replace(group, count=change.more),), machine.interconnect)
    spec = find_spec(change.device)
    if spec is None:
        raise UsageError(f"--what-if: the memory of {change.device!r} is not known: describe it in the inventory")
    return Machine(name, (DeviceGroup(change.device, change.more, spec.memory_bytes),), linked([change.device]))


def _removed(machines: Sequence[Machine], change: Change) -> list[Machine]:
    take = -change.more
    there = sum(group.count for m in machines for group in m.groups if same_kind(group.kind, change.device))
    if there < take:
        raise UsageError(f"--what-if: {take} {change.device} cannot go: there are {there}")
    left: list[Machine] = []
    for machine in reversed(machines):
        groups: list[DeviceGroup] = []
        for group in machine.groups:
            gone = min(take, group.count) if same_kind(group.kind, change.device) else 0
            take -= gone
            groups += [replace(group, count=group.count - gone)] if group.count > gone else []
        left += [replace(machine, groups=tuple(groups))] if groups else []
    return left[::-1]


def same_kind(kind: str, given: str) -> bool:
    """Whether a device may be called so: by its name or its beginning."""
    return begins(words(kind), words(given)) or begins(words(given), words(kind))

"""Inventories in which no two machines are alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.planning.uniform import machines_of
from broker.throughput import Profile
from planner.estimate import Measured
from planner.inventory import DeviceGroup, Machine

_KINDS = ("H100-SXM-80GB", "A100-SXM4-80GB", "L40S", "RTX-4090", "L4", "T4")
_SIZES = (40, 100)
_GIB = 1 << 30
#: An invented profile of four cores, and how its times fall with more of them: enough for the search to have a choice.
_CORES, _POWER = (4, 8), 0.9
_TIMES = (0.01, 0.02, 2e-7, 0.15, 0.002, 2e-6)
#: Invented prices an hour of eight devices, or of a machine that has cores alone; each machine's differs by up to 30 %.
_PRICES = {
    "H100-SXM-80GB": 30.0,
    "A100-SXM4-80GB": 18.0,
    "L40S": 9.0,
    "RTX-4090": 4.0,
    "L4": 6.0,
    "T4": 3.0,
    "cpu": 1.0,
}
_PRIME, _STEPS = 37, 101


def inventories() -> Iterator[tuple[str, tuple[Machine, ...]]]:
    """Name and machines of each."""
    for n in _SIZES:
        gpus = machines_of([(_KINDS[i % len(_KINDS)], 8) for i in range(n)])
        counts = machines_of([(_KINDS[i % len(_KINDS)], 1 + i // len(_KINDS) % 8) for i in range(n)])
        yield "all prices differ", tuple(_priced(machine, i) for i, machine in enumerate(gpus))
        yield "prices and numbers of devices differ", tuple(_priced(machine, i) for i, machine in enumerate(counts))
        yield "all memory sizes differ", tuple(_smaller(machine, 0.2 * i / n) for i, machine in enumerate(gpus))
        yield "all core counts differ", tuple(_of_cores(i) for i in range(n))
        yield "GPUs and cores, all differ", tuple(_mixed(machine, i, n) for i, machine in enumerate(gpus))


def priced(machines: Sequence[Machine]) -> tuple[Machine, ...]:
    """The same machines, each with a price of its own."""
    return tuple(_at_price(machine, i) for i, machine in enumerate(machines))


def cores_of(model: str) -> tuple[Measured, ...]:
    """Invented profiles of two numbers of cores, for the machines that have nothing else."""
    return tuple(
        Measured(
            "cpu", model, n, "", Profile(*(t / (n / 4) ** _POWER for t in _TIMES), kv_tokens=40_000, seats=64), 4096
        )
        for n in _CORES
    )


def _at_price(machine: Machine, number: int) -> Machine:
    group = machine.groups[0]
    share = 1.0 if group.is_cpu else group.count / 8
    return replace(machine, price_per_hour=_PRICES[group.kind] * share * (1 + 0.003 * (number * _PRIME % _STEPS)))


def _mixed(machine: Machine, number: int, of: int) -> Machine:
    """In turn a machine with less memory, cores alone, GPUs and cores, and fewer GPUs."""
    if number % 4 == 0:
        return _smaller(machine, 0.2 * number / of)
    if number % 4 == 1:
        return replace(_of_cores(number), name=machine.name)
    if number % 4 == 2:
        cores = DeviceGroup("cpu", 8 + number, (64 + 4 * number) * _GIB)
        return replace(machine, groups=(*machine.groups, cores))
    return replace(machine, groups=tuple(replace(group, count=1 + number % 8) for group in machine.groups))


def _priced(machine: Machine, number: int) -> Machine:
    return replace(machine, price_per_hour=1 + 0.37 * number)


def _smaller(machine: Machine, by: float) -> Machine:
    groups = tuple(replace(group, memory_bytes=int(group.memory_bytes * (1 - by))) for group in machine.groups)
    return replace(machine, groups=groups)


def _of_cores(number: int) -> Machine:
    cores = 8 + number
    return Machine(f"cpu{number}", (DeviceGroup("cpu", cores, (24 + 4 * cores) * _GIB),))

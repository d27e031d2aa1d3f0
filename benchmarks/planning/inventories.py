"""Inventories in which no two machines are alike."""

from __future__ import annotations

from collections.abc import Iterator
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


def inventories() -> Iterator[tuple[str, tuple[Machine, ...]]]:
    """Name and machines of each."""
    for n in _SIZES:
        gpus = machines_of([(_KINDS[i % len(_KINDS)], 8) for i in range(n)])
        counts = machines_of([(_KINDS[i % len(_KINDS)], 1 + i // len(_KINDS) % 8) for i in range(n)])
        yield "all prices differ", tuple(_priced(machine, i) for i, machine in enumerate(gpus))
        yield "prices and numbers of devices differ", tuple(_priced(machine, i) for i, machine in enumerate(counts))
        yield "all memory sizes differ", tuple(_smaller(machine, 0.2 * i / n) for i, machine in enumerate(gpus))
        yield "all core counts differ", tuple(_of_cores(i) for i in range(n))


def cores_of(model: str) -> tuple[Measured, ...]:
    """Invented profiles of two numbers of cores, for the machines that have nothing else."""
    return tuple(
        Measured(
            "cpu", model, n, "", Profile(*(t / (n / 4) ** _POWER for t in _TIMES), kv_tokens=40_000, seats=64), 4096
        )
        for n in _CORES
    )


def _priced(machine: Machine, number: int) -> Machine:
    return replace(machine, price_per_hour=1 + 0.37 * number)


def _smaller(machine: Machine, by: float) -> Machine:
    groups = tuple(replace(group, memory_bytes=int(group.memory_bytes * (1 - by))) for group in machine.groups)
    return replace(machine, groups=groups)


def _of_cores(number: int) -> Machine:
    cores = 8 + number
    return Machine(f"cpu{number}", (DeviceGroup("cpu", cores, (24 + 4 * cores) * _GIB),))

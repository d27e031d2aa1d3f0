"""How a machine's devices can be shared out among engines. Pure.

A layout is a multiset of engine options that fits the machine's devices and its bounds on workers. Engines of one
degree
on one machine are alike. Left out is what no plan can need: a layout to which another engine could be added, and one in
which some engines could be replaced by others on the same devices that are at least as good together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from broker.errors import UsageError
from broker.length_class import LengthClass
from broker.throughput import DeviceKind
from planner.configurations import EngineOption, Misfit, Space, options_of
from planner.estimate import Estimator
from planner.inventory import DeviceGroup, Machine

#: Options of a machine by index, and how many engines of each, in ascending order.
Layout = tuple[tuple[int, int], ...]

#: More layouts than this of one machine would not be searched in reasonable time.
_MOST_LAYOUTS = 20_000


@dataclass(frozen=True, slots=True)
class MachineType:
    """Machines that are alike but for their prices, with all that each of them could run.

    Attributes:
        names: their host names, the cheapest first.
        machine: one of them, without name and price.
        options: engines that it can run.
        layouts: ways to share its devices out that can be best.
        all_layouts: all ways.
        prices: an hour of each of them, as ``names``; None, at the end, where not known.
        misfits: why other engines cannot run on it.
    """

    names: tuple[str, ...]
    machine: Machine
    options: tuple[EngineOption, ...]
    layouts: tuple[Layout, ...]
    all_layouts: tuple[Layout, ...]
    prices: tuple[float | None, ...]
    misfits: tuple[Misfit, ...] = ()


def machine_types(
    machines: Sequence[Machine], space: Space, estimator: Estimator, classes: Sequence[LengthClass] = ()
) -> list[MachineType]:
    """Alike machines together, with their layouts.

    Args:
        machines: the inventory.
        space: what may be chosen.
        estimator: the times.
        classes: the jobs; with them, layouts that cannot be best for them are left out.

    Raises:
        UsageError: nothing is known of a device, or the layouts are too many.
    """
    alike: dict[Machine, list[Machine]] = {}
    for machine in machines:
        alike.setdefault(replace(machine.alike, price_per_hour=None), []).append(machine)
    return [_type(machine, sorted(those, key=_price), space, estimator, classes) for machine, those in alike.items()]


def _price(machine: Machine) -> float:
    return float("inf") if machine.price_per_hour is None else machine.price_per_hour


def _type(
    machine: Machine, those: Sequence[Machine], space: Space, estimator: Estimator, classes: Sequence[LengthClass]
) -> MachineType:
    names, prices = tuple(m.name for m in those), tuple(m.price_per_hour for m in those)
    options: list[EngineOption] = []
    misfits: list[Misfit] = []
    of_groups: list[list[Layout]] = []
    for group in machine.groups:
        found, failed = options_of(machine, group, space, estimator)
        first = len(options)
        options += found
        misfits += failed
        of_groups.append(list(_shares(group, found, first, machine.max_workers)))
        if len(of_groups[-1]) > _MOST_LAYOUTS:
            raise UsageError(f"{names[0]}: more than {_MOST_LAYOUTS:,} layouts: give fewer --seats or --dtype")
    together = {tuple(part for share in shares for part in share) for shares in product(*of_groups)}
    layouts = [layout for layout in together if _in_bounds(layout, machine)]
    largest = sorted(_largest(layouts, options))
    best = _without_replaceable(largest, options, classes)
    return MachineType(names, machine, tuple(options), tuple(best), tuple(layouts), prices, tuple(misfits))


def with_degree_and_without(
    machines: MachineType, device: str, units: int, classes: Sequence[LengthClass]
) -> tuple[MachineType, frozenset[int]]:
    """The same machines with what is best without engines that span so many of these devices, beside what is best with
    them; and the layouts that have such engines."""
    has = {i for i, option in enumerate(machines.options) if (option.device, option.units) == (device, units)}
    spared = {tuple(part for part in layout if part[0] not in has) for layout in machines.all_layouts}
    in_bounds = [layout for layout in spared if _in_bounds(layout, machines.machine)]
    best = _without_replaceable(sorted(_largest(in_bounds, machines.options)), machines.options, classes)
    layouts = tuple(dict.fromkeys((*machines.layouts, *best)))
    with_it = frozenset(i for i, layout in enumerate(layouts) if any(option in has for option, _ in layout))
    return replace(machines, layouts=layouts), with_it


def _shares(
    group: DeviceGroup, options: Sequence[EngineOption], first: int, max_workers: int | None
) -> Iterator[Layout]:
    """Every way to put engines on a group's devices, one option for each degree."""
    by_units: dict[int, list[int]] = {}
    for i, option in enumerate(options):
        by_units.setdefault(option.units, []).append(first + i)
    most = group.count if max_workers is None else max_workers
    for counts in _partitions(group.count, sorted(by_units), most):
        for chosen in product(*(by_units[units] for units in counts)):
            yield tuple(sorted(zip(chosen, counts.values(), strict=True)))


def _partitions(left: int, sizes: Sequence[int], workers: int) -> Iterator[Mapping[int, int]]:
    """Counts of each size whose sum is at most ``left``, of at most so many workers; sizes of count 0 are left out."""
    if not sizes:
        yield {}
        return
    *smaller, size = sizes
    for count in range(min(left // size, workers) + 1):
        for rest in _partitions(left - count * size, smaller, workers - count):
            yield {**rest, size: count} if count else rest


def _in_bounds(layout: Layout, machine: Machine) -> bool:
    workers = sum(count for _, count in layout)
    return machine.min_workers <= workers and (machine.max_workers is None or workers <= machine.max_workers)


def _largest(layouts: Sequence[Layout], options: Sequence[EngineOption]) -> list[Layout]:
    """Without those that another contains: one engine more never makes a cluster slower."""
    known = set(layouts)
    return [layout for layout in layouts if not any(_plus(layout, i) in known for i in range(len(options)))]


def _plus(layout: Layout, option: int) -> Layout:
    counts = dict(layout)
    counts[option] = counts.get(option, 0) + 1
    return tuple(sorted(counts.items()))


def _without_replaceable(
    layouts: Sequence[Layout], options: Sequence[EngineOption], classes: Sequence[LengthClass]
) -> list[Layout]:
    """Without those in which n engines could be replaced by m of another option that do at least as much."""
    if not classes:
        return list(layouts)
    known = set(layouts)
    swaps = [swap for swap in _swaps(options) if _no_worse(swap, options, classes)]
    # Where each could replace the other, the order in which they are listed decides.
    replaced = {(a, b) for a, _, b, _ in swaps}
    swaps = [swap for swap in swaps if (swap[2], swap[0]) not in replaced or swap[2] < swap[0]]
    return [layout for layout in layouts if not any(_swapped(layout, swap) in known for swap in swaps)]


#: Option, how many of it go, another option, how many of it come.
_Swap = tuple[int, int, int, int]


def _swaps(options: Sequence[EngineOption]) -> Iterator[_Swap]:
    """Swaps on the same devices of a machine."""
    for a, one in enumerate(options):
        for b, other in enumerate(options):
            if a == b or one.device != other.device:
                continue
            if one.units % other.units == 0:
                yield a, 1, b, one.units // other.units
            elif other.units % one.units == 0:
                yield a, other.units // one.units, b, 1


def _swapped(layout: Layout, swap: _Swap) -> Layout | None:
    gone, less, comes, more = swap
    counts = dict(layout)
    if counts.get(gone, 0) < less:
        return None
    counts[gone] -= less
    counts[comes] = counts.get(comes, 0) + more
    return tuple(sorted((option, count) for option, count in counts.items() if count))


def _no_worse(swap: _Swap, options: Sequence[EngineOption], classes: Sequence[LengthClass]) -> bool:
    """Whether the engines that come hold every class that those which go do, and cost no more of anything.

    n engines have n seconds a second. In the program's terms a job then costs 1/n of its own seconds, and what a step
    makes room for (memory, seats, tokens) 1/n of d over that room.
    """
    gone, less, comes, more = swap
    one, other = options[gone].kind, options[comes].kind
    if any(one.can_hold(c.longest) and not other.can_hold(c.longest) for c in classes):
        return False
    return all(y / more <= x / less for x, y in zip(_costs(one), _costs(other), strict=True))


def _costs(kind: DeviceKind) -> Iterator[float]:
    p = kind.profile
    yield from (p.prefill_b, p.prefill_c, p.decode_e, p.decode_f)
    yield from (p.decode_d / p.kv_tokens, p.decode_d / p.seats, p.decode_d / kind.max_batched_tokens)

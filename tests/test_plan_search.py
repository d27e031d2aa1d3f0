"""The search: against brute force, at the edges of what fits, and under budgets and deadlines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from unittest.mock import patch

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plan_machines import SMALL, estimator, machine, measured, space

from broker.length_class import LengthClass
from planner.cheapest import cheapest, fastest_within, least_price
from planner.cluster_plan import pool_plan, throughput
from planner.configurations import EngineOption, Space, options_of
from planner.estimate import Estimator, Measured
from planner.goal import Choice, Goal
from planner.inventory import Machine
from planner.layouts import MachineType, machine_types
from planner.mixed_integer import NoTimeError
from planner.program import Program
from planner.scaling import Times
from planner.search import GAP, NoPlanError, search

MIX = [LengthClass.of(500, 100, 2), LengthClass.of(2000, 20, 1)]


def plans_of(machine: Machine, where: Space, some: Estimator) -> Iterator[tuple[tuple[EngineOption, int], ...]]:
    """Everything a machine of one kind of device could run, engines of a degree alike: by trying all numbers."""
    (group,) = machine.groups
    options, _ = options_of(machine, group, where, some)
    ranges = [range(group.count // option.units + 1) for option in options]
    for counts in product(*ranges):
        used = [(option, n) for option, n in zip(options, counts, strict=True) if n]
        alike = len({option.units for option, _ in used}) == len(used)
        workers = sum(counts)
        fits = sum(option.units * n for option, n in used) <= group.count
        bounded = machine.min_workers <= workers and workers <= (machine.max_workers or workers)
        if fits and alike and bounded:
            yield tuple(used)


def every_plan(
    machines: Sequence[Machine], where: Space, some: Estimator
) -> Iterator[tuple[tuple[tuple[EngineOption, int], ...], ...]]:
    return product(*(plans_of(machine, where, some) for machine in machines))


def rate_of(plan: Sequence[Sequence[tuple[EngineOption, int]]], mix: Sequence[LengthClass]) -> float | None:
    """Jobs a second; None where it cannot hold all of the mix."""
    counts: Counter[EngineOption] = Counter()
    for engines in plan:
        for option, n in engines:
            counts[option] += n
    if not counts:
        return None
    found = throughput(mix, [replace(option.kind, count=n) for option, n in counts.items()])
    return found.jobs_per_s if found.unplaced == 0 else None


times = st.tuples(
    st.just(0.01),
    st.floats(1e-5, 1e-3),
    st.floats(0, 1e-8),
    st.floats(1e-3, 0.1),
    st.floats(0, 1e-3),
    st.floats(0, 1e-6),
).map(lambda t: Times(*t))
pairs = st.tuples(times, times)
mixes = st.lists(
    st.builds(LengthClass.of, st.integers(1, 4000), st.integers(2, 2000), st.integers(1, 50)), min_size=1, max_size=3
)
machine_lists = st.lists(
    st.tuples(st.sampled_from("XY"), st.integers(1, 4), st.sampled_from([6.0, 12.0]), st.sampled_from([None, 2])),
    min_size=1,
    max_size=3,
)


@settings(max_examples=50, deadline=None)
@given(pairs, pairs, machine_lists, mixes)
def test_it_finds_what_trying_everything_finds(
    x: tuple[Times, Times],
    y: tuple[Times, Times],
    described: list[tuple[str, int, float, int | None]],
    mix: list[LengthClass],
) -> None:
    known = [
        Measured(device, "small", units, "", of_device[units - 1].profile(40_000, 128), 4096)
        for device, of_device in (("X", x), ("Y", y))
        for units in (1, 2)
    ]
    some = Estimator(SMALL, known)
    machines = [
        machine(f"m{i}", kind, count, gib, max_workers=most) for i, (kind, count, gib, most) in enumerate(described)
    ]
    where = space(seats=(16, 128))
    types = machine_types(machines, where, some, mix)
    rates = [rate for plan in every_plan(machines, where, some) if (rate := rate_of(plan, mix)) is not None]
    if not rates:
        kept = [c for c in mix if rate_of([[(o, 1)] for t in types for o in t.options], [c]) is not None]
        assert len(kept) < len(mix)
        return
    found = search(types, mix, gap=0.0)
    assert found.left_out == 0
    assert found.best.jobs_per_s == pytest.approx(max(rates), rel=GAP)
    if found.runner_up is not None:
        assert found.runner_up.jobs_per_s <= found.best.jobs_per_s * (1 + GAP)

    with patch("planner.search.Program", partial(Program, large=0)):  # by way of the relaxation
        again = search(types, mix, gap=0.0)
    assert again.best.jobs_per_s == pytest.approx(found.best.jobs_per_s, rel=GAP)
    if again.best.machines != found.best.machines:
        return  # two plans are as good, and each has its own runner-up
    assert (again.runner_up is None) == (found.runner_up is None)
    if found.runner_up is not None and again.runner_up is not None:
        assert again.runner_up.jobs_per_s == pytest.approx(found.runner_up.jobs_per_s, rel=3e-3)
        assert again.runner_up.machines != again.best.machines
    large = Program(types, mix, 0.0, large=0).solve(Goal())
    assert large is not None
    assert large.rate == pytest.approx(max(rates), rel=GAP)
    unproven = Program(types, mix, 0.0, prove_s=0.0, large=0).solve(Goal())
    assert unproven is not None
    assert unproven.rate <= max(rates) * (1 + GAP)
    assert unproven.rate * (1 + unproven.gap) >= max(rates) * (1 - GAP)


def priced(*prices: float) -> list[Machine]:
    return [machine(f"m{i}", count=2, price_per_hour=price) for i, price in enumerate(prices)]


@settings(max_examples=25, deadline=None)
@given(pairs, mixes, st.lists(st.floats(0.1, 10), min_size=1, max_size=3), st.floats(0.3, 1.5))
def test_the_cheapest_plan_for_a_deadline_is_the_cheapest_of_all(
    x: tuple[Times, Times], mix: list[LengthClass], prices: list[float], slack: float
) -> None:
    some = Estimator(SMALL, [Measured("X1", "small", n, "", x[n - 1].profile(40_000, 128), 4096) for n in (1, 2)])
    machines = priced(*prices)
    types = machine_types(machines, space(), some, mix)
    jobs = sum(c.jobs for c in mix)
    costs: list[tuple[float, float]] = []
    for used in product((False, True), repeat=len(machines)):
        mine = [m for m, use in zip(machines, used, strict=True) if use]
        rates = [rate for plan in every_plan(mine, space(), some) if (rate := rate_of(plan, mix)) is not None]
        if rates:
            price = sum(m.price_per_hour or 0 for m in mine)
            costs += [(jobs / rate, price * jobs / rate / 3600) for rate in rates]
    if not costs:
        return
    deadline = slack * 2 * min(seconds for seconds, _ in costs)
    assume(all(abs(seconds / deadline - 1) > GAP for seconds, _ in costs))  # on the edge rounding decides
    in_time = [cost for seconds, cost in costs if seconds <= deadline]
    if not in_time:
        with pytest.raises(NoPlanError, match="s more"):
            cheapest(types, mix, jobs, deadline_s=deadline, gap=0.0)
        return
    found = cheapest(types, mix, jobs, deadline_s=deadline, gap=0.0)
    assert found.seconds(jobs) <= deadline * (1 + GAP)
    assert found.price(jobs) == pytest.approx(min(in_time), rel=GAP)
    budget = 1.3 * min(cost for _, cost in costs)
    assume(all(abs(cost / budget - 1) > GAP for _, cost in costs))
    fastest = cheapest(types, mix, jobs, budget=budget, gap=0.0)
    within = [seconds for seconds, cost in costs if cost <= budget]
    assert fastest.seconds(jobs) == pytest.approx(min(within), rel=GAP)
    with patch("planner.cheapest.Program", partial(Program, large=0)):  # by way of the relaxation
        again = cheapest(types, mix, jobs, deadline_s=deadline, gap=0.0)
        faster = cheapest(types, mix, jobs, budget=budget, gap=0.0)
    assert again.seconds(jobs) <= deadline * (1 + GAP)
    assert again.price(jobs) == pytest.approx(min(in_time), rel=GAP)
    assert faster.seconds(jobs) == pytest.approx(min(within), rel=GAP)
    hurried = Program(types, mix, 0.0, prove_s=0.0, large=0)
    start = hurried.solve(Goal())
    assert start is not None
    unproven = least_price(hurried, start, min(jobs / deadline, start.rate))
    cost = unproven.price_per_hour * jobs / unproven.rate / 3600
    assert cost * (1 - unproven.gap) <= min(in_time) * (1 + GAP)
    assert cost >= min(in_time) * (1 - GAP)


class TestByHand:
    def test_the_runner_up_does_without_the_degree_of_the_best(self) -> None:
        types = machine_types([machine("m", count=4, gib=80.0)], space(), estimator(), MIX)
        found = search(types, MIX, gap=0.0)
        best, second = found.best, found.runner_up
        assert second is not None
        main = max(best.shares, key=lambda share: share.engines * share.option.units).option.units
        others = [
            rate
            for plan in plans_of(machine("m", count=4, gib=80.0), space(), estimator())
            if all(option.units != main for option, _ in plan) and (rate := rate_of([plan], MIX)) is not None
        ]
        assert second.jobs_per_s == pytest.approx(max(others), rel=1e-6)
        assert second.jobs_per_s < best.jobs_per_s

    def test_of_several_machines_the_one_that_loses_least_is_changed_for_it(self) -> None:
        some = estimator(*(measured(d, n, s) for d, n, s in (("X1", 1, 1.0), ("X1", 2, 0.6), ("Y1", 1, 3.0))))
        hosts = [machine("a"), machine("b", "Y1")]
        found = search(machine_types(hosts, space(), some, MIX), MIX, gap=0.0)
        assert found.runner_up is not None
        kinds = {
            planned.machine.name: {(option.device, option.units) for option, _ in planned.engines}
            for planned in found.best.machines
        }
        others = [
            rate
            for plan in every_plan(hosts, space(), some)
            if any(
                not kinds[host.name] & {(option.device, option.units) for option, _ in engines}
                for host, engines in zip(hosts, plan, strict=True)
            )
            and (rate := rate_of(plan, MIX)) is not None
        ]
        assert all(len(degrees) == 1 for degrees in kinds.values())
        assert found.runner_up.jobs_per_s == pytest.approx(max(others), rel=1e-6)

    def test_machines_that_differ_in_price_alone_are_paid_for_from_the_cheapest_on(self) -> None:
        hosts = priced(3.0, 1.0, 2.0)
        types = machine_types(hosts, space(), estimator(), MIX)
        assert [of.names for of in types] == [("m1", "m2", "m0")]
        alone = search(machine_types(hosts[:1], space(), estimator(), MIX), MIX).best
        found = cheapest(types, MIX, 1000, deadline_s=1.01 * alone.seconds(1000) / 2)
        assert {m.machine.name: m.machine.price_per_hour for m in found.machines if m.engines} == {"m1": 1.0, "m2": 2.0}
        assert found.price_per_hour == pytest.approx(3.0)

    def test_every_device_that_helps_is_used(self) -> None:
        hosts = [machine("a"), machine("b"), machine("c", "cpu", 4, 32.0)]
        some = estimator(measured("X1"), measured("X1", 2, 0.6), measured("cpu", 2, 40.0))
        found = search(machine_types(hosts, space(), some, MIX), MIX).best
        assert [planned.machine.name for planned in found.machines] == ["a", "b", "c"]
        assert all(planned.engines for planned in found.machines)
        assert sum(share.tokens_per_s for share in found.shares) == pytest.approx(found.tokens_per_s)

    def test_jobs_that_fit_nothing_are_left_out_and_counted(self) -> None:
        mix = [LengthClass.of(500, 100, 3), LengthClass.of(500_000, 1, 1)]
        found = search(machine_types([machine("m")], space(), estimator(), mix), mix)
        assert found.left_out == pytest.approx(0.25)

    def test_a_class_that_only_a_wide_engine_holds_brings_one(self) -> None:
        """Alone two engines of one device are faster: yet then nobody could hold the long requests."""
        mix = [LengthClass.of(500, 100, 99), LengthClass.of(20_000, 10, 1)]
        found = search(machine_types([machine("m", gib=5.0, count=4)], space(), estimator(), mix), mix).best
        assert any(share.option.kind.can_hold(mix[1].longest) for share in found.shares)

    @pytest.mark.parametrize(
        ("gib", "mix", "said"),
        [
            (2.0, MIX, r"no configuration fits: m: X1 x2: weights do not fit: .* GiB short$"),
            (12.0, [LengthClass.of(10**6, 10)], r"no request fits: the roomiest configuration holds 32,768 tokens"),
        ],
    )
    def test_what_cannot_be_is_said(self, gib: float, mix: list[LengthClass], said: str) -> None:
        types = machine_types([machine("m", gib=gib)], space(), estimator(), mix)
        with pytest.raises(NoPlanError, match=said):
            search(types, mix)

    def test_bounds_that_nothing_meets_are_said(self) -> None:
        types = machine_types([machine("m", min_workers=3)], space(), estimator(), MIX)
        with pytest.raises(NoPlanError, match="m: no layout has 3 to any number of workers"):
            search(types, MIX)


class TestBudget:
    def types(self, *prices: float) -> list[MachineType]:
        return machine_types(priced(*prices), space(), estimator(), MIX)

    def test_a_loose_deadline_takes_the_cheapest_machine_alone(self) -> None:
        found = cheapest(self.types(5.0, 1.0, 3.0), MIX, 1000, deadline_s=1e6)
        assert [m.machine.name for m in found.machines if m.engines] == ["m1"]

    def test_a_machine_that_must_have_workers_is_taken_and_one_that_need_not_is_emptied(self) -> None:
        hosts = [*priced(1.0, 30.0), machine("dear", count=2, price_per_hour=9.0, min_workers=1)]
        found = cheapest(machine_types(hosts, space(), estimator(), MIX), MIX, 1000, deadline_s=1e6)
        assert {m.machine.name for m in found.machines if m.engines} == {"m0", "dear"}
        written = pool_plan(found, ("--model", "m"), version=1, made=0.0, reason="")
        assert written.idle_hosts == ("m1",)
        assert {worker.host for worker in written.workers} == {"m0", "dear"}

    def test_a_tight_one_takes_all(self) -> None:
        types = self.types(5.0, 1.0, 3.0)
        span = search(types, MIX).best.seconds(1000)
        found = cheapest(types, MIX, 1000, deadline_s=1.001 * span)
        assert all(m.engines for m in found.machines)
        with pytest.raises(NoPlanError, match=r"no plan is done in .* s: all machines together need .* s more"):
            cheapest(types, MIX, 1000, deadline_s=0.5 * span)

    def test_a_budget_buys_speed_and_too_small_a_one_says_what_is_missing(self) -> None:
        types = self.types(5.0, 1.0)
        least = cheapest(types, MIX, 10**6, deadline_s=1e9)
        price = least.price(10**6) or 0.0
        fast = cheapest(types, MIX, 10**6, budget=100 * price)
        assert fast.seconds(10**6) < least.seconds(10**6)
        with pytest.raises(NoPlanError, match=r"the cheapest costs .* more"):
            cheapest(types, MIX, 10**6, budget=0.5 * price)

    def test_without_a_price_none_is_reckoned(self) -> None:
        types = machine_types([machine("m")], space(), estimator(), MIX)
        with pytest.raises(NoPlanError, match="price_per_hour of m is not known"):
            cheapest(types, MIX, 10, budget=1.0)


class Stopping(Program):
    """A program whose time runs out after some rounds."""

    rounds = 10**6

    def solve(self, goal: Goal, prove_s: float = float("inf")) -> Choice | None:
        if self.rounds == 0:
            raise NoTimeError
        self.rounds -= 1
        return super().solve(goal, prove_s)


class TestTimeLimit:
    @pytest.mark.parametrize("rounds", range(4))
    def test_no_plan_is_cheaper_than_the_gap_says(self, rounds: int) -> None:
        program = Stopping(machine_types(priced(5.0, 1.0, 3.0, 0.5), space(), estimator(), MIX), MIX, 0.0)
        fastest = program.solve(Goal())
        assert fastest is not None
        best = least_price(program, fastest, 0.3 * fastest.rate)
        program.rounds = rounds
        found = least_price(program, fastest, 0.3 * fastest.rate)
        least, price = best.price_per_hour / best.rate, found.price_per_hour / found.rate
        assert found.stopped or price == pytest.approx(least)
        assert price * (1 - (found.gap if found.stopped else 0)) <= least * (1 + GAP)
        assert price >= least * (1 - GAP)
        assert not best.stopped
        assert rounds or found.gap == 1

    def test_without_time_for_any_plan_that_is_said(self) -> None:
        types = machine_types(priced(5.0, 1.0, 3.0), space(), estimator(), MIX)
        with pytest.raises(NoPlanError, match="no plan was found in 0 s: give fewer --seats"):
            cheapest(types, MIX, 10, deadline_s=1e6, limit_s=0.0)
        with pytest.raises(NoPlanError, match="no plan was found in 0 s: give fewer --seats"):
            search(types, MIX, limit_s=0.0)

    def test_a_budget_is_given_what_was_found_in_time(self) -> None:
        """What costs least is no longer made faster; how much faster it could be is said."""
        types = machine_types(priced(5.0, 1.0), space(), estimator(), MIX)
        program = Stopping(types, MIX, 0.0)
        fastest = program.solve(Goal())
        assert fastest is not None
        least = least_price(program, fastest, 0.0)
        program.rounds = 0
        found = fastest_within(program, least, fastest.rate, 1e9)
        assert found.stopped
        assert found.rate * (1 + found.gap) == pytest.approx(fastest.rate)

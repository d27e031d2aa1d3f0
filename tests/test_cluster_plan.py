"""A plan as the supervisors carry it out, and as re-planning proposes and judges it."""

from __future__ import annotations

from collections import Counter
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_machines import estimator, machine, measured, profile, space

from broker.errors import UsageError
from broker.pool_plan import PoolPlan
from broker.profiles import ProfileRecord, ProfileValues
from broker.recent_mix import MixClass, RecentMix
from broker.worker_options import check_options
from planner.cluster_plan import ClusterPlan, pool_plan, price_per_million
from planner.inventory import DeviceGroup, Machine
from planner.inventory_planning import InventoryPlanning, as_expected
from planner.layouts import machine_types
from planner.search import search

MIX = RecentMix((MixClass(30, 15_000, 3_000), MixClass(10, 20_000, 200)))


def plan_for(*machines: Machine) -> ClusterPlan:
    some = estimator(measured("X1"), measured("X1", 2, 0.6), measured("Y1", slower=3), measured("cpu", 2, slower=30))
    return search(machine_types(machines, space(), some, MIX.length_classes()), MIX.length_classes()).best


def carried_out(plan: ClusterPlan) -> PoolPlan:
    return pool_plan(plan, ("--model", "/m"), version=3, made=1.0, reason="why")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["X1", "cpu"]), st.integers(1, 8), st.sampled_from([6.0, 60.0])), max_size=3))
def test_workers_get_devices_of_their_own(described: list[tuple[str, int, float]]) -> None:
    machines = [machine(f"m{i}", kind, count, gib) for i, (kind, count, gib) in enumerate(described)]
    machines.append(machine("last"))
    found = carried_out(plan_for(*machines))
    sizes = {m.name: m.groups[0].count for m in machines}
    taken = Counter((worker.host, device) for worker in found.workers for device in worker.devices)
    assert set(taken.values()) <= {1}
    assert all(device < sizes[host] for host, device in taken)
    names = [worker.name for worker in found.workers]
    assert len(set(names)) == len(names)
    for worker in found.workers:
        check_options(worker.options, ["/m"])
        assert worker.devices == tuple(range(worker.devices[0], worker.devices[-1] + 1))
    assert sum(worker.tokens_per_s for worker in found.workers) == pytest.approx(found.tokens_per_s)


def test_workers_share_the_price_of_their_machine() -> None:
    gib = 1 << 30
    groups = (DeviceGroup("X1", 2, 12 * gib), DeviceGroup("Y1", 1, 12 * gib))
    found = carried_out(plan_for(Machine("m", groups, price_per_hour=9.0), machine("free of a price")))
    priced = {worker.host: worker.price_per_hour for worker in found.workers}
    assert priced["free of a price"] is None
    prices = [worker.price_per_hour for worker in found.workers if worker.host == "m"]
    assert sum(price for price in prices if price is not None) == pytest.approx(9.0)
    assert all(price is not None and price > 0 for price in prices)


def test_gpus_of_two_kinds_are_counted_on_and_cores_apart() -> None:
    gib = 1 << 30
    groups = (DeviceGroup("X1", 2, 12 * gib), DeviceGroup("Y1", 2, 12 * gib), DeviceGroup("cpu", 4, 64 * gib))
    found = carried_out(plan_for(Machine("m", groups)))
    kinds = ("X1", "Y1", "cpu")
    of_kind = {kind: sorted(d for w in found.workers if w.device == kind for d in w.devices) for kind in kinds}
    assert of_kind == {"X1": [0, 1], "Y1": [2, 3], "cpu": [0, 1, 2, 3]}
    said = next(worker.options for worker in found.workers if worker.device == "cpu")
    assert "--cores" in said
    assert "--kv-gib" in said


def test_prices_are_those_of_machines_in_use() -> None:
    plan = plan_for(machine("a", price_per_hour=3.6))
    assert plan.price_per_hour == 3.6
    assert plan.price_per_million_tokens == pytest.approx(1000 / plan.tokens_per_s)
    assert plan_for(machine("a", price_per_hour=3.6), machine("b")).price_per_hour is None
    assert price_per_million(1.0, 0.0) is None


@pytest.mark.parametrize("gib", [5.0, 12.0])
def test_figures_are_what_engines_reach_and_the_better_plan_by_them_comes_first(gib: float) -> None:
    classes = MIX.length_classes()
    found = search(machine_types([machine("a", count=4, gib=gib)], space(), estimator(), classes), classes)
    said = as_expected(found, classes)
    assert found.runner_up is not None
    assert said.runner_up is not None
    at_best = {plan.machines: plan for plan in (found.best, found.runner_up)}
    for plan in (said.best, said.runner_up):
        assert 0.5 < plan.tokens_per_s / at_best[plan.machines].tokens_per_s < 0.999
        assert plan.tokens_per_s == pytest.approx(sum(share.tokens_per_s for share in plan.shares))
    assert said.best.machines != said.runner_up.machines
    assert said.best.jobs_per_s >= said.runner_up.jobs_per_s


def record(device: str, degree: int, slower: float) -> ProfileRecord:
    values = ProfileValues.of(profile(slower))
    said = {"device": device, "model": "small", "engine": "vllm", "version": "1", "tensor_parallel": degree}
    return ProfileRecord.model_validate({**said, "measured": date(2026, 1, 1), "profile": values})


class TestReplanning:
    PROFILES = (record("X1", 1, 1.0), record("X1 x2", 2, 0.6))

    def planning(self, *machines: Machine) -> InventoryPlanning:
        return InventoryPlanning(machines or (machine("a"), machine("b", count=4)), space(), ("--model", "/m"))

    def test_what_is_proposed_is_expected_to_do_what_it_says(self) -> None:
        planning = self.planning()
        proposed = planning.propose(MIX, self.PROFILES)
        assert proposed.workers
        assert planning.expected(proposed.workers, MIX, self.PROFILES) == pytest.approx(proposed.tokens_per_s)

    def test_fewer_workers_do_less(self) -> None:
        planning = self.planning()
        proposed = planning.propose(MIX, self.PROFILES)
        fewer = planning.expected(proposed.workers[1:], MIX, self.PROFILES)
        assert fewer is not None
        assert 0 < fewer < proposed.tokens_per_s

    def test_of_what_is_not_known_nothing_is_expected(self) -> None:
        planning = self.planning()
        proposed = planning.propose(MIX, self.PROFILES)
        elsewhere = self.planning(machine("z"))
        assert elsewhere.expected(proposed.workers, MIX, self.PROFILES) is None
        assert planning.expected((), MIX, self.PROFILES) is None
        assert planning.expected(proposed.workers, RecentMix(), self.PROFILES) is None

    def test_without_a_mix_or_a_profile_there_is_no_plan(self) -> None:
        with pytest.raises(UsageError, match="no request has ended yet"):
            self.planning().propose(RecentMix(), self.PROFILES)
        with pytest.raises(UsageError, match="nothing is known of the device 'X1'"):
            self.planning().propose(MIX, ())

"""What a supervisor decides: from any pool to any plan, one step after another, and never more than fits."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import UsageError
from broker.pool_plan import PlannedWorker, PoolPlan
from tokenyard.plan_memory import PlanMemory
from tokenyard.supervision import Decision, Host, HostProcess, backoff_s, decide, own_workers, process_name
from tokenyard.worker_failures import WorkerFailures


@dataclass
class Machine:
    """A host on which starts and drains take their time, in an order that the test draws."""

    most: int
    exclusive: bool
    others_serve: bool = False
    may_pause: bool = True
    processes: dict[str, HostProcess] = field(default_factory=dict[str, HostProcess])
    asked_to_pause: bool = False

    def decide(self, wanted: list[PlannedWorker]) -> Decision:
        host = Host(
            wanted,
            list(self.processes.values()),
            others_serve=self.others_serve,
            may_pause=self.may_pause,
            most=self.most,
        )
        decision = decide(host)
        for name in decision.drain:
            assert self.processes[name].phase != "draining"
            self.processes[name] = self.processes[name]._replace(phase="draining")
        for worker in decision.start:
            assert process_name(worker) not in self.processes
            self.processes[process_name(worker)] = HostProcess(process_name(worker), worker, "starting")
        self.asked_to_pause = decision.wants_pause
        self.check()
        return decision

    def check(self) -> None:
        """Never more than fits."""
        assert len(self.processes) <= self.most
        held = [index for process in self.processes.values() for index in process.planned.devices]
        assert len(held) == len(set(held))

    def pass_time(self, rng: random.Random) -> None:
        """One that starts is ready, or one that drains has left."""
        moving = [p for p in self.processes.values() if p.phase != "ready"]
        if moving:
            process = rng.choice(sorted(moving))
            if process.phase == "draining":
                del self.processes[process.name]
            else:
                self.processes[process.name] = process._replace(phase="ready")

    @property
    def serving(self) -> int:
        return sum(p.phase == "ready" for p in self.processes.values())

    def settle(self, wanted: list[PlannedWorker], rng: random.Random) -> int:
        """Carry the plan out; returns how few served in between."""
        fewest = self.serving
        for _ in range(200):
            decision = self.decide(wanted)
            fewest = min(fewest, self.serving)
            if not decision.start and not decision.drain and all(p.phase == "ready" for p in self.processes.values()):
                break
            self.pass_time(rng)
        assert set(self.processes) == {process_name(w) for w in wanted}
        return fewest


def plans(*, devices: bool) -> st.SearchStrategy[list[PlannedWorker]]:
    """Up to four workers on four devices, each with its own (or with none)."""
    options = st.sampled_from([(), ("--seats", "1"), ("--seats", "2")])

    def build(draw: st.DrawFn) -> list[PlannedWorker]:
        left = draw(st.permutations(range(4)))
        workers: list[PlannedWorker] = []
        while left and len(workers) < 4 and draw(st.booleans()):
            take = draw(st.integers(1, len(left)))
            own, left = left[:take], left[take:]
            name = f"w{len(workers)}"
            workers.append(PlannedWorker(name, "h", draw(options), devices=tuple(own) if devices else ()))
        return workers

    return st.composite(build)()


@settings(max_examples=200)
@given(plans(devices=True), plans(devices=True), st.integers(0, 2**32))
def test_from_any_pool_to_any_plan_with_devices(
    before: list[PlannedWorker], after: list[PlannedWorker], seed: int
) -> None:
    machine, rng = Machine(most=4, exclusive=True), random.Random(seed)
    machine.settle(before, rng)
    fewest = machine.settle(after, rng)
    old = [process_name(w) for w in before]
    new = {process_name(w): set(w.devices) for w in after}
    kept = set(old) & new.keys()
    # What the first new one needs may be all that the old ones have: then nobody can serve meanwhile.
    first_steps = [sum(not new[n].isdisjoint(w.devices) for w in before) for n in new.keys() - kept]
    if before and after and (kept or not first_steps or min(first_steps) < len(before)):
        assert fewest >= 1


@settings(max_examples=200)
@given(plans(devices=False), plans(devices=False), st.integers(0, 2**32))
def test_where_both_fit_one_of_the_two_always_serves(
    before: list[PlannedWorker], after: list[PlannedWorker], seed: int
) -> None:
    machine, rng = Machine(most=5, exclusive=False), random.Random(seed)
    machine.settle(before, rng)
    fewest = machine.settle(after, rng)
    assert fewest >= min(len(before), len(after))  # not even fewer than in the smaller of the two


@settings(max_examples=200)
@given(st.lists(plans(devices=True), min_size=2, max_size=4), st.integers(0, 2**32), st.integers(1, 4))
def test_plans_that_change_in_the_middle_of_a_change(wishes: list[list[PlannedWorker]], seed: int, most: int) -> None:
    machine, rng = Machine(most=most, exclusive=True), random.Random(seed)
    for wanted in wishes[:-1]:
        for _ in range(rng.randrange(6)):
            machine.decide(wanted[:most])
            machine.pass_time(rng)
    machine.settle(wishes[-1][:most], rng)


def test_it_waits_for_its_turn_to_serve_nothing_where_others_serve() -> None:
    old, new = PlannedWorker("w", "h", devices=(0,)), PlannedWorker("w", "h", ("--seats", "2"), devices=(0,))
    machine = Machine(most=4, exclusive=True, others_serve=True, may_pause=False)
    machine.processes = {process_name(old): HostProcess(process_name(old), old, "ready")}
    assert machine.decide([new]) == Decision(wants_pause=True)
    machine.may_pause = True
    assert machine.decide([new]).drain == (process_name(old),)


def test_what_failed_waits_and_what_serves_stays() -> None:
    old, new = PlannedWorker("w", "h"), PlannedWorker("w", "h", ("--seats", "2"))
    process = HostProcess(process_name(old), old, "ready")
    later = {process_name(new): 10.0}
    assert decide(Host([new], [process], not_before=later, now=9.0)) == Decision()
    assert decide(Host([new], [process], not_before=later, now=10.0)) == Decision(start=(new,))
    exclusive = [PlannedWorker("w", "h", options, devices=(0,)) for options in ((), ("--seats", "2"))]
    process = HostProcess(process_name(exclusive[0]), exclusive[0], "ready")
    later = {process_name(exclusive[1]): 10.0}
    assert decide(Host(exclusive[1:], [process], not_before=later, now=9.0)) == Decision()


def test_devices_that_are_not_free_yet_are_not_given_away() -> None:
    worker = PlannedWorker("w", "h", devices=(0,))
    assert decide(Host([worker], [], occupied={"gpu 0"})) == Decision()
    assert decide(Host([worker], [], occupied={"gpu 1", "core 0"})) == Decision(start=(worker,))


def test_another_configuration_is_another_process_and_the_same_is_the_same() -> None:
    worker = PlannedWorker("w", "h", ("--seats", "2"), "L4", (0,), 1, 5.0)
    assert process_name(worker) == process_name(PlannedWorker("w", "h", ("--seats", "2"), "other", (0,), 1, 9.0))
    others = [
        PlannedWorker("v", "h", ("--seats", "2"), devices=(0,)),
        PlannedWorker("w", "h", ("--seats", "3"), devices=(0,)),
        PlannedWorker("w", "h", ("--seats", "2"), devices=(1,)),
        PlannedWorker("w", "h", ("--seats", "2"), devices=(0,), tensor_parallel=2),
    ]
    assert len({process_name(w) for w in [worker, *others]}) == 5


class TestFailures:
    def test_it_waits_longer_each_time_with_an_end(self) -> None:
        waits = [backoff_s(n) for n in range(1, 10)]
        assert waits[:4] == [1, 2, 4, 8]
        assert max(waits) == 60

    def test_one_that_never_got_ready_is_hopeless_and_one_that_did_is_not(self) -> None:
        failures = WorkerFailures(random.Random(0))
        for _ in range(3):
            assert not failures.is_hopeless("a", usage_error=False)
            failures.failed("a", 0.0, got_ready=False)
        assert failures.is_hopeless("a", usage_error=False)
        assert failures.is_hopeless("b", usage_error=True)
        failures.forget("a")
        assert not failures.is_hopeless("a", usage_error=False)
        failures.got_ready("a")
        for _ in range(9):
            failures.failed("a", 0.0, got_ready=False)
        assert not failures.is_hopeless("a", usage_error=True)

    def test_the_backoff_begins_anew_after_a_minute_of_service(self) -> None:
        failures = WorkerFailures(random.Random(0))
        waits = [failures.failed("a", now, got_ready=True) for now in (0.0, 5.0, 10.0, 15.0, 100.0)]
        assert waits[3] > 4 >= 1 >= waits[4]


class TestOwnWorkers:
    PLAN = PoolPlan(7, 0.0, (PlannedWorker("a", "h1", ("--cores", "0", "--model", "m"), devices=(0,)),))

    def test_only_those_of_this_host(self) -> None:
        assert own_workers(self.PLAN, "h1", ["m"], 4) == self.PLAN.workers

    def test_a_plan_for_another_host_says_so(self) -> None:
        with pytest.raises(UsageError, match="plan 7 has no worker for host h2 \\(it names h1\\)"):
            own_workers(self.PLAN, "h2", ["m"], 4)
        assert own_workers(msgspec.structs.replace(self.PLAN, idle_hosts=("h2",)), "h2", ["m"], 4) == ()

    def test_a_model_that_may_not_run_here(self) -> None:
        with pytest.raises(UsageError, match="plan 7, worker a: the model 'm' is none of those"):
            own_workers(self.PLAN, "h1", ["other"], 4)

    def test_cores_that_are_not_there(self) -> None:
        with pytest.raises(UsageError, match="this host has 0 cores"):
            own_workers(self.PLAN, "h1", ["m"], 0)


class TestMemory:
    def test_it_keeps_the_last_plan(self, tmp_path: Path) -> None:
        plans = [PoolPlan(n, 0.0, (PlannedWorker("a", "h"),)) for n in (1, 2)]
        memory = PlanMemory(tmp_path / "plan")
        assert memory.read() is None
        for plan in plans:
            memory.keep(plan)
            assert PlanMemory(tmp_path / "plan").read() == plan

    def test_what_is_no_plan_is_passed_over(self, tmp_path: Path) -> None:
        (tmp_path / "plan").write_text("{")
        assert PlanMemory(tmp_path / "plan").read() is None
        PlanMemory(tmp_path / "nowhere" / "plan").keep(PoolPlan(1, 0.0, ()))

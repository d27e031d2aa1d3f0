"""The linear program against hand-computed cases and brute force, and what its prices promise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placing import PROFILE, slower

from broker.fluid import solve
from broker.length_class import LengthClass
from broker.throughput import NO_WORK, DeviceKind, Profile, work_of

#: Times that make sums easy: a second a step, half a second a step for each request, nothing else.
STEPS = Profile(0.0, 0.0, 0.0, 1.0, 0.5, 0.0, kv_tokens=10**9, seats=10)
ROOMY = 10**9

profiles = st.builds(
    Profile,
    prefill_a=st.just(0.01),
    prefill_b=st.floats(1e-6, 1e-3),
    prefill_c=st.floats(0, 1e-8),
    decode_d=st.floats(1e-3, 0.1),
    decode_e=st.floats(0, 1e-3),
    decode_f=st.floats(0, 1e-6),
    kv_tokens=st.integers(8_000, 500_000),
    seats=st.integers(1, 256),
)
kinds = st.builds(DeviceKind, profile=profiles, count=st.integers(1, 5), slowdown=st.sampled_from([1.0, 1.7, 3.0]))
fleets = st.lists(kinds, min_size=1, max_size=3)
classes = st.lists(
    st.builds(LengthClass.of, st.integers(1, 4000), st.integers(1, 2000), st.integers(1, 50)), min_size=1, max_size=4
)
few = settings(max_examples=50)


class TestByHand:
    def test_seats_bound_one_device(self) -> None:
        plan = solve([LengthClass.of(1, 101, 40)], [DeviceKind(STEPS, max_batched_tokens=ROOMY)])
        # 40 jobs of 100 steps in batches of 10: 400 steps of 1 s, and 0.5 s for each job's step
        assert plan.seconds == pytest.approx(400 + 4000 * 0.5)
        assert plan.steps.tolist() == [pytest.approx(400)]
        assert plan.jobs.tolist() == [[pytest.approx(40)]]
        assert plan.jobs_per_s == pytest.approx(40 / 2400)

    def test_memory_bounds_one_device(self) -> None:
        narrow = replace(STEPS, kv_tokens=1000)
        plan = solve([LengthClass.of(400, 201, 10)], [DeviceKind(narrow, max_batched_tokens=ROOMY)])
        context = 10 * 200 * (400 + 199 / 2)  # token-steps of all jobs
        assert plan.seconds == pytest.approx(context / 1000 + 10 * 200 * 0.5)

    def test_the_token_budget_bounds_one_device(self) -> None:
        plan = solve([LengthClass.of(1000, 1, 10)], [DeviceKind(STEPS, max_batched_tokens=100)])
        assert plan.seconds == pytest.approx(10 * 1000 / 100)

    def test_the_prefill_bounds_one_device(self) -> None:
        only = Profile(0.0, 1e-3, 1e-6, 0.0, 0.0, 0.0, kv_tokens=10**6, seats=10)
        assert solve([LengthClass.of(1000, 1, 3)], [DeviceKind(only)]).seconds == pytest.approx(3 * (1.0 + 1.0))

    def test_one_that_fills_the_seats_and_one_that_fills_the_memory_share_their_steps(self) -> None:
        device = DeviceKind(replace(STEPS, kv_tokens=1000, decode_e=0.0), max_batched_tokens=ROOMY)
        small, large = LengthClass.of(1, 101, 10), LengthClass.of(900, 11, 10)
        apart = solve([small], [device]).seconds + solve([large], [device]).seconds
        assert solve([small, large], [device]).seconds < 0.99 * apart

    def test_two_devices_share_in_proportion_to_their_speed(self) -> None:
        fast, slow = DeviceKind(STEPS, max_batched_tokens=ROOMY), DeviceKind(slower(STEPS, 3), max_batched_tokens=ROOMY)
        plan = solve([LengthClass.of(1, 101, 40)], [fast, slow])
        assert plan.seconds == pytest.approx(2400 * 3 / 4)
        assert plan.jobs[0].tolist() == [pytest.approx(30), pytest.approx(10)]

    def test_each_takes_what_it_is_good_at(self) -> None:
        reader = DeviceKind(Profile(0, 1e-4, 0, 1.0, 0, 0, kv_tokens=10**6, seats=1), max_batched_tokens=10**6)
        writer = DeviceKind(Profile(0, 1.0, 0, 1e-4, 0, 0, kv_tokens=10**6, seats=1), max_batched_tokens=10**6)
        plan = solve([LengthClass.of(1000, 1, 5), LengthClass.of(1, 1001, 5)], [reader, writer])
        assert plan.jobs == pytest.approx(np.diag([5.0, 5.0]), abs=0.1)

    def test_a_slowdown_is_a_slower_profile(self) -> None:
        mix = [LengthClass.of(500, 300, 7), LengthClass.of(3000, 20, 3)]
        assert solve(mix, [DeviceKind(PROFILE, slowdown=3.0)]).seconds == pytest.approx(
            solve(mix, [DeviceKind(slower(PROFILE, 3.0))]).seconds
        )

    def test_devices_of_one_kind_are_as_many_kinds_of_one_device(self) -> None:
        mix = [LengthClass.of(500, 300, 7), LengthClass.of(3000, 20, 3)]
        assert solve(mix, [DeviceKind(PROFILE, count=4)]).seconds == pytest.approx(
            solve(mix, [DeviceKind(PROFILE)] * 4).seconds
        )


@few
@given(a=profiles, b=profiles, lengths=st.tuples(st.integers(1, 2000), st.integers(2, 2000)))
def test_two_devices_and_one_class_as_by_trying_every_split(a: Profile, b: Profile, lengths: tuple[int, int]) -> None:
    """The time is that of the later one: it is least where one's growing line meets the other's falling one."""
    fleet = [DeviceKind(a, max_batched_tokens=512), DeviceKind(b, max_batched_tokens=512)]

    def alone(kind: DeviceKind, jobs: float) -> float:
        return solve([LengthClass.of(*lengths, jobs)], [kind]).seconds if jobs else 0.0

    splits = [max(alone(fleet[0], n), alone(fleet[1], 40 - n)) for n in range(41)]
    best = solve([LengthClass.of(*lengths, 40)], fleet).seconds
    assert best <= min(splits) * (1 + 1e-6)
    assert best >= min(splits) * (1 - 1 / 20)  # between two of the splits tried


@few
@given(mix=classes, fleet=fleets)
def test_no_plan_breaks_a_limit_of_a_device(mix: list[LengthClass], fleet: list[DeviceKind]) -> None:
    plan = solve(mix, fleet)
    for k, kind in enumerate(fleet):
        p = kind.profile
        works = [(plan.jobs[c, k], one.work) for c, one in enumerate(mix)]
        own = sum(n * p.own_seconds(w) for n, w in works)
        room = 1 + 1e-6
        assert (own + p.decode_d * plan.steps[k]) * kind.slowdown <= plan.seconds * kind.count * room + 1e-9
        assert sum(n * w.context_steps for n, w in works) <= p.kv_tokens * plan.steps[k] * room + 1e-3
        assert sum(n * w.steps for n, w in works) <= p.seats * plan.steps[k] * room + 1e-6
        assert sum(n * w.tokens for n, w in works) <= kind.max_batched_tokens * plan.steps[k] * room + 1e-3
    placed = plan.jobs.sum(axis=1)
    assert all(placed[c] == pytest.approx(one.jobs if c not in plan.unplaced else 0) for c, one in enumerate(mix))


@few
@given(mix=classes, fleet=fleets, extra=kinds, factor=st.floats(1.0, 5.0))
def test_more_or_faster_devices_are_never_slower_and_more_jobs_never_faster(
    mix: list[LengthClass], fleet: list[DeviceKind], extra: DeviceKind, factor: float
) -> None:
    plan = solve(mix, fleet)
    done = [one for c, one in enumerate(mix) if c not in plan.unplaced]
    now, more = plan.seconds * (1 + 1e-6) + 1e-9, plan.seconds * (1 - 1e-6) - 1e-9
    assert solve(done, [*fleet, extra]).seconds <= now
    assert solve(done, [replace(fleet[0], profile=slower(fleet[0].profile, 1 / factor)), *fleet[1:]]).seconds <= now
    assert solve(done, [replace(fleet[0], slowdown=fleet[0].slowdown * factor), *fleet[1:]]).seconds >= more
    assert solve([*mix, LengthClass.of(100, 100, 5)], fleet).seconds >= more
    assert solve([replace(one, jobs=one.jobs + 1) for one in done], fleet).seconds >= more


@few
@given(mix=classes, fleet=fleets, factor=st.sampled_from([1e-3, 0.5, 3.0, 1e4]))
def test_twice_the_jobs_take_twice_the_time(mix: list[LengthClass], fleet: list[DeviceKind], factor: float) -> None:
    plan = solve(mix, fleet)
    scaled = solve([replace(one, jobs=one.jobs * factor) for one in mix], fleet)
    assert scaled.seconds == pytest.approx(plan.seconds * factor, rel=1e-5, abs=1e-9)
    assert scaled.jobs.sum() == pytest.approx(plan.jobs.sum() * factor)


class TestInOnePiece:
    def test_a_job_that_fills_more_than_half_of_the_memory_takes_all_of_it(self) -> None:
        kind = DeviceKind(Profile(0.0, 0.0, 0.0, 1.0, 0.0, 0.0, kv_tokens=1000, seats=8))
        mix = [LengthClass.of(590, 11)]
        assert solve(mix, [kind]).seconds == pytest.approx(10 * 594.5 / 1000)
        assert solve(mix, [kind], in_one_piece=True).seconds == pytest.approx(10, rel=0.02)

    @settings(max_examples=60)
    @given(classes, fleets)
    def test_never_less_than_what_no_plan_is_faster_than(self, mix: list[LengthClass], fleet: list[DeviceKind]) -> None:
        assert solve(mix, fleet, in_one_piece=True).seconds >= solve(mix, fleet).seconds * (1 - 1e-6)

    def test_small_jobs_fill_it_as_ever(self) -> None:
        kind = DeviceKind(Profile(0.01, 1e-4, 0.0, 0.02, 1e-4, 1e-7, kv_tokens=1000, seats=64))
        mix = [LengthClass.of(50, 40), LengthClass.of(150, 30)]
        assert solve(mix, [kind], in_one_piece=True).seconds == pytest.approx(solve(mix, [kind]).seconds)


class TestPrices:
    @few
    @given(mix=classes, fleet=fleets)
    def test_the_jobs_cost_together_what_the_plan_takes(self, mix: list[LengthClass], fleet: list[DeviceKind]) -> None:
        plan = solve(mix, fleet)
        costs = [one.jobs * plan.seconds_of(fleet, one.work, one.longest) for one in mix]
        assert sum(costs) == pytest.approx(plan.seconds, rel=1e-4, abs=1e-9)

    @few
    @given(planned=classes, other=classes, fleet=fleets)
    def test_at_these_prices_no_other_jobs_cost_more_than_their_own_best_plan(
        self, planned: list[LengthClass], other: list[LengthClass], fleet: list[DeviceKind]
    ) -> None:
        """Weak duality: the sum is a lower bound for every schedule of every set of jobs."""
        plan = solve(planned, fleet)
        costs = [one.jobs * plan.seconds_of(fleet, one.work, one.longest) for one in other]
        assert sum(costs) <= solve(other, fleet).seconds * (1 + 1e-4) + 1e-9

    @few
    @given(mix=classes, fleet=fleets)
    def test_prices_are_never_negative(self, mix: list[LengthClass], fleet: list[DeviceKind]) -> None:
        for price in solve(mix, fleet).prices:
            assert min(price.own_second, price.context_step, price.step, price.token) >= -1e-9


class TestWhatMayGoWhere:
    @few
    @given(mix=classes, fleet=fleets, data=st.data())
    def test_pairs_that_are_not_allowed_are_not_used(
        self, mix: list[LengthClass], fleet: list[DeviceKind], data: st.DataObject
    ) -> None:
        shape = (len(mix), len(fleet))
        flags = st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
        allowed = np.array(data.draw(flags), dtype=bool).reshape(shape)
        plan = solve(mix, fleet, allowed)
        assert (plan.jobs[~allowed] == 0).all()
        fits = [[kind.can_hold(one.longest) for kind in fleet] for one in mix]
        assert plan.unplaced == tuple(np.flatnonzero(~(allowed & np.array(fits)).any(axis=1)))
        if not plan.unplaced:
            assert plan.seconds >= solve(mix, fleet).seconds * (1 - 1e-6)

    def test_what_no_device_can_hold_is_told_and_left_out(self) -> None:
        fleet = [DeviceKind(PROFILE), DeviceKind(replace(PROFILE, kv_tokens=50_000), context_tokens=30_000)]
        mix = [LengthClass.of(40_000, 10, 5), LengthClass.of(100, 100, 5), LengthClass.of(25_000, 10, 5)]
        plan = solve(mix, fleet)
        assert plan.unplaced == (0,)
        assert plan.jobs == pytest.approx(np.array([[0, 0], plan.jobs[1], [0, 5.0]]))
        assert plan.seconds == pytest.approx(solve(mix[1:], fleet).seconds)
        assert plan.seconds_of(fleet, mix[0].work, mix[0].longest) == 0

    @pytest.mark.parametrize("fleet", [[], [DeviceKind(replace(PROFILE, kv_tokens=10))]])
    def test_without_a_device_for_anything_nothing_takes_no_time(self, fleet: list[DeviceKind]) -> None:
        plan = solve([LengthClass.of(100, 100, 5)], fleet)
        assert (plan.seconds, plan.unplaced, plan.jobs_per_s) == (0.0, (0,), float("inf"))

    def test_no_jobs(self) -> None:
        plan = solve([], [DeviceKind(PROFILE)])
        assert (plan.seconds, plan.unplaced, plan.jobs.shape) == (0.0, (), (0, 1))


class TestWhatIsThereAlready:
    def test_work_in_flight_is_done_too(self) -> None:
        backlog = LengthClass.of(1, 101, 20).work
        had = DeviceKind(STEPS, max_batched_tokens=ROOMY, backlog=type(backlog)(*(20 * part for part in backlog)))
        assert solve([LengthClass.of(1, 101, 20)], [had]).seconds == pytest.approx(
            solve([LengthClass.of(1, 101, 40)], [replace(had, backlog=NO_WORK)]).seconds
        )

    def test_the_device_that_is_behind_gets_less(self) -> None:
        free = DeviceKind(STEPS, max_batched_tokens=ROOMY)
        behind = replace(free, backlog=type(NO_WORK)(*(10 * part for part in work_of(1, 101))))
        plan = solve([LengthClass.of(1, 101, 30)], [free, behind])
        assert plan.jobs[0].tolist() == [pytest.approx(20), pytest.approx(10)]

    def test_steps_that_are_made_anyway_are_paid_for(self) -> None:
        kind = DeviceKind(STEPS, max_batched_tokens=ROOMY)
        mix = [LengthClass.of(1, 101, 10)]
        assert solve(mix, [kind], least_steps=np.array([50.0])).seconds == pytest.approx(100 + 500)
        assert solve(mix, [kind], least_steps=np.array([300.0])).seconds == pytest.approx(300 + 500)

"""The simulator, and the figures made of its runs."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from simulated_fleet import devices, requests

from broker.policies import POLICIES, make_policy
from broker.throughput import DeviceKind, Profile, work_of
from planner.simulate import Delays, KnownLengths, Outcome, Requests, SimulatedDevice, Simulation, SpeedChange
from planner.simulation_bound import Bound, works_of
from planner.simulation_report import report_of
from planner.what_if_report import difference

PROFILE = Profile(0.01, 1e-4, 1e-8, 0.02, 1e-3, 1e-6, kv_tokens=10_000, seats=8)


def lone(**changes: object) -> SimulatedDevice:
    return SimulatedDevice("lone-1", DeviceKind(replace(PROFILE, **changes)))


def one(prompt: int, output: int, at: float = 0.0) -> Requests:
    return Requests(np.array([at]), np.array([prompt]), np.array([output]))


def simulate(what: Requests, where: list[SimulatedDevice], policy: str = "throughput", **options: object) -> Outcome:
    return Simulation(what, where, make_policy(policy), Random(1), **options).run()  # type: ignore[arg-type]


def test_a_lone_job_takes_as_long_as_its_profile_says() -> None:
    came = 7.0
    outcome = simulate(one(1000, 5, at=came), [lone()])
    begin = came + Delays().hop_s
    prefill = 0.01 + 1000 * 1e-4 + 1000**2 * 1e-8
    decode = sum(0.02 + 1e-3 + 1e-6 * (1000 + i) for i in range(4))
    assert outcome.dispatched[0] == came
    assert outcome.first_token[0] == pytest.approx(begin + prefill)
    assert outcome.finished[0] == pytest.approx(begin + prefill + decode)
    assert outcome.makespan == outcome.finished[0]


def test_a_slower_device_takes_longer_from_then_on() -> None:
    what, begin = one(1000, 5, at=7.0), 7.0 + Delays().hop_s
    usual = simulate(what, [lone()]).finished[0]
    for at in (1.0, 7.05):
        slow = simulate(what, [lone()], changes=[SpeedChange(at, "lone-1", 3.0)]).finished[0]
        since = max(at, begin)
        assert slow == pytest.approx(since + 3 * (usual - since))


@pytest.mark.parametrize("policy", POLICIES)
def test_each_request_ends_once_on_a_device_after_its_first_token(policy: str) -> None:
    what = requests(600)
    outcome = simulate(what, devices(BIG=1, L4=2), policy)
    assert (outcome.device >= 0).all()
    assert np.isfinite(outcome.finished).all()
    assert (outcome.first_token > outcome.dispatched).all()
    assert (outcome.finished >= outcome.first_token).all()
    told = sum(int(samples[-1, 3]) for samples in outcome.samples)
    assert told <= what.prompt_tokens.sum() + outcome.wasted_tokens  # no prompt was computed twice unseen


def test_the_same_arguments_give_the_same_run() -> None:
    what, where = requests(300), devices(BIG=1, L40S=1)
    first, second = simulate(what, where), simulate(what, where)
    for name in ("device", "dispatched", "first_token", "finished"):
        assert np.array_equal(getattr(first, name), getattr(second, name))


def test_a_request_beyond_a_devices_memory_fails_there() -> None:
    what = Requests(np.zeros(2), np.array([50, 15_000]), np.array([5, 5]))
    outcome = simulate(what, [lone()], "round_robin", lengths=KnownLengths(what))
    assert outcome.refused == 1
    assert np.isfinite(outcome.finished).tolist() == [True, False]
    report = report_of("round_robin", what, [lone()], outcome, Bound(what, [lone()]))
    assert (report.done, report.refused, report.devices[0].jobs) == (1, 1, 1)


def test_works_are_those_of_the_model() -> None:
    what = requests(50)
    lengths = zip(what.prompt_tokens.tolist(), what.output_tokens.tolist(), strict=True)
    assert works_of(what) == pytest.approx(np.array([work_of(p, o) for p, o in lengths]))


def test_prices_are_the_plans_and_add_up_to_its_time() -> None:
    what, where = requests(400), devices(BIG=1, L4=2, L40S=1)
    bound = Bound(what, where)
    kinds = list(dict.fromkeys(device.kind for device in where))
    for i in range(0, 400, 7):
        prompt, output = int(what.prompt_tokens[i]), int(what.output_tokens[i])
        assert bound.prices[i] == pytest.approx(
            bound.plan.seconds_of(kinds, work_of(prompt, output), prompt + output - 1)
        )
    assert bound.prices.sum() == pytest.approx(bound.plan.seconds, rel=0.01)


def test_the_longest_job_alone_bounds_a_short_run() -> None:
    what, where = one(1000, 500), devices(BIG=1, L4=1)
    reached = Bound(what, where).reached(simulate(what, where))
    assert reached.lower_bound_s == pytest.approx(where[0].kind.profile.alone_seconds(1000, 500))
    assert reached.makespan_over_lower_bound is not None
    assert 1 <= reached.makespan_over_lower_bound < 1.05
    assert reached.steady_share is None
    assert "window" in reached.note


def test_a_long_run_reaches_most_of_the_bound_and_never_more() -> None:
    what, where = requests(4000), devices(BIG=1, L40S=1)
    outcome = simulate(what, where, lengths=KnownLengths(what), window_jobs=500)
    reached = Bound(what, where).reached(outcome)
    assert reached.steady_share is not None
    assert 0.8 < reached.steady_share <= 1.01
    assert reached.makespan_over_lower_bound is not None
    assert reached.makespan_over_lower_bound >= 1


def test_figures_add_up() -> None:
    what, where = requests(500), devices(BIG=1, L4=1)
    outcome = simulate(what, where)
    report = report_of("throughput", what, where, outcome, Bound(what, where))
    assert sum(use.jobs for use in report.devices) == report.done == report.jobs == 500
    assert report.jobs_per_s * report.makespan_s == pytest.approx(500)
    assert report.tokens_per_s == pytest.approx(sum(use.tokens_per_s for use in report.devices))
    assert all(0 < use.busy_share <= 1 for use in report.devices)
    assert report.arrival_to_result is not None
    assert report.arrival_to_result.max == pytest.approx(report.makespan_s)


def test_load_is_told_where_jobs_come_over_time() -> None:
    backlog, where = requests(200), devices(BIG=1)
    rate = 0.5 * Bound(backlog, where).reached(simulate(backlog, where)).bound_jobs_per_s
    what = replace(backlog, arrivals=np.arange(200) / rate)
    reached = Bound(what, where).reached(simulate(what, where))
    assert reached.load == pytest.approx(0.5, rel=0.02)
    assert reached.makespan_over_lower_bound is None


def test_more_devices_do_more_and_their_part_is_told() -> None:
    what = requests(800)
    before, after = (
        report_of("throughput", what, where, simulate(what, where), Bound(what, where))
        for where in (devices(BIG=1), devices(BIG=1, L40S=2))
    )
    found = difference("+2xL40S", before, after)
    assert found.jobs_per_s > 0 > found.makespan_s
    assert found.bound_jobs_per_s > 0
    assert [use.name for use in found.added] == ["L40S-1", "L40S-2"]
    assert all(use.jobs for use in found.added)
    assert found.gain_jobs_per_s_each == pytest.approx(found.jobs_per_s / 2)

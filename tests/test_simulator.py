"""The live policies in simulated time: nothing is lost, drift is followed, late binding holds, runs repeat exactly."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from placing import PROFILE, slower
from test_throughput_policy import READER, WRITER

from broker.fluid import solve
from broker.length_class import LengthClass
from broker.policies import POLICIES, make_policy
from broker.policies.base import Placement, Policy, Round
from broker.throughput import DeviceKind, Profile
from planner.simulate import KnownLengths, Outcome, Requests, SimulatedDevice, Simulation, SpeedChange

ROOMY = replace(PROFILE, kv_tokens=60_000, seats=32)
EVERY = sorted(POLICIES)


class Patient(Simulation):
    """Fails where it would go on for ever."""

    def _look(self, _: None, now: float) -> None:
        assert now < 6000, "jobs are left, and nothing goes on"
        super()._look(_, now)


def named(*profiles: Profile, told: bool = True) -> list[SimulatedDevice]:
    return [SimulatedDevice(f"d{i}", DeviceKind(profile), told) for i, profile in enumerate(profiles)]


def backlog(lengths: Sequence[tuple[int, int]], arrivals: Sequence[float] | None = None) -> Requests:
    prompts, outputs = zip(*lengths, strict=True)
    return Requests(np.array(arrivals or [0.0] * len(lengths)), np.array(prompts), np.array(outputs))


def mixed(count: int, seed: int = 0, *, rate: float = 0.0) -> Requests:
    """Prompts up to 2,000 and outputs up to 300 tokens; all at once, or so many a second."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, count)) if rate else np.zeros(count)
    return Requests(arrivals, rng.integers(20, 2000, count), rng.integers(5, 300, count))


def run(
    what: Requests,
    where: Sequence[SimulatedDevice],
    policy: str | Policy = "throughput",
    seed: int = 1,
    **options: object,
) -> Outcome:
    chosen = make_policy(policy) if isinstance(policy, str) else policy
    return Patient(what, where, chosen, Random(seed), **options).run()  # type: ignore[arg-type]


@dataclass
class Watched:
    """The default policy, and what it is told of each device."""

    name: ClassVar[str] = "throughput"

    policy: Policy = field(default_factory=lambda: make_policy("throughput"))
    slowdowns: list[tuple[float, dict[str, float]]] = field(default_factory=list[tuple[float, dict[str, float]]])
    placed: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])

    def place(self, turn: Round) -> list[Placement]:
        self.slowdowns.append((turn.now, {o.device: o.kind.slowdown for o in turn.offers if o.kind}))
        placed = self.policy.place(turn)
        self.placed += [(turn.now, p.device) for p in placed]
        return placed

    def slowdown(self, device: str, at: float) -> float:
        """What it was taken to be at that time."""
        return [seen[device] for now, seen in self.slowdowns if now <= at][-1]

    def share(self, device: str, start: float, end: float) -> float:
        """Of the jobs placed in that time."""
        during = [name for now, name in self.placed if start <= now < end]
        return during.count(device) / len(during)


class TestNothingIsLost:
    @pytest.mark.parametrize("policy", EVERY)
    @settings(max_examples=12, deadline=None, phases=[Phase.generate])  # to shrink a standstill would take minutes
    @given(
        lengths=st.lists(st.tuples(st.integers(1, 1200), st.integers(1, 700)), min_size=1, max_size=60),
        shapes=st.lists(
            st.tuples(st.integers(1, 12), st.integers(2000, 9000), st.sampled_from([0.5, 1.0, 8.0]), st.booleans()),
            min_size=1,
            max_size=4,
        ),
        rate=st.sampled_from([0.0, 0.5, 5.0, 50.0]),
        window=st.sampled_from([1, 7, 4096]),
        known=st.booleans(),
    )
    def test_each_request_runs_to_its_end(
        self,
        policy: str,
        lengths: list[tuple[int, int]],
        shapes: list[tuple[int, int, float, bool]],
        rate: float,
        window: int,
        known: bool,
    ) -> None:
        where = [
            SimulatedDevice(f"d{i}", DeviceKind(slower(replace(PROFILE, seats=seats, kv_tokens=kv), slow)), told)
            for i, (seats, kv, slow, told) in enumerate(shapes)
        ]
        what = backlog(lengths, [i / rate if rate else 0.0 for i in range(len(lengths))])
        outcome = run(what, where, policy, window_jobs=window, lengths=KnownLengths(what) if known else None)
        assert outcome.refused == 0
        assert (outcome.device >= 0).all()
        assert (outcome.dispatched >= what.arrivals).all()
        assert (outcome.first_token > outcome.dispatched).all()
        assert (outcome.finished >= outcome.first_token).all()
        for i, (prompt, output) in enumerate(lengths):
            profile = where[outcome.device[i]].kind.profile
            assert outcome.finished[i] - outcome.first_token[i] >= (output - 1) * profile.decode_d * (1 - 1e-9)
            assert outcome.first_token[i] - outcome.dispatched[i] >= prompt * profile.prefill_b * (1 - 1e-9)
        if policy != "throughput":
            assert (outcome.copies, outcome.wasted_tokens) == (0, 0)

    @pytest.mark.parametrize("policy", EVERY)
    def test_a_stream_beyond_what_the_devices_can_do_is_worked_off(self, policy: str) -> None:
        """What comes while a plan for the end is in force must not wait for ever."""
        what = backlog([(100, 50)] * 1500, [0.0] * 200 + [i * 0.05 for i in range(1300)])
        outcome = run(what, named(PROFILE), policy)
        assert outcome.makespan == pytest.approx(solve_seconds(what, PROFILE), rel=0.1)

    def test_no_schedule_beats_the_bound(self) -> None:
        what = mixed(400)
        where = named(READER, WRITER)
        for policy in EVERY:
            outcome = run(what, where, policy, lengths=KnownLengths(what))
            assert bound(what, where) <= outcome.makespan < 3 * bound(what, where)


def bound(what: Requests, where: Sequence[SimulatedDevice]) -> float:
    lengths = zip(what.prompt_tokens.tolist(), what.output_tokens.tolist(), strict=True)
    return solve([LengthClass.of(*pair) for pair in lengths], [one.kind for one in where]).seconds


def solve_seconds(what: Requests, profile: Profile) -> float:
    return bound(what, named(profile))


class TestByHand:
    def test_two_jobs_on_one_seat_follow_each_other(self) -> None:
        one = replace(PROFILE, seats=1)
        outcome = run(backlog([(100, 50), (100, 50)]), named(one), "round_robin")
        alone = one.alone_seconds(100, 50)
        assert outcome.finished[0] == pytest.approx(alone, abs=0.01)
        assert outcome.finished[1] == pytest.approx(2 * alone, abs=0.02)

    @pytest.mark.parametrize("policy", [name for name in EVERY if name != "throughput"])
    def test_equal_jobs_end_in_the_order_in_which_they_came(self, policy: str) -> None:
        what = backlog([(100, 50)] * 100, [i * 0.03 for i in range(100)])
        outcome = run(what, named(PROFILE), policy)
        assert (np.diff(outcome.dispatched) >= 0).all()
        assert (np.diff(outcome.finished) >= -1e-9).all()

    def test_each_device_works_at_its_own_speed(self) -> None:
        what = backlog([(50, 100)] * 2000)
        outcome = run(what, named(ROOMY, slower(ROOMY, 3)), lengths=KnownLengths(what))
        shares = np.bincount(outcome.device, minlength=2) / 2000
        assert shares.tolist() == pytest.approx([0.75, 0.25], abs=0.05)


class TestLateBinding:
    @pytest.mark.parametrize("policy", EVERY)
    def test_no_device_queue_is_deeper_than_hides_the_round_trip(self, policy: str) -> None:
        """These end far fewer than 25 jobs a second: that is one job beyond the seats."""
        what = mixed(300)
        where = named(PROFILE, slower(PROFILE, 4), slower(PROFILE, 0.7))
        outcome = run(what, where, policy, lengths=KnownLengths(what))
        for index, one in enumerate(where):
            mine = outcome.device == index
            starts, ends = outcome.dispatched[mine], outcome.finished[mine]
            depth = max(int((starts <= t).sum() - (ends < t).sum()) for t in starts)
            # A copy that won counts here from its first dispatch on, which was elsewhere.
            assert depth <= one.kind.profile.seats + 2 + outcome.copies


class TestTheSameAgain:
    def test_another_chance_is_another_run(self) -> None:
        what, where = mixed(200), named(ROOMY, ROOMY, slower(ROOMY, 3))
        first, again, other = (run(what, where, "power_of_two", seed=seed) for seed in (1, 1, 2))
        assert (first.finished == again.finished).all()
        assert (first.finished != other.finished).any()

    def test_in_another_process_too(self) -> None:
        """The order of a set of names is another in each process; no decision may hang on it."""
        script = (
            "import test_simulator as t\n"
            "what = t.mixed(300)\n"
            "where = t.named(t.ROOMY, t.slower(t.ROOMY, 3), t.ROOMY, t.READER, t.WRITER)\n"
            "for policy in t.EVERY: print(repr(t.run(what, where, policy).finished.tolist()))\n"
        )
        printed = [
            subprocess.run(
                [sys.executable, "-c", script],
                env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
                cwd=Path(__file__).parent,
                capture_output=True,
                check=True,
            ).stdout
            for seed in ("1", "2")
        ]
        assert len(printed[0].splitlines()) == len(EVERY)
        assert printed[0] == printed[1]


class TestDrift:
    def test_a_device_that_slows_down_loses_its_share_within_ten_seconds_and_gets_it_back(self) -> None:
        watched = Watched()
        what = backlog([(100, 120)] * 6000)
        changes = [SpeedChange(30.0, "d0", 3.0), SpeedChange(60.0, "d0", 1.0)]
        run(what, named(ROOMY, ROOMY), watched, changes=changes, lengths=KnownLengths(what), window_jobs=500)
        assert watched.slowdown("d0", 29.0) == 1.0
        assert 2 <= watched.slowdown("d0", 40.0) <= 4.5
        assert watched.slowdown("d0", 70.0) <= 1.5
        assert watched.slowdown("d1", 90.0) == 1.0
        assert watched.share("d0", 10, 30) == pytest.approx(0.5, abs=0.06)
        assert watched.share("d0", 40, 60) == pytest.approx(0.25, abs=0.06)
        assert watched.share("d0", 70, 90) == pytest.approx(0.5, abs=0.06)

    def test_devices_that_do_as_their_profile_says_are_never_taken_for_slower(self) -> None:
        watched = Watched()
        what = mixed(1500, rate=25)
        run(what, named(ROOMY, slower(ROOMY, 3), PROFILE), watched)
        assert {factor for _, seen in watched.slowdowns for factor in seen.values()} == {1.0}


class TestWhatIsNotKnown:
    def test_devices_that_announce_no_profile_find_their_share(self) -> None:
        what = backlog([(100, 120)] * 2000)
        profiles = ROOMY, slower(ROOMY, 4)
        told, untold = (run(what, named(*profiles, told=told), window_jobs=300) for told in (True, False))
        assert np.bincount(untold.device, minlength=2)[0] / 2000 == pytest.approx(0.8, abs=0.05)
        assert untold.makespan <= told.makespan * 1.05

    @pytest.mark.parametrize("factor", [0.5, 2.0])
    def test_predictions_that_are_off_by_two_cost_little(self, factor: float) -> None:
        what = mixed(1500)
        where = named(ROOMY, slower(ROOMY, 2), WRITER)
        right = run(what, where, lengths=KnownLengths(what)).makespan
        assert run(what, where, lengths=KnownLengths(what, factor)).makespan <= right * 1.1

    def test_learned_lengths_do_nearly_as_well_as_known_ones(self) -> None:
        what = mixed(1500)
        where = named(ROOMY, slower(ROOMY, 2), WRITER)
        assert run(what, where).makespan <= run(what, where, lengths=KnownLengths(what)).makespan * 1.15


class TestTheEnd:
    def test_light_load_makes_no_copies(self) -> None:
        """Lone jobs on equal devices: nothing ends sooner elsewhere, whatever the heartbeats of idle devices say."""
        outcome = run(mixed(150, rate=0.7), named(PROFILE, PROFILE))
        assert (outcome.copies, outcome.wasted_tokens) == (0, 0)

    def test_a_straggler_on_a_device_that_stalls_is_run_again(self) -> None:
        what = backlog([(100, 1500)] * 2)
        stalled = [SpeedChange(5.0, "d0", 200.0)]
        outcome = run(what, named(PROFILE, PROFILE), changes=stalled, lengths=KnownLengths(what))
        assert outcome.copies >= 1
        assert outcome.makespan < 60

    def test_a_device_that_would_outlast_the_rest_is_left_out(self) -> None:
        what = backlog([(100, 500)] * 30)
        both = run(what, named(PROFILE, slower(PROFILE, 100)), lengths=KnownLengths(what))
        alone = run(what, named(PROFILE), lengths=KnownLengths(what))
        assert both.makespan <= alone.makespan * 1.02

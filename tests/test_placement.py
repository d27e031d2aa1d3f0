"""The scheduler's mind: the window's order, decisions and their undoing, late binding, learned lengths."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from cluster_fixtures import heartbeat
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from broker.admission import offer_of
from broker.cluster import Device, InFlight
from broker.jobs import Priority, WaitingJob
from broker.lengths import LengthModel
from broker.placement import MAX_PLACEMENTS, Placer, Window
from broker.policies import POLICIES, make_policy
from broker.policies.base import Placement


def job(i: int, level: str = "normal", priority: str = "", batch: str = "b", body_bytes: int = 40) -> WaitingJob:
    priority = priority or (level if level != "returned" else "normal")
    return WaitingJob(f"{batch}.{i}", level, f"{1000 + i // 3}-{i % 3}", batch, priority, body_bytes, 0)


def placer_of(*devices: Device, policy: str = "capacity") -> Placer:
    placer = Placer(make_policy(policy), random.Random(0), round_trip_s=0.02)
    placer.cluster.devices = {device.name: device for device in devices}
    return placer


def ids(jobs: Sequence[WaitingJob] | Window) -> list[str]:
    return [j.job_id for j in jobs]


def placements(groups: dict[str, list[Placement]]) -> list[Placement]:
    return [placement for group in groups.values() for placement in group]


class TestWindow:
    def test_higher_levels_first_and_in_each_what_came_back_before_what_is_fresh(self) -> None:
        window = Window()
        waiting = [
            job(0, "low"),
            job(1, "normal"),
            job(2, "high"),
            job(3, "returned", "low"),
            job(4, "returned", "high"),
            job(5, "returned", "normal"),
            job(6, "high"),
        ]
        for one in waiting:
            window.add(one)
        assert ids(window) == ["b.4", "b.2", "b.6", "b.5", "b.1", "b.3", "b.0"]

    def test_each_request_stream_has_its_own_count(self) -> None:
        window = Window()
        for i, level in enumerate(["high", "normal", "normal", "low", "returned"]):
            window.add(job(i, level, "high" if level == "returned" else ""))
        assert [window.count(level) for level in ("returned", "high", "normal", "low")] == [1, 1, 2, 1]
        assert len(window) == 5

    def test_a_job_taken_out_is_gone_and_taking_it_out_again_does_nothing(self) -> None:
        window = Window()
        for i in range(3):
            window.add(job(i))
        window.remove(job(1))
        window.remove(job(1))
        assert ids(window) == ["b.0", "b.2"]

    def test_it_finds_the_jobs_of_one_batch(self) -> None:
        window = Window()
        for one in (job(0, batch="x"), job(1, batch="y"), job(2, "low", batch="x")):
            window.add(one)
        assert ids(window.of_batch("x")) == ["x.0", "x.2"]


class TestDecide:
    @pytest.mark.parametrize("policy", sorted(POLICIES))
    @given(
        levels=st.lists(st.sampled_from(["high", "normal", "low", "returned"]), max_size=40),
        seats=st.lists(st.integers(1, 6), min_size=1, max_size=4),
        data=st.data(),
    )
    def test_undoing_all_decisions_leaves_everything_as_it_was(
        self, policy: str, levels: list[str], seats: list[int], data: st.DataObject
    ) -> None:
        placer = placer_of(*(Device(f"d{i}", heartbeat(seats=n)) for i, n in enumerate(seats)), policy=policy)
        for i, level in enumerate(levels):
            placer.window.add(job(i, level, data.draw(st.sampled_from(list(Priority))) if level == "returned" else ""))
        before = list(placer.window)
        groups = placer.decide(0.0)
        assert len(placer.window) == len(before) - len(placements(groups))
        placer.take_back(placements(groups))
        assert list(placer.window) == before
        assert [(len(d.in_flight), d.tokens_in_flight) for d in placer.cluster.devices.values()] == [(0, 0)] * len(
            seats
        )

    def test_what_is_taken_back_from_one_device_goes_to_another(self) -> None:
        placer = placer_of(Device("a", heartbeat(seats=2)), Device("b", heartbeat(seats=2)))
        for i in range(4):
            placer.window.add(job(i))
        groups = placer.decide(0.0)
        assert set(groups) == {"a", "b"}
        placer.close("a")
        placer.take_back(groups["a"])
        again = placer.decide(0.0)
        assert set(again) == {"b"}
        assert sorted(p.job.job_id for p in groups["b"] + again["b"] + waiting_placements(placer)) == ids(
            [job(i) for i in range(4)]
        )

    def test_a_decided_job_counts_at_once_so_that_the_next_round_does_not_overfill(self) -> None:
        placer = placer_of(Device("a", heartbeat(seats=2)))
        for i in range(9):
            placer.window.add(job(i))
        assert len(placements(placer.decide(0.0))) == 3
        assert placer.decide(0.0) == {}

    @pytest.mark.parametrize("state", ["starting", "draining", "paused"])
    def test_only_ready_devices_get_jobs(self, state: str) -> None:
        placer = placer_of(Device("a", heartbeat(state=state)), Device("b", heartbeat(seats=0)))
        placer.window.add(job(0))
        assert placer.decide(0.0) == {}

    def test_one_decision_moves_a_bounded_number_of_jobs(self) -> None:
        placer = placer_of(Device("a", heartbeat(seats=10**6)))
        for i in range(MAX_PLACEMENTS + 1):
            placer.window.add(job(i, body_bytes=1))
        assert len(placements(placer.decide(0.0))) == MAX_PLACEMENTS

    def test_a_closed_device_takes_jobs_again_once_its_heartbeat_says_so(self) -> None:
        placer = placer_of(Device("a", heartbeat()))
        placer.close("a")
        placer.window.add(job(0))
        assert placer.decide(0.0) == {}
        placer.cluster.refresh("a", heartbeat(seen=1.0))
        assert set(placer.decide(0.0)) == {"a"}

    def test_news_of_devices_that_left_change_nothing(self) -> None:
        placer = placer_of()
        placer.close("gone")
        placer.forget("gone", ["b.0"])
        placer.completed("gone", {"b.0": (1, 1)}, 0.0)
        assert placer.cluster.devices == {}


def waiting_placements(placer: Placer) -> list[Placement]:
    return [Placement(j, 0, 0, "") for j in placer.window]


class TestLateBinding:
    @given(seats=st.integers(1, 300), in_flight=st.integers(0, 700), jobs_per_s=st.floats(0, 1e5))
    def test_a_device_is_offered_its_seats_and_what_hides_the_round_trip(
        self, seats: int, in_flight: int, jobs_per_s: float
    ) -> None:
        device = Device("a", heartbeat(seats=seats, kv_tokens_total=10**9), jobs_per_s=jobs_per_s)
        for i in range(in_flight):
            device.bind(InFlight(f"b.{i}", 1, 1))
        offer = offer_of(device, round_trip_s=0.02)
        assert offer.slots_left == seats + device.depth(0.02) - in_flight
        assert 1 <= device.depth(0.02) <= seats

    def test_a_slow_device_holds_one_job_more_than_it_has_seats(self) -> None:
        assert offer_of(Device("a", heartbeat(seats=8), jobs_per_s=0.5), 0.02).slots_left == 9

    def test_the_faster_jobs_end_the_deeper_its_queue(self) -> None:
        depths = [Device("a", heartbeat(seats=256), jobs_per_s=rate).depth(0.02) for rate in (0, 100, 1000, 10**6)]
        assert depths == [1, 5, 41, 256]

    def test_memory_bounds_it_in_the_same_proportion(self) -> None:
        device = Device("a", heartbeat(seats=4, kv_tokens_total=1000))
        device.bind(InFlight("b.0", 300, 400))
        assert offer_of(device, 0.02).kv_left == 1250 - 700

    def test_an_engine_that_holds_requests_back_gets_no_more(self) -> None:
        assert offer_of(Device("a", heartbeat(seats=8, waiting=2)), 0.02).slots_left == 9
        assert offer_of(Device("a", heartbeat(seats=8, waiting=3)), 0.02).slots_left == 0


class TestLengths:
    def test_output_is_never_predicted_above_max_tokens(self) -> None:
        assert LengthModel().predict(replace_max_tokens(job(0, body_bytes=400), 7)) == (100, 7)

    @given(
        body_bytes=st.integers(1, 10**7),
        prompt=st.integers(1, 10**7),
        output=st.integers(0, 10**6),
        n=st.integers(1, 50),
    )
    def test_it_approaches_what_it_sees(self, body_bytes: int, prompt: int, output: int, n: int) -> None:
        model = LengthModel()
        seen = min(prompt / body_bytes, 2.0)
        for _ in range(n):
            before = (abs(model.tokens_per_byte - seen), abs(model.output_tokens - output))
            model.observe(body_bytes, prompt, output)
            assert abs(model.tokens_per_byte - seen) <= before[0] + 1e-9
            assert abs(model.output_tokens - output) <= before[1] + 1e-6
        assert model.observed == n

    @pytest.mark.parametrize(("body_bytes", "prompt"), [(0, 5), (5, 0), (5, -1)])
    def test_a_job_that_says_nothing_teaches_nothing(self, body_bytes: int, prompt: int) -> None:
        model = LengthModel()
        model.observe(body_bytes, prompt, 3)
        assert model == LengthModel()

    def test_the_placer_learns_from_jobs_that_end(self) -> None:
        placer = placer_of(Device("a", heartbeat()))
        placer.window.add(job(0, body_bytes=100))
        placer.decide(0.0)
        placer.completed("a", {"b.0": (50, 8), "unknown": (1, 10**6)}, 1.0)
        assert placer.lengths.observed == 1
        assert placer.lengths.output_tokens < 200
        assert placer.cluster.devices["a"].in_flight == {}


def replace_max_tokens(one: WaitingJob, max_tokens: int) -> WaitingJob:
    return WaitingJob(one.job_id, one.level, one.entry_id, one.batch_id, one.priority, one.body_bytes, max_tokens)


class Books(RuleBasedStateMachine):
    """Whatever happens in whatever order: no job twice, no device over its room, no token miscounted."""

    def __init__(self) -> None:
        super().__init__()
        self.placer = placer_of(*(Device(f"d{i}", heartbeat(seats=i + 1, kv_tokens_total=2000)) for i in range(3)))
        self.made = 0
        self.ended = 0

    @rule(count=st.integers(1, 10), body_bytes=st.integers(1, 4000), level=st.sampled_from(["high", "low", "returned"]))
    def arrive(self, count: int, body_bytes: int, level: str) -> None:
        for _ in range(count):
            self.placer.window.add(job(self.made, level, body_bytes=body_bytes))
            self.made += 1

    @rule(undo=st.booleans())
    def decide(self, undo: bool) -> None:
        groups = self.placer.decide(0.0)
        for device, placed in groups.items():
            known = self.placer.cluster.devices[device]
            assert len(known.in_flight) <= known.heartbeat.seats + known.depth(0.02)
            assert all(p.device == device for p in placed)
        if undo:
            self.placer.take_back(placements(groups))

    @rule(data=st.data(), prompt=st.integers(0, 100))
    def end(self, data: st.DataObject, prompt: int) -> None:
        device = self.placer.cluster.devices[data.draw(st.sampled_from(["d0", "d1", "d2"]))]
        if device.in_flight:
            job_id = data.draw(st.sampled_from(sorted(device.in_flight)))
            self.placer.completed(device.name, {job_id: (prompt, 5)}, float(self.ended))
            self.ended += 1

    @rule(name=st.sampled_from(["d0", "d1", "d2"]), state=st.sampled_from(["ready", "draining"]))
    def beat(self, name: str, state: str) -> None:
        current = self.placer.cluster.devices[name].heartbeat
        self.placer.cluster.refresh(name, current.model_copy(update={"state": state, "seen": current.seen + 1}))

    @invariant()
    def every_job_is_in_one_place(self) -> None:
        places = ids(self.placer.window)
        for device in self.placer.cluster.devices.values():
            places += list(device.in_flight)
        assert len(places) == len(set(places)) == self.made - self.ended

    @invariant()
    def tokens_in_flight_are_the_sum(self) -> None:
        for device in self.placer.cluster.devices.values():
            assert device.tokens_in_flight == sum(one.tokens for one in device.in_flight.values())


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)

"""The scheduler's mind: the window's order, decisions and their undoing, late binding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
from cluster_fixtures import heartbeat
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from placing import PROFILE, FixedLengths, beat, busy, candidate, device, job, placements, placer_of, slower, window_of

from broker import placement
from broker.admission import jobs_a_look, offer_of, renew_offer
from broker.cluster import Device, InFlight
from broker.jobs import Priority
from broker.placement import MAX_PLACEMENTS, Placer
from broker.policies import POLICIES
from broker.policies.base import Candidate, Offer
from broker.window import Window, class_of

LEVELS = ["high", "normal", "low", "returned"]


def ids(jobs: Iterable[Candidate]) -> list[str]:
    return [c.job.job_id for c in jobs]


def by_number(candidate: Candidate) -> int:
    return int(candidate.job.job_id[2:])


class TestWindow:
    def test_higher_levels_first_and_in_each_what_came_back_before_what_is_fresh(self) -> None:
        window = window_of(
            [
                candidate(0, level="low"),
                candidate(1, level="normal"),
                candidate(2, level="high"),
                candidate(3, level="returned", priority="low"),
                candidate(4, level="returned", priority="high"),
                candidate(5, level="returned", priority="normal"),
                candidate(6, level="high"),
            ]
        )
        assert ids(window) == ["b.4", "b.2", "b.6", "b.5", "b.1", "b.3", "b.0"]

    def test_each_request_stream_has_its_own_count(self) -> None:
        window = window_of(
            candidate(i, level=level, priority="high" if level == "returned" else "")
            for i, level in enumerate(["high", "normal", "normal", "low", "returned"])
        )
        assert [window.count(level) for level in ("returned", "high", "normal", "low")] == [1, 1, 2, 1]
        assert len(window) == 5

    def test_a_job_taken_out_is_gone_and_taking_it_out_again_does_nothing(self) -> None:
        window = window_of(candidate(i) for i in range(3))
        window.remove(job(1))
        window.remove(job(1))
        assert ids(window) == ["b.0", "b.2"]

    def test_it_finds_the_jobs_of_one_batch(self) -> None:
        window = window_of(
            Candidate(one, 1, 1) for one in (job(0, batch="x"), job(1, batch="y"), job(2, "low", batch="x"))
        )
        assert [one.job_id for one in window.of_batch("x")] == ["x.0", "x.2"]

    def test_jobs_predicted_anew_keep_their_order(self) -> None:
        window = window_of(
            candidate(i, 10 * (i + 1), 5, level, "normal") for i, level in enumerate(["normal", "returned"] * 5)
        )
        before = ids(window)
        window.predict_anew(lambda one: Candidate(one, 7, 900))
        assert ids(window) == before
        assert {c.output_tokens for c in window} == {900}
        assert list(window.lines["normal"].by_class) == [class_of(candidate(0, 7, 900))]

    @given(
        steps=st.lists(
            st.tuples(
                st.sampled_from(["add", "remove", "put_back", "anew"]),
                st.integers(0, 15),
                st.integers(1, 5000),
                st.integers(1, 5000),
                st.sampled_from(LEVELS),
                st.sampled_from(list(Priority)),
            ),
            max_size=60,
        )
    )
    def test_by_class_each_job_is_there_once_and_nothing_else(
        self, steps: list[tuple[str, int, int, int, str, Priority]]
    ) -> None:
        """Also where a job comes a second time with another size: anyone can write to a stream."""
        window = Window()
        for action, i, prompt, output, level, priority in steps:
            one = candidate(i, prompt, output, level, priority.value if level == "returned" else "")
            if action == "add":
                window.add(one)
            elif action == "put_back":
                window.put_back([one])
            elif action == "remove":
                window.remove(one.job)
            else:
                window.predict_anew(lambda job, prompt=prompt, output=output: Candidate(job, prompt, output))
            for line in window.lines.values():
                filed = [(key, c) for key, jobs in line.by_class.items() for c in jobs.values()]
                assert all(class_of(c) == key for key, c in filed)
                assert Counter(ids(c for _, c in filed)) == Counter(ids(line))
                assert all(line.by_class.values())


class TestDecide:
    @pytest.mark.parametrize("policy", sorted(POLICIES))
    @settings(max_examples=50, deadline=None)
    @given(
        levels=st.lists(st.sampled_from(LEVELS), max_size=40),
        seats=st.lists(st.integers(1, 6), min_size=1, max_size=4),
        data=st.data(),
    )
    def test_undoing_all_decisions_leaves_everything_as_it_was(
        self, policy: str, levels: list[str], seats: list[int], data: st.DataObject
    ) -> None:
        devices = [device(f"d{i}", PROFILE, seats=n, seen=1.0) for i, n in enumerate(seats)]
        placer = placer_of(*devices, policy=policy)
        for i, level in enumerate(levels):
            placer.add(job(i, level, data.draw(st.sampled_from(list(Priority))) if level == "returned" else ""))
        before = list(placer.window)
        free = [one.calendar.free(1000.0).tolist() for one in devices]
        groups = placer.decide(0.0)
        assert len(placer.window) == len(before) - len(placements(groups))
        placer.take_back(placements(groups))
        if policy == "throughput":  # it takes them by length class: what comes back is in front of what stayed
            before.sort(key=by_number)
            assert sorted(placer.window, key=by_number) == before
        else:
            assert list(placer.window) == before
        assert [(len(d.in_flight), d.tokens_in_flight) for d in devices] == [(0, 0)] * len(seats)
        assert [one.calendar.free(1000.0).tolist() for one in devices] == free

    def test_what_is_taken_back_from_one_device_goes_to_another(self) -> None:
        placer = placer_of(device("a", seats=2), device("b", seats=2))
        for i in range(4):
            placer.add(job(i))
        groups = placer.decide(0.0)
        assert set(groups) == {"a", "b"}
        placer.close("a")
        placer.take_back(groups["a"])
        again = placer.decide(0.0)
        assert set(again) == {"b"}
        there = [p.job.job_id for p in groups["b"] + again["b"]] + ids(placer.window)
        assert sorted(there) == [f"b.{i}" for i in range(4)]

    @pytest.mark.parametrize("policy", sorted(POLICIES))
    def test_a_decided_job_counts_at_once_so_that_the_next_round_does_not_overfill(self, policy: str) -> None:
        placer = placer_of(device("a", seats=2), policy=policy)
        for i in range(9):
            placer.add(job(i))
        assert len(placements(placer.decide(0.0))) == 3
        assert placer.decide(0.0) == {}

    @pytest.mark.parametrize("policy", sorted(POLICIES))
    @pytest.mark.parametrize("state", ["starting", "draining", "paused"])
    def test_only_ready_devices_get_jobs(self, policy: str, state: str) -> None:
        placer = placer_of(device("a", state=state), device("b", seats=0), policy=policy)
        placer.add(job(0))
        assert placer.decide(0.0) == {}

    @pytest.mark.parametrize("policy", sorted(POLICIES))
    def test_one_decision_moves_a_bounded_number_of_jobs(self, policy: str) -> None:
        placer = placer_of(device("a", seats=10**6, kv_tokens_total=10**9, kv_tokens_free=10**9), policy=policy)
        for i in range(MAX_PLACEMENTS + 1):
            placer.add(job(i, body_bytes=1))
        assert len(placements(placer.decide(0.0))) == MAX_PLACEMENTS

    def test_a_closed_device_takes_jobs_again_once_its_heartbeat_says_so(self) -> None:
        placer = placer_of(device("a"))
        placer.close("a")
        placer.add(job(0))
        assert placer.decide(0.0) == {}
        placer.cluster.refresh("a", beat(seen=1.0))
        assert set(placer.decide(0.0)) == {"a"}

    def test_a_device_that_left_gets_nothing(self) -> None:
        placer = placer_of(device("a"), device("b"))
        for i in range(2):
            placer.add(job(i))
        assert len(placements(placer.decide(0.0))) == 2
        placer.cluster.keep_only(["b"])
        for i in range(2, 30):
            placer.add(job(i))
        assert set(placer.decide(0.0)) == {"b"}

    def test_news_of_devices_that_left_change_nothing(self) -> None:
        placer = placer_of()
        placer.close("gone")
        placer.forget("gone", ["b.0"])
        placer.completed("gone", {"b.0": (1, 1)}, 0.0)
        assert placer.cluster.devices == {}

    def test_the_placer_learns_from_jobs_that_end(self) -> None:
        placer = placer_of(device("a"))
        placer.add(job(0, body_bytes=100))
        placer.decide(0.0)
        placer.completed("a", {"b.0": (50, 8), "unknown": (1, 10**6)}, 1.0)
        placer.add(job(1, body_bytes=100))
        (learned,) = placer.window
        assert learned.prompt_tokens > 25
        assert learned.output_tokens < 200
        assert placer.cluster.devices["a"].in_flight == {}

    def test_a_prediction_is_kept_with_the_job(self) -> None:
        placer = placer_of(device("a"), policy="throughput")
        placer.lengths = FixedLengths({}, (100, 50))
        placer.add(job(0, body_bytes=77, max_tokens=99))
        (placed,) = placements(placer.decide(5.0))
        bound = placer.cluster.devices["a"].in_flight["b.0"]
        assert (bound.prompt_tokens, bound.output_tokens, bound.body_bytes, bound.max_tokens) == (100, 50, 77, 99)
        assert (bound.dispatched, bound.predicted_s) == (5.0, placed.predicted_s)
        assert placed.predicted_s == pytest.approx(PROFILE.alone_seconds(100, 50), rel=0.1)


class TestManyDevices:
    """With a thousand devices a round looks only at those that changed."""

    @pytest.fixture
    def looked_at(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        seen: list[str] = []

        def counted(offer: Offer, device: Device, round_trip_s: float, now: float, one_in: int) -> None:
            seen.append(device.name)
            renew_offer(offer, device, round_trip_s, now, one_in)

        monkeypatch.setattr(placement, "renew_offer", counted)
        return seen

    @pytest.mark.parametrize("policy", ["throughput", "least_outstanding"])
    def test_a_round_touches_only_devices_that_changed(self, policy: str, looked_at: list[str]) -> None:
        placer = placer_of(*(device(f"d{i:04}") for i in range(1000)), policy=policy)
        placer.lengths = FixedLengths({})
        placer.whole = False
        for i in range(12_000):
            placer.add(job(i))
        groups: dict[str, int] = {}
        while found := placer.decide(0.0):
            groups |= {name: len(placed) for name, placed in found.items()}
        assert len(groups) == 1000
        assert len(placer.window) == 12_000 - 9 * 1000
        looked_at.clear()
        assert placer.decide(1.0) == {}
        assert looked_at == []
        for name in ("d0003", "d0500"):
            ended = list(placer.cluster.devices[name].in_flight)[:2]
            placer.completed(name, dict.fromkeys(ended, (10, 20)), 2.0)
        assert {name: len(placed) for name, placed in placer.decide(2.0).items()} == {"d0003": 2, "d0500": 2}
        assert sorted(looked_at) == ["d0003", "d0500"]
        placer.cluster.refresh("d0700", beat(seen=3.0), 3.0)
        looked_at.clear()
        placer.decide(3.0)
        assert looked_at == ["d0700"]

    @pytest.mark.parametrize(
        ("devices", "many_wait", "looks"), [(9, True, [3, 2, 2, 2]), (1000, True, [6]), (9, False, [1] * 9)]
    )
    def test_a_large_batch_is_looked_at_when_some_of_it_has_ended(
        self, devices: int, many_wait: bool, looks: list[int]
    ) -> None:
        one_in = jobs_a_look(devices, many_wait=many_wait)
        one = busy(device("a", slower(PROFILE, 1.0, seats=256, kv_tokens=10**6)), [(10, 20)] * 64)
        ended, seen = 0, list[int]()
        renew_offer(offer := offer_of(one, 0.02), one, 0.02, 0.0, one_in)
        one.changed.clear()
        for job_id in list(one.in_flight)[:9]:
            one.unbind(job_id)
            ended += 1
            if one.changed:
                seen.append(ended)
                ended = 0
                renew_offer(offer, one, 0.02, 0.0, one_in)
                one.changed.clear()
        assert seen == looks

    def test_a_heartbeat_that_tells_nothing_new_is_no_reason_to_look_at_a_large_batch(self) -> None:
        one = busy(device("a", slower(PROFILE, 1.0, seats=256, kv_tokens=10**6)), [(10, 20)] * 64)
        renew_offer(offer_of(one, 0.02), one, 0.02, 10.0, 32)
        told = one.heartbeat

        def changed(at: float, **fields: object) -> bool:
            one.changed.clear()
            one.refresh(told.model_copy(update={"seen": at, **fields}), at)
            return bool(one.changed)

        assert [changed(11.0), changed(12.0, state="draining"), changed(13.0), changed(13.5)] == [
            False,
            True,
            True,
            False,
        ]
        assert changed(14.0)  # it was not looked at for long
        renew_offer(offer_of(one, 0.02), one, 0.02, 14.0)
        assert changed(15.0)


class TestLateBinding:
    @given(seats=st.integers(1, 300), in_flight=st.integers(0, 700), jobs_per_s=st.floats(0, 1e5))
    def test_a_device_is_offered_its_seats_and_what_hides_the_round_trip(
        self, seats: int, in_flight: int, jobs_per_s: float
    ) -> None:
        one = Device("a", heartbeat(seats=seats, kv_tokens_total=10**9), jobs_per_s=jobs_per_s)
        for i in range(in_flight):
            one.bind(InFlight(f"b.{i}", 1, 1))
        offer = offer_of(one, round_trip_s=0.02)
        assert offer.slots_left == seats + one.depth(0.02) - in_flight
        assert 1 <= one.depth(0.02) <= seats

    def test_a_slow_device_holds_one_job_more_than_it_has_seats(self) -> None:
        assert offer_of(Device("a", heartbeat(seats=8), jobs_per_s=0.5), 0.02).slots_left == 9

    def test_the_faster_jobs_end_the_deeper_its_queue(self) -> None:
        depths = [Device("a", heartbeat(seats=256), jobs_per_s=rate).depth(0.02) for rate in (0, 100, 1000, 10**6)]
        assert depths == [1, 5, 41, 256]

    def test_memory_bounds_it_by_the_peak_to_come(self) -> None:
        one = Device("a", heartbeat(seats=4, kv_tokens_total=1000))
        one.bind(InFlight("b.0", 300, 400))
        assert offer_of(one, 0.02).kv_left() == pytest.approx(980 - 700, abs=32)

    def test_memory_that_the_engine_holds_beyond_what_we_count_is_not_given_away(self) -> None:
        one = Device("a", heartbeat(seats=4, kv_tokens_total=1000))
        one.refresh(heartbeat(seats=4, kv_tokens_total=1000, kv_tokens_free=400))
        assert offer_of(one, 0.02).kv_left() == pytest.approx(980 - 600, abs=32)

    @pytest.mark.parametrize("full", [{"running": 8, "kv_tokens_free": 900}, {"running": 2, "kv_tokens_free": 299}])
    def test_an_engine_that_holds_requests_back_gets_no_more(self, full: dict[str, int]) -> None:
        def slots(waiting: int) -> int:
            one = Device("a", heartbeat(seats=8, waiting=waiting, kv_tokens_total=1000, **full))
            one.bind(InFlight("b.0", 100, 50))
            return offer_of(one, 0.02).slots_left

        assert (slots(2), slots(3)) == (8, 0)

    def test_an_engine_that_is_at_the_prompts_of_those_that_wait_gets_more(self) -> None:
        one = Device("a", heartbeat(seats=8, running=2, waiting=6, kv_tokens_total=1000, kv_tokens_free=900))
        one.bind(InFlight("b.0", 100, 50))
        assert offer_of(one, 0.02).slots_left == 8


class Books(RuleBasedStateMachine):
    """Whatever happens in whatever order: no job lost or twice, no device over its room, no token miscounted."""

    def __init__(self) -> None:
        super().__init__()
        self.placer: Placer = placer_of()
        self.made = 0
        self.ended = 0
        self.now = 0.0
        self.copied: dict[str, str] = {}

    @initialize(policy=st.sampled_from(sorted(POLICIES)))
    def start(self, policy: str) -> None:
        shapes = [(1, 1.0), (2, 0.3), (3, 5.0)]
        self.placer = placer_of(
            *(device(f"d{i}", slower(PROFILE, slow, seats=n, kv_tokens=2000)) for i, (n, slow) in enumerate(shapes)),
            policy=policy,
        )

    @rule(count=st.integers(1, 10), body_bytes=st.integers(1, 4000), level=st.sampled_from(["high", "low", "returned"]))
    def arrive(self, count: int, body_bytes: int, level: str) -> None:
        for _ in range(count):
            self.placer.add(job(self.made, level, body_bytes=body_bytes))
            self.made += 1

    @rule(undo=st.booleans(), passed=st.floats(0, 2))
    def decide(self, undo: bool, passed: float) -> None:
        self.now += passed
        groups = self.placer.decide(self.now)
        for name, placed in groups.items():
            known = self.placer.cluster.devices[name]
            assert len(known.in_flight) <= known.heartbeat.seats + known.depth(0.02)
            assert all(p.device == name for p in placed)
        if undo:
            self.placer.take_back(placements(groups))

    @rule(data=st.data(), prompt=st.integers(0, 100), output=st.integers(0, 3000))
    def end(self, data: st.DataObject, prompt: int, output: int) -> None:
        one = self.placer.cluster.devices[data.draw(st.sampled_from(["d0", "d1", "d2"]))]
        if one.in_flight:
            job_id = data.draw(st.sampled_from(sorted(one.in_flight)))
            self.placer.completed(one.name, {job_id: (prompt, output)}, self.now)
            self.ended += 1
            self.drop(job_id)

    def drop(self, job_id: str) -> None:
        """The other side of a job that ran twice is dropped."""
        if self.copied.pop(job_id, None):
            for other in self.placer.cluster.devices.values():
                self.placer.forget(other.name, [job_id])

    @rule(name=st.sampled_from(["d0", "d1", "d2"]), state=st.sampled_from(["ready", "draining"]))
    def beat(self, name: str, state: str) -> None:
        known = self.placer.cluster.devices[name]
        running = min(len(known.in_flight), known.heartbeat.seats)
        done = {"steps_total": known.heartbeat.steps_total + 5 * bool(running), "running": running}
        update = {"state": state, "seen": known.heartbeat.seen + 1} | done
        self.placer.cluster.refresh(name, known.heartbeat.model_copy(update=update), self.now)

    @rule(passed=st.floats(0, 2))
    def finish(self, passed: float) -> None:
        self.now += passed
        decided = self.placer.finish_up(self.now)
        for name, jobs in decided.recalls.items():
            self.placer.forget(name, jobs)
            for job_id in jobs:
                self.placer.add(job(int(job_id[2:]), "returned"))
        for copy in decided.copies:
            assert copy.job.job_id not in self.copied
            self.copied[copy.job.job_id] = copy.device

    @invariant()
    def every_job_is_in_one_place(self) -> None:
        places = ids(self.placer.window)
        for one in self.placer.cluster.devices.values():
            places += [job_id for job_id in one.in_flight if self.copied.get(job_id) != one.name]
        assert len(places) == len(set(places)) == self.made - self.ended

    @invariant()
    def tokens_in_flight_are_the_sum(self) -> None:
        for one in self.placer.cluster.devices.values():
            assert one.tokens_in_flight == sum(bound.tokens for bound in one.in_flight.values())

    @invariant()
    def an_empty_device_has_nothing_to_do(self) -> None:
        for one in self.placer.cluster.devices.values():
            if not one.in_flight:
                assert sum(one.backlog.left(one.calendar.step)) == pytest.approx(0, abs=1e-3)
                assert one.calendar.steps_left == 0.0


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

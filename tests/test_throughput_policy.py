"""The throughput policy: shares as the linear program says, nobody starves, the end in sight, light load."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from placing import PROFILE, FixedLengths, busy, candidate, device, job, placements, placer_of, round_of, slower

from broker.admission import offer_of
from broker.cluster import Device
from broker.fluid import FluidPlan, solve
from broker.jobs import Priority
from broker.length_class import LengthClass
from broker.placement import Placer
from broker.policies import shares
from broker.policies.base import Candidate, Placement
from broker.policies.outlook import predicted_seconds
from broker.policies.throughput import Throughput
from broker.throughput import DeviceKind, Profile
from broker.window import length_class

#: One that reads fast, one that writes fast; both with room for many.
READER = Profile(0.01, 1e-5, 0.0, 0.05, 1e-4, 0.0, kv_tokens=100_000, seats=16)
WRITER = Profile(0.01, 5e-4, 0.0, 0.01, 1e-5, 0.0, kv_tokens=100_000, seats=16)

lengths = st.tuples(st.integers(1, 4000), st.integers(1, 2000))


def class_of(size: tuple[int, int]) -> tuple[int, int]:
    return length_class(*size)


def kind_of(one: Device) -> DeviceKind:
    assert one.kind is not None
    return one.kind


def decide(waiting: Iterable[Candidate], *devices: Device, **fields: object) -> list[Placement]:
    return Throughput().place(round_of(waiting, [offer_of(one, 0.02) for one in devices], **fields))


def many(count: int, prompt: int, output: int, start: int = 0) -> list[Candidate]:
    return [candidate(start + i, prompt, output) for i in range(count)]


class Yard:
    """A placer whose devices end their jobs when they are told to."""

    def __init__(self, *devices: Device, seed: int = 0) -> None:
        self.placer: Placer = placer_of(*devices, policy="throughput")
        self.placer.rng = random.Random(seed)
        self.lengths: dict[str, tuple[int, int]] = {}
        self.placer.lengths = FixedLengths(self.lengths)
        self.made = 0
        self.now = 0.0

    def add(self, count: int, prompt: int, output: int, priority: str = "normal") -> None:
        for _ in range(count):
            self.lengths[f"b.{self.made}"] = (prompt, output)
            self.placer.add(job(self.made, priority))
            self.made += 1

    def decide(self, pass_s: float = 0.1) -> list[Placement]:
        """Decide until nothing more goes, as the scheduler does."""
        self.now += pass_s
        placed: list[Placement] = []
        while groups := self.placer.decide(self.now):
            placed += placements(groups)
        return placed

    def end(self, name: str, count: int | None = None) -> None:
        """The jobs that have been on a device for longest end."""
        jobs = list(self.placer.cluster.devices[name].in_flight)[:count]
        self.placer.completed(name, {job_id: self.lengths[job_id] for job_id in jobs}, self.now)


class TestShares:
    @settings(max_examples=8, deadline=None)
    @given(
        sizes=st.lists(lengths, min_size=2, max_size=4, unique_by=class_of),
        weights=st.lists(st.integers(15, 40), min_size=4, max_size=4),
        drains=st.tuples(st.integers(3, 8), st.integers(3, 8)),
    )
    def test_each_kind_takes_the_classes_in_the_proportions_of_the_program(
        self, sizes: list[tuple[int, int]], weights: list[int], drains: tuple[int, int]
    ) -> None:
        """However fast the devices work their jobs off: late binding sees to how many each gets."""
        a, b = device("a", READER), device("b", WRITER)
        yard = Yard(a, b)
        yard.placer.whole = False
        for size, weight in zip(sizes, weights, strict=False):
            yard.add(weight * 2, *size)
        counts: dict[str, Counter[tuple[int, int]]] = {"a": Counter(), "b": Counter()}
        for _ in range(250):
            for p in yard.decide(pass_s=0.001):  # one plan for all
                counts[p.device][p.prompt_tokens, p.output_tokens] += 1
                yard.add(1, p.prompt_tokens, p.output_tokens)  # the mix that waits stays what it is
            yard.end("a", drains[0])
            yard.end("b", drains[1])
        mix = [LengthClass.of(*size, weight) for size, weight in zip(sizes, weights, strict=False)]
        plan = solve(mix, [kind_of(a), kind_of(b)])
        for k, name in enumerate("ab"):
            total, planned = sum(counts[name].values()), plan.jobs[:, k].sum()
            for c, size in enumerate(sizes):
                assert counts[name][size] / total == pytest.approx(plan.jobs[c, k] / planned, abs=0.07)

    def test_prompts_go_to_the_one_that_reads_fast_and_answers_to_the_one_that_writes_fast(self) -> None:
        yard = Yard(device("reader", READER), device("writer", WRITER))
        yard.placer.whole = False
        yard.add(100, 4000, 5)
        yard.add(100, 20, 1000)
        placed = yard.decide()
        where = {(p.device, p.prompt_tokens) for p in placed}
        assert {("reader", 4000), ("writer", 20)} <= where
        assert ("writer", 4000) not in where
        assert {p.reason for p in placed} == {"share"}

    def test_the_plan_follows_a_device_that_slows_down(self) -> None:
        fast, other = device("a", WRITER), device("b", WRITER)
        yard = Yard(fast, other)
        yard.placer.whole = False
        yard.add(500, 2000, 10)
        yard.add(500, 20, 500)
        yard.decide()
        kind = kind_of(other)
        other.kind = replace(kind, slowdown=3.0)
        yard.placer.cluster.changed.add("b")
        yard.end("a")
        yard.end("b")
        placed = yard.decide(pass_s=1.0)
        assert {p.reason for p in placed if p.device == "b"} == {"share"}

    def test_a_mix_that_passes_between_two_looks_is_planned_for_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What waits at one moment is what the last plan left over: on that alone, each plan undoes the one before."""
        plans: list[float] = []
        yard = Yard(*(device(f"d{i}", READER if i % 2 else WRITER) for i in range(8)))

        def counted(classes: Sequence[LengthClass], kinds: Sequence[DeviceKind], *, in_one_piece: bool) -> FluidPlan:
            plans.append(yard.now)
            return solve(classes, kinds, in_one_piece=in_one_piece)

        monkeypatch.setattr(shares, "solve", counted)
        yard.placer.whole = False
        rng = random.Random(1)
        sizes = [(2**i, 2**j) for i in range(4, 10) for j in range(2, 6)]
        for _ in range(300):
            while len(yard.placer.window) < 200:
                yard.add(1, *rng.choice(sizes))
            yard.decide()
            for name in yard.placer.cluster.devices:
                yard.end(name, 8)
        assert len([at for at in plans if at > 10.0]) <= 1

    def test_jobs_of_a_class_go_in_order(self) -> None:
        yard = Yard(device("a", PROFILE), device("b", READER))
        yard.placer.whole = False
        yard.add(200, 100, 50)
        numbers: list[int] = []
        for _ in range(20):
            numbers += [int(p.job.job_id[2:]) for p in yard.decide()]
            assert set(numbers) == set(range(len(numbers)))
            yard.end("a", 3)
            yard.end("b", 4)


class TestNobodyStarves:
    @settings(max_examples=15, deadline=None)
    @given(
        steady=st.lists(lengths, min_size=1, max_size=3),
        rare=lengths,
        whole=st.booleans(),
        profiles=st.lists(st.sampled_from([READER, WRITER, PROFILE]), min_size=1, max_size=3),
    )
    @example(steady=[(2, 1)] * 3, rare=(1, 1), whole=False, profiles=[READER])  # too few for the mix to have moved
    @example(steady=[(2, 1)] * 3, rare=(1, 1), whole=False, profiles=[WRITER])
    def test_a_class_of_one_job_goes_while_others_keep_coming(
        self, steady: list[tuple[int, int]], rare: tuple[int, int], whole: bool, profiles: list[Profile]
    ) -> None:
        devices = [device(f"d{i}", profile) for i, profile in enumerate(profiles)]
        yard = Yard(*devices)
        yard.placer.whole = whole
        for size in steady:
            yard.add(60, *size)
        yard.decide()
        yard.add(20, *rare)
        went = 0
        for _ in range(400):
            for one in devices:
                yard.end(one.name, 3)
            for p in yard.decide():
                went += int(p.job.job_id[2:]) in range(60 * len(steady), 60 * len(steady) + 20)
                yard.add(1, *steady[went % len(steady)])
            if went == 20:
                break
        assert went == 20

    @settings(max_examples=40, deadline=None)
    @given(
        sizes=st.lists(
            st.tuples(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from(list(Priority))), max_size=120
        ),
        shapes=st.lists(
            st.tuples(st.integers(1, 12), st.integers(50, 8000), st.sampled_from([0.3, 1.0, 30.0]), st.integers(0, 2)),
            min_size=1,
            max_size=4,
        ),
        arriving=st.integers(1, 40),
        flips=st.booleans(),
        data=st.data(),
    )
    def test_in_the_end_everything_went_somewhere(
        self,
        sizes: list[tuple[int, int, str]],
        shapes: list[tuple[int, int, float, int]],
        arriving: int,
        flips: bool,
        data: st.DataObject,
    ) -> None:
        """Whatever the devices are, told or not, whatever arrives when, too long for all or not: no standstill."""
        devices = [
            device(
                f"d{i}",
                None if told == 2 else slower(replace(PROFILE, seats=seats, kv_tokens=kv), slow),
                told=told == 0,
            )
            for i, (seats, kv, slow, told) in enumerate(shapes)
        ]
        yard, left, idle = Yard(*devices), list(sizes), 0
        while left or len(yard.placer.window):
            for prompt, output, priority in left[:arriving]:
                yard.add(1, prompt, output, priority)
            left = left[arriving:]
            yard.placer.whole = not (flips and data.draw(st.booleans()))
            placed = yard.decide(pass_s=0.7)
            idle = 0 if placed or left else idle + 1
            assert idle < 10, "jobs wait, all devices are idle, and nothing goes"
            for one in devices:
                yard.end(one.name, data.draw(st.integers(1, 5)) if one.in_flight and idle == 0 else None)

    def test_a_large_job_goes_while_small_ones_keep_coming(self) -> None:
        """The small ones must not fill each gap before it is wide enough."""
        one = device("a", replace(PROFILE, kv_tokens=2000))
        yard = Yard(one)
        yard.add(20, 100, 50)
        yard.decide()
        yard.add(1, 1500, 300)
        went = False
        for _ in range(200):
            yard.end("a", 1)
            went = went or any(p.prompt_tokens == 1500 for p in yard.decide())
            yard.add(1, 100, 50)
        assert went

    def test_a_device_whose_share_is_too_long_for_it_takes_others(self) -> None:
        """A plan is made for the first jobs of a class; a later one may be longer than a device can hold."""
        small, large = device("a", replace(READER, kv_tokens=4100)), device("b", slower(WRITER, 100))
        yard = Yard(small, large)
        yard.placer.whole = False
        yard.add(30, 4000, 5)
        yard.add(400, 20, 200)
        yard.decide()
        yard.add(30, 4200, 5)
        for _ in range(200):
            yard.end("a")
            placed = [p for p in yard.decide(pass_s=0.0) if p.device == "a"]  # no time for another plan
            assert all(p.prompt_tokens < 4100 for p in placed)
            if not placed:
                break
        assert sum(c.prompt_tokens == 20 for c in yard.placer.window) == 0


class TestWhatFits:
    @settings(max_examples=60, deadline=None)
    @given(
        sizes=st.lists(lengths, min_size=1, max_size=80),
        memories=st.lists(st.integers(100, 6000), min_size=1, max_size=5),
        whole=st.booleans(),
        seats=st.integers(1, 20),
    )
    def test_a_device_that_cannot_hold_a_job_never_gets_it_while_another_can(
        self, sizes: list[tuple[int, int]], memories: list[int], whole: bool, seats: int
    ) -> None:
        devices = {
            f"d{i}": device(f"d{i}", replace(PROFILE, seats=seats, kv_tokens=kv)) for i, kv in enumerate(memories)
        }
        waiting = [candidate(i, *size) for i, size in enumerate(sizes)]
        for p in decide(waiting, *devices.values(), whole=whole):
            tokens = p.prompt_tokens + p.output_tokens
            assert kind_of(devices[p.device]).can_hold(tokens) or tokens > max(memories)

    def test_a_class_passed_over_for_a_job_too_long_does_not_hide_that_another_has_run_out(self) -> None:
        large = device("a", replace(PROFILE, seats=2, kv_tokens=2680))
        small = device("b", replace(PROFILE, seats=2, kv_tokens=1011))
        waiting = [candidate(i, *size) for i, size in enumerate([(2450, 238), (2450, 340), (2319, 238)])]
        placed = decide(waiting, large, small, whole=False)
        assert [p.device for p in placed] == ["a", "b"]  # b's is one that nobody can hold

    def test_the_context_length_is_a_limit_too(self) -> None:
        short, long = device("a", PROFILE, context_tokens=500), device("b", slower(PROFILE, 50))
        placed = decide(many(3, 400, 200), short, long)
        assert {(p.device, p.reason) for p in placed} == {("b", "only")}

    def test_a_class_nobody_has_seen_and_devices_nobody_has_measured_are_served(self) -> None:
        yard = Yard(device("told", PROFILE), device("untold", PROFILE, told=False), device("nothing", None))
        yard.placer.whole = False
        yard.add(100, 100, 50)
        first = Counter(p.device for p in yard.decide())
        assert first == {"told": 9, "untold": 9, "nothing": 1}
        yard.add(5, 3000, 800)
        for name in ("told", "untold", "nothing"):
            yard.end(name)
        assert Counter(p.device for p in yard.decide()) == first

    def test_a_device_without_known_memory_does_not_keep_jobs_waiting(self) -> None:
        yard = Yard(device("a", PROFILE), device("nothing", None))
        yard.add(3, 100, 50)
        assert len(yard.decide()) == 3


class TestTheEnd:
    @settings(max_examples=15, deadline=None)
    @given(count=st.integers(2, 60), output=st.integers(200, 1000), slow=st.sampled_from([100.0, 1000.0]))
    def test_a_device_so_slow_that_it_would_outlast_the_rest_gets_nothing(
        self, count: int, output: int, slow: float
    ) -> None:
        """With 8 seats and 10 ms a step the fast one needs at most 90 s; the slow one at least 200 s for one job."""
        yard = Yard(device("fast", PROFILE), device("slow", slower(PROFILE, slow)))
        yard.add(count, 100, output)
        used: Counter[str] = Counter()
        while len(yard.placer.window):
            used.update(p.device for p in yard.decide(pass_s=output * 0.011))
            yard.end("fast")
        assert used == {"fast": count}

    def test_with_more_behind_it_the_slow_one_works_too(self) -> None:
        yard = Yard(device("fast", PROFILE), device("slow", slower(PROFILE, 100)))
        yard.placer.whole = False
        yard.add(60, 100, 400)
        assert Counter(p.device for p in yard.decide()) == {"fast": 9, "slow": 9}

    def test_long_jobs_go_first(self) -> None:
        yard = Yard(device("a", PROFILE))
        yard.add(40, 100, 50)
        yard.add(3, 100, 1500)
        assert sorted(p.output_tokens for p in yard.decide())[-3:] == [1500] * 3

    def test_what_comes_after_the_plan_was_made_goes_too(self) -> None:
        """A plan for all that waits ends; what came meanwhile must not wait for ever."""
        yard = Yard(device("a", PROFILE))
        yard.add(20, 100, 50)
        went = 0
        for _ in range(300):
            placed = yard.decide()
            went += len(placed)
            yard.end("a", 2)
            yard.add(2, 100, 50)
        assert went >= 590

    def test_a_job_that_no_device_can_hold_goes_when_one_is_idle(self) -> None:
        one = device("a", replace(PROFILE, kv_tokens=1000))
        yard = Yard(one)
        yard.add(1, 2000, 10)
        yard.add(3, 10, 10)
        assert {p.prompt_tokens for p in yard.decide()} == {10}
        yard.end("a")
        assert [p.prompt_tokens for p in yard.decide()] == [2000]


class TestLightLoad:
    @given(
        size=lengths,
        slowdowns=st.lists(st.floats(0.2, 5), min_size=1, max_size=5, unique=True),
        profile=st.sampled_from([READER, WRITER, PROFILE]),
    )
    def test_a_lone_job_goes_where_it_ends_soonest(
        self, size: tuple[int, int], slowdowns: list[float], profile: Profile
    ) -> None:
        devices = [device(f"d{i}", slower(profile, factor)) for i, factor in enumerate(slowdowns)]
        placed = decide([candidate(0, *size)], *devices)
        times = {one.name: predicted_seconds(offer_of(one, 0.02), *size) for one in devices}
        assert [(p.device, p.predicted_s) for p in placed] == [min(times.items(), key=lambda item: item[1])]

    def test_each_goes_to_the_device_that_is_good_at_it(self) -> None:
        placed = decide(
            [candidate(0, 4000, 5), candidate(1, 20, 500)], device("reader", READER), device("writer", WRITER)
        )
        assert {p.job.job_id: p.device for p in placed} == {"b.0": "reader", "b.1": "writer"}

    def test_alike_devices_share_the_load(self) -> None:
        placed = decide(many(8, 100, 100), *(device(name, PROFILE) for name in "abcd"))
        assert Counter(p.device for p in placed) == dict.fromkeys("abcd", 2)

    def test_a_device_with_much_to_do_is_left_alone(self) -> None:
        full = busy(device("a", PROFILE), [(100, 1900)] * 4)
        placed = decide(many(4, 100, 100), full, device("b", PROFILE))
        assert {p.device for p in placed} == {"b"}

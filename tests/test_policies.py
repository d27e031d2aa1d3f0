"""Placement policies: what holds for each of them, and what tells the simple ones apart."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placing import PROFILE, busy, candidate, device, round_of, slower

from broker.admission import offer_of
from broker.cluster import Device
from broker.errors import UsageError
from broker.jobs import Priority
from broker.policies import POLICIES, make_policy
from broker.policies.base import Candidate, Offer, Placement

EVERY = sorted(POLICIES)
#: What people use today: strictly first come, first served.
BASELINES = [name for name in EVERY if name != "throughput"]
ROOM = 10**9


def candidates(count: int) -> list[Candidate]:
    return [candidate(i) for i in range(count)]


def offer(device: str, **fields: float) -> Offer:
    """One with room for everything, of a device of which nothing is known but its seats."""
    roomy = Offer(device, 8, ROOM, 100.0, slots_left=ROOM, kv_bound=ROOM, outstanding=0, outstanding_tokens=0)
    return replace(roomy, **fields)  # type: ignore[arg-type]  # ints and one float


def decide(
    name: str, waiting: list[Candidate], offers: list[Offer], seed: int = 0, limit: int = 400
) -> list[Placement]:
    return make_policy(name).place(round_of(waiting, offers, rng=random.Random(seed), limit=limit))


def place(name: str, waiting: list[Candidate], offers: list[Offer], seed: int = 0) -> list[tuple[str, str]]:
    """Job ids and devices, in the order of the placements."""
    return [(p.job.job_id, p.device) for p in decide(name, waiting, offers, seed)]


lengths = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
some_candidates = st.lists(st.tuples(lengths, st.sampled_from(list(Priority)), st.booleans()), max_size=60).map(
    lambda jobs: [
        candidate(i, *sizes, "returned" if returned else priority.value, priority.value)
        for i, (sizes, priority, returned) in enumerate(jobs)
    ]
)


@st.composite
def some_devices(draw: st.DrawFn) -> list[Device]:
    """Devices of all sorts that have something to do already."""
    found: list[Device] = []
    for i in range(draw(st.integers(0, 6))):
        profile = replace(PROFILE, seats=draw(st.integers(1, 40)), kv_tokens=draw(st.integers(100, 20_000)))
        profile = slower(profile, draw(st.sampled_from([0.5, 1.0, 1.0, 10.0])))
        state = {"steps_total": draw(st.integers(0, 1000)), "waiting": draw(st.sampled_from([0, 0, 0, 50]))}
        known = draw(st.sampled_from([profile, profile, None]))
        one = device(f"d{i}", known, told=draw(st.booleans()), **state)
        busy(one, draw(st.lists(lengths, max_size=8)))
        one.speed = draw(st.floats(0, 1e6))
        found.append(one)
    return found


def offers_of(devices: list[Device]) -> list[Offer]:
    return [offer_of(one, 0.02) for one in devices]


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=60)
@given(waiting=some_candidates, devices=some_devices(), seed=st.integers(0, 99))
def test_no_device_gets_more_than_its_room(
    name: str, waiting: list[Candidate], devices: list[Device], seed: int
) -> None:
    placed = decide(name, waiting, offers_of(devices), seed)
    for one in devices:
        before = offer_of(one, 0.02)
        mine = [p for p in placed if p.device == one.name]
        assert len(mine) <= max(0, before.slots_left)
        held = np.zeros(256)
        for i, p in enumerate(mine):
            tokens = one.calendar.held(one.calendar.step, p.prompt_tokens, p.output_tokens)
            # Reckoned some steps at a time: at its end a job holds no more than it is long.
            held[: len(tokens)] += np.minimum(tokens, p.prompt_tokens + p.output_tokens)
            # An idle device takes its first job whatever its size: only its engine can say that it is too long.
            if i or before.outstanding:
                free = one.calendar.free(before.kv_bound)[: len(tokens)]
                assert (held[: len(tokens)] <= free + 1e-6).all()


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=60)
@given(waiting=some_candidates, devices=some_devices(), seed=st.integers(0, 99), limit=st.integers(1, 70))
def test_jobs_go_once_each_as_they_are_and_no_more_than_the_limit(
    name: str, waiting: list[Candidate], devices: list[Device], seed: int, limit: int
) -> None:
    placed = decide(name, waiting, offers_of(devices), seed, limit)
    assert len(placed) <= limit
    assert len({p.job.job_id for p in placed}) == len(placed)
    by_id = {c.job.job_id: c for c in waiting}
    for p in placed:
        assert by_id[p.job.job_id][:3] == (p.job, p.prompt_tokens, p.output_tokens)
        assert p.device in {one.name for one in devices}


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=60)
@given(waiting=some_candidates, devices=some_devices(), seed=st.integers(0, 99))
def test_a_lower_line_gets_nothing_while_a_higher_one_has_jobs(
    name: str, waiting: list[Candidate], devices: list[Device], seed: int
) -> None:
    placed = {job for job, _ in place(name, waiting, offers_of(devices), seed)}
    ranks = {priority.value: rank for rank, priority in enumerate(Priority)}
    left = [ranks[c.job.priority] for c in waiting if c.job.job_id not in placed]
    went = [ranks[c.job.priority] for c in waiting if c.job.job_id in placed]
    assert not left or not went or max(went) <= min(left)


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=30)
@given(waiting=some_candidates, devices=some_devices(), seed=st.integers(0, 99))
def test_the_same_chance_gives_the_same_decision(
    name: str, waiting: list[Candidate], devices: list[Device], seed: int
) -> None:
    decisions = [place(name, waiting, offers_of(devices), seed) for _ in range(2)]
    assert decisions[0] == decisions[1]


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=60)
@given(waiting=some_candidates, devices=some_devices(), seed=st.integers(0, 99))
def test_with_an_idle_device_and_jobs_something_goes(
    name: str, waiting: list[Candidate], devices: list[Device], seed: int
) -> None:
    """Also where all that waits is too long for every device: the engine says so, and the job ends."""
    idle = device("idle", replace(PROFILE, kv_tokens=500))
    offers = [offer_of(idle, 0.02), *(o for o in offers_of(devices) if o.outstanding == 0 < o.slots_left)]
    if waiting:
        assert place(name, waiting, offers, seed)


@pytest.mark.parametrize("name", BASELINES)
@settings(max_examples=60)
@given(waiting=some_candidates, devices=some_devices(), seed=st.integers(0, 99))
def test_baselines_go_strictly_in_order(name: str, waiting: list[Candidate], devices: list[Device], seed: int) -> None:
    turn = round_of(waiting, offers_of(devices), rng=random.Random(seed))
    order = [c.job.job_id for c in turn.waiting]
    placed = [p.job.job_id for p in make_policy(name).place(turn)]
    assert placed == order[: len(placed)]


@pytest.mark.parametrize("name", EVERY)
@given(count=st.integers(0, 80), devices=st.integers(1, 8), seed=st.integers(0, 99))
def test_with_room_everywhere_everything_is_placed(name: str, count: int, devices: int, seed: int) -> None:
    offers = [offer(f"d{i}") for i in range(devices)]
    assert len(place(name, candidates(count), offers, seed)) == count


@pytest.mark.parametrize("name", [n for n in EVERY if n != "round_robin"])
@given(slots=st.lists(st.integers(0, 9), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_a_full_device_does_not_hold_jobs_up_that_another_could_take(name: str, slots: list[int], seed: int) -> None:
    offers = [offer(f"d{i}", slots_left=n) for i, n in enumerate(slots)]
    placed = Counter(device for _, device in place(name, candidates(100), offers, seed))
    assert placed == {f"d{i}": n for i, n in enumerate(slots) if n}


@pytest.mark.parametrize("name", EVERY)
def test_no_devices_no_placements(name: str) -> None:
    assert place(name, candidates(3), []) == []


@pytest.mark.parametrize("name", BASELINES)
def test_a_job_too_big_for_the_memory_left_waits_and_small_ones_do_not_pass_it(name: str) -> None:
    full = busy(device("a", replace(PROFILE, kv_tokens=1000)), [(800, 100)])
    waiting = [candidate(0, 90, 100), candidate(1, 1, 1)]
    assert place(name, waiting, [offer_of(full, 0.02)]) == []
    assert len(place(name, waiting[1:], [offer_of(full, 0.02)])) == 1


@pytest.mark.parametrize("name", EVERY)
def test_an_idle_device_takes_a_job_of_any_size(name: str) -> None:
    for idle in (offer("a", kv_bound=100), offer_of(device("a", replace(PROFILE, kv_tokens=100)), 0.02)):
        assert place(name, [candidate(0, 10**6, 1)], [idle]) == [("b.0", "a")]


@pytest.mark.parametrize("name", EVERY)
def test_memory_is_filled_up_to_the_peak_to_come_not_by_the_sum_of_final_sizes(name: str) -> None:
    """The job that is there ends before the new one has grown: both fit, though together they end as 1,800 tokens."""
    one = busy(device("a", replace(PROFILE, kv_tokens=1200)), [(500, 400)])
    one.calendar.advance(368.0)
    assert place(name, [candidate(0, 100, 800)], [offer_of(one, 0.02)]) == [("b.0", "a")]


@given(count=st.integers(0, 80), devices=st.integers(1, 8))
def test_round_robin_deals_evenly_in_turn_whatever_the_devices_have(count: int, devices: int) -> None:
    offers = [offer(f"d{i}", speed=10.0**i, outstanding=i) for i in range(devices)]
    placed = [device for _, device in place("round_robin", candidates(count), offers)]
    assert placed == [f"d{i % devices}" for i in range(count)]


def test_round_robin_goes_on_where_the_last_round_ended() -> None:
    policy = make_policy("round_robin")
    rounds = [policy.place(round_of(candidates(2), [offer("a"), offer("b"), offer("c")])) for _ in range(3)]
    assert [p.device for placed in rounds for p in placed] == ["a", "b", "c", "a", "b", "c"]


def test_round_robin_goes_on_after_a_device_that_has_left() -> None:
    policy = make_policy("round_robin")
    policy.place(round_of(candidates(2), [offer("a"), offer("b"), offer("c")]))
    placed = policy.place(round_of(candidates(2), [offer("a"), offer("c")]))
    assert [p.device for p in placed] == ["c", "a"]


def test_least_outstanding_fills_up_the_emptier_device_whatever_its_speed() -> None:
    offers = [offer("fast", speed=1000.0, outstanding=4), offer("slow", speed=1.0, outstanding=2)]
    placed = [device for _, device in place("least_outstanding", candidates(4), offers)]
    assert placed[:2] == ["slow", "slow"]
    assert Counter(placed) == {"slow": 3, "fast": 1}


@given(seed=st.integers(0, 99))
def test_power_of_two_of_two_takes_the_emptier(seed: int) -> None:
    offers = [offer("empty", outstanding=1), offer("full", outstanding=50)]
    assert {device for _, device in place("power_of_two", candidates(10), offers, seed)} == {"empty"}


def test_power_of_two_never_takes_the_fullest_of_many() -> None:
    offers = [offer(f"d{i}", outstanding=1000 * i) for i in range(4)]
    seen = {device for seed in range(50) for _, device in place("power_of_two", candidates(5), offers, seed)}
    assert seen == {"d0", "d1", "d2"}


@given(outstanding=st.integers(0, 20), tokens=st.integers(0, 10_000), faster=st.floats(1.5, 50))
def test_capacity_prefers_the_faster_of_two_that_are_loaded_alike(outstanding: int, tokens: int, faster: float) -> None:
    alike = offer("slow", kv_tokens=20_000, outstanding=outstanding, outstanding_tokens=tokens)
    offers = [replace(alike, device="fast", speed=alike.speed * faster), alike]
    for order in (offers, offers[::-1]):
        assert place("capacity", candidates(1), order) == [("b.0", "fast")]


@given(held=st.integers(500, 900))
def test_capacity_prefers_the_one_with_more_free_memory_of_two_equally_fast(held: int) -> None:
    alike = offer("large", kv_tokens=10_000, outstanding=9, outstanding_tokens=held)
    offers = [alike, replace(alike, device="a_small_one", kv_tokens=1000)]
    assert place("capacity", candidates(1), offers) == [("b.0", "large")]


def test_capacity_shares_jobs_out_in_proportion_to_speed() -> None:
    offers = [offer("fast", speed=300.0), offer("slow", speed=100.0)]
    placed = Counter(device for _, device in place("capacity", candidates(400), offers))
    assert placed["fast"] == pytest.approx(300, abs=2)


def test_capacity_gives_a_device_not_measured_yet_a_fair_share() -> None:
    offers = [offer("known", speed=100.0), offer("new", speed=0.0)]
    placed = Counter(device for _, device in place("capacity", candidates(100), offers))
    assert placed["new"] == pytest.approx(50, abs=1)


def test_an_unknown_policy_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(
        UsageError, match=r"'fastest'.*capacity, least_outstanding, power_of_two, round_robin, throughput"
    ):
        make_policy("fastest")

"""Placement policies: what holds for each of them, and what tells them apart."""

from __future__ import annotations

import random
from collections import Counter
from copy import copy
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import UsageError
from broker.jobs import WaitingJob
from broker.policies import POLICIES, make_policy
from broker.policies.base import Candidate, Offer

EVERY = sorted(POLICIES)
ROOM = 10**9


def candidate(i: int, prompt: int = 10, output: int = 20) -> Candidate:
    return Candidate(WaitingJob(f"b.{i}", "normal", f"{i}-0", "b", "normal", 40, 0), prompt, output)


def candidates(count: int) -> list[Candidate]:
    return [candidate(i) for i in range(count)]


def offer(device: str, **fields: float) -> Offer:
    roomy = Offer(device, 8, ROOM, 100.0, slots_left=ROOM, kv_left=ROOM, outstanding=0, outstanding_tokens=0)
    return replace(roomy, **fields)  # type: ignore[arg-type]  # ints and one float


def place(name: str, waiting: list[Candidate], offers: list[Offer], seed: int = 0) -> list[tuple[str, str]]:
    """Job ids and devices, in the order of the placements."""
    placed = make_policy(name).place(iter(waiting), [copy(o) for o in offers], 0.0, random.Random(seed))
    return [(p.job.job_id, p.device) for p in placed]


lengths = st.integers(1, 5000)
some_candidates = st.lists(st.tuples(lengths, lengths), max_size=60).map(
    lambda sizes: [candidate(i, *size) for i, size in enumerate(sizes)]
)
some_offers = st.lists(
    st.builds(
        Offer,
        device=st.just(""),
        seats=st.integers(1, 64),
        kv_tokens=st.integers(1, 20_000),
        speed=st.floats(0, 1e6),
        slots_left=st.integers(-5, 40),
        kv_left=st.integers(-2000, 20_000),
        outstanding=st.integers(0, 70),
        outstanding_tokens=st.integers(0, 40_000),
    ),
    max_size=8,
).map(lambda offers: [replace(o, device=f"d{i}") for i, o in enumerate(offers)])


@pytest.mark.parametrize("name", EVERY)
@given(waiting=some_candidates, offers=some_offers, seed=st.integers(0, 99))
def test_no_device_gets_more_than_its_room(name: str, waiting: list[Candidate], offers: list[Offer], seed: int) -> None:
    sizes = {c.job.job_id: c.prompt_tokens + c.output_tokens for c in waiting}
    placed = place(name, waiting, offers, seed)
    for o in offers:
        mine = [sizes[job] for job, device in placed if device == o.device]
        assert len(mine) <= max(0, o.slots_left)
        # An idle device takes its first job whatever its size: only its engine can say that it is too long.
        limited = mine[1:] if o.outstanding == 0 else mine
        assert not limited or sum(mine) <= o.kv_left


@pytest.mark.parametrize("name", EVERY)
@given(waiting=some_candidates, offers=some_offers, seed=st.integers(0, 99))
def test_jobs_go_once_each_and_in_order(name: str, waiting: list[Candidate], offers: list[Offer], seed: int) -> None:
    placed = [job for job, _ in place(name, waiting, offers, seed)]
    assert placed == [c.job.job_id for c in waiting][: len(placed)]


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


@pytest.mark.parametrize("name", EVERY)
def test_a_job_too_big_for_the_memory_left_waits_and_small_ones_do_not_pass_it(name: str) -> None:
    busy = offer("a", kv_left=100, outstanding=1)
    assert place(name, [candidate(0, 50, 51), candidate(1, 1, 1)], [busy]) == []


@pytest.mark.parametrize("name", EVERY)
def test_an_idle_device_takes_a_job_of_any_size(name: str) -> None:
    assert place(name, [candidate(0, 10**6, 1)], [offer("a", kv_left=100)]) == [("b.0", "a")]


@given(count=st.integers(0, 80), devices=st.integers(1, 8))
def test_round_robin_deals_evenly_in_turn_whatever_the_devices_have(count: int, devices: int) -> None:
    offers = [offer(f"d{i}", speed=10.0**i, outstanding=i) for i in range(devices)]
    placed = [device for _, device in place("round_robin", candidates(count), offers)]
    assert placed == [f"d{i % devices}" for i in range(count)]


def test_round_robin_goes_on_where_the_last_round_ended() -> None:
    policy = make_policy("round_robin")
    rounds = [
        policy.place(candidates(2), [offer("a"), offer("b"), offer("c")], 0.0, random.Random(0)) for _ in range(3)
    ]
    assert [p.device for placed in rounds for p in placed] == ["a", "b", "c", "a", "b", "c"]


def test_round_robin_goes_on_after_a_device_that_has_left() -> None:
    policy = make_policy("round_robin")
    rng = random.Random(0)
    policy.place(candidates(2), [offer("a"), offer("b"), offer("c")], 0.0, rng)
    placed = policy.place(candidates(2), [offer("a"), offer("c")], 0.0, rng)
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
    with pytest.raises(UsageError, match=r"'fastest'.*capacity, least_outstanding, power_of_two, round_robin"):
        make_policy("fastest")

"""Is a change worth it, and how many workers run: rules that hold for every load."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from broker.pool_plan import PlannedWorker, PoolPlan
from planner.autoscaling import Scaler, ScaleTerms, workers_needed, workers_to_run
from planner.resizing import (
    Change,
    Load,
    Note,
    ResizeTerms,
    change_between,
    consider,
    gain_of,
    parse_note,
)

TERMS = ResizeTerms(least_gain=0.08, least_interval_s=600, looks=3, hold_s=200)
RATES = st.floats(1, 1e6)
NOTHING = Change(0.0, 0.0)


def plan(*workers: PlannedWorker, least: int = 0) -> PoolPlan:
    return PoolPlan(1, 0.0, workers, min_workers=least)


def worker(name: str, host: str = "h", rate: float = 100.0, *options: str) -> PlannedWorker:
    return PlannedWorker(name, host, options, tokens_per_s=rate)


class Looks:
    """A planner that looks every two minutes, at pools whose gain over each other the test says."""

    def __init__(self, terms: ResizeTerms = TERMS) -> None:
        self.terms = terms
        self.now = 1e9
        self.changed = self.now
        self.note = Note()
        self.changes: list[float] = []

    def look(self, gain: float) -> bool:
        self.now += 120
        worth, self.note = consider(self.note, gain, self.now, self.changed, self.terms)
        if worth:
            self.changed = self.now
            self.changes.append(self.now)
        return worth


class TestChange:
    @given(st.lists(st.floats(-1, 0.0799), max_size=300))
    def test_noise_below_the_least_gain_changes_nothing(self, gains: list[float]) -> None:
        looks = Looks()
        assert not any(looks.look(gain) for gain in gains)

    @given(st.lists(st.floats(-1, 5), max_size=300))
    def test_never_twice_within_the_interval(self, gains: list[float]) -> None:
        looks = Looks()
        for gain in gains:
            looks.look(gain)
        assert all(b - a >= TERMS.least_interval_s for a, b in zip(looks.changes, looks.changes[1:], strict=False))

    @given(st.integers(1, 2), st.integers(1, 50))
    def test_a_load_that_swings_faster_than_the_looks_changes_nothing(self, up: int, swings: int) -> None:
        """Each swing the other shape is much better, for fewer looks than must see it."""
        looks = Looks()
        for _ in range(swings):
            assert not any(looks.look(0.5) for _ in range(up))
            assert not looks.look(-0.5)

    @given(st.floats(0.08, 10))
    def test_a_gain_that_stays_is_taken_once(self, gain: float) -> None:
        looks = Looks()
        when = [number for number in range(20) if looks.look(gain if not looks.changes else 0.0)]
        assert when == [4]  # the interval since the change before is 600 s, looks are 120 s apart

    @given(st.lists(st.floats(-1, 5), max_size=100))
    def test_at_once_where_nothing_runs(self, before: list[float]) -> None:
        looks = Looks()
        for gain in before:
            looks.look(gain)
        assert looks.look(math.inf)

    @given(st.binary(max_size=50))
    def test_a_forged_note_delays_at_worst(self, text: bytes) -> None:
        note = parse_note(text)
        looks = Looks()
        looks.note = note
        assert any(looks.look(0.5) for _ in range(8))

    def test_a_note_from_the_future_is_none(self) -> None:
        worth, note = consider(Note(5, 2e9), 0.5, 1e9, 0.0, TERMS)
        assert (worth, note.since) == (False, 1e9)


class TestGain:
    @given(RATES, RATES, st.floats(0, 1e7), st.floats(0, 1e6))
    @example(1.0, 2.0, 5e-324, 0.0)
    def test_without_a_restart_it_is_the_rates_alone(self, r0: float, r1: float, backlog: float, rate: float) -> None:
        assert gain_of(r0, r1, NOTHING, Load(backlog, rate), 1800) == pytest.approx(1 - r0 / r1, abs=1e-6)

    @given(RATES, RATES, st.floats(0, 600), st.floats(0, 600), st.floats(0, 1e7), st.floats(0, 1))
    def test_a_longer_restart_never_gains_more(
        self, r0: float, r1: float, c: float, more: float, backlog: float, share: float
    ) -> None:
        load = Load(backlog, r0)
        short, long = (gain_of(r0, r1, Change(s, share * min(r0, r1)), load, 1800) for s in (c, c + more))
        assert long <= short + 1e-9

    @given(RATES, st.floats(1, 600), st.floats(0, 1e7), st.floats(0, 0.99))
    def test_for_the_same_rate_no_restart_is_worth_it(self, r: float, c: float, backlog: float, share: float) -> None:
        assert gain_of(r, r, Change(c, share * r), Load(backlog, r), 1800) <= 0

    def test_from_nothing_anything_is_a_gain_and_to_nothing_none(self) -> None:
        assert gain_of(0, 1, NOTHING, Load(0, 0), 1800) == math.inf
        assert gain_of(1, 0, NOTHING, Load(0, 0), 1800) == -math.inf

    def test_what_a_change_costs(self) -> None:
        today = plan(worker("a"), worker("b"), worker("c", "other"), worker("d", "other"))
        assert change_between(today, today, 30, 400) == Change(0, 400)
        new = plan(worker("a"), worker("b", "h", 100, "--seats", "9"), *today.workers[2:])
        assert change_between(today, new, 30, 400) == Change(30, 300)
        assert change_between(today, plan(*today.workers, worker("e")), 30, 400) == Change(30, 400)
        every = plan(*(worker(w.name, w.host, 100, "--seats", "9") for w in today.workers))
        assert change_between(today, every, 30, 400) == Change(60, 200)


class TestScale:
    @given(st.lists(st.floats(0, 1000), max_size=20), st.floats(0, 1e5))
    def test_as_few_as_reach_the_rate(self, rates: list[float], needed: float) -> None:
        count = workers_needed(rates, needed)
        assert count == len(rates) or sum(rates[:count]) >= needed
        assert count == 0 or sum(rates[: count - 1]) < needed

    def test_none_for_nothing_and_all_where_nothing_is_known(self) -> None:
        assert workers_needed([5.0, 5.0], 0.0) == 0
        assert workers_needed([0.0, 0.0], 0.1) == 2

    @given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0, 1e6)), min_size=1, max_size=100))
    def test_it_is_the_most_that_was_needed_in_the_cool_down(self, steps: list[tuple[float, float]]) -> None:
        scaler = Scaler(ScaleTerms(drain_s=10, cool_down_s=50))
        now = 0.0
        seen: list[tuple[float, float]] = []
        for gap, backlog in steps:
            now += gap
            seen.append((now, backlog / 10))
            assert scaler.observe(now, Load(backlog, 0)) == max(n for at, n in seen if at >= now - 50)

    def test_what_drains_before_a_worker_has_started_does_not_wait_for_one(self) -> None:
        quick, slow = (Scaler(ScaleTerms(drain_s=10)).observe(0, Load(1000, 0), s) for s in (1.0, 100.0))
        assert (quick, slow) == (100, 10)

    @given(
        st.lists(st.tuples(st.sampled_from("hgi"), st.floats(0, 100)), max_size=12),
        st.floats(0, 1000),
        st.integers(0, 4),
        st.integers(0, 12),
    )
    def test_every_host_takes_its_part(
        self, workers: list[tuple[str, float]], needed: float, least: int, most: int
    ) -> None:
        assume(least <= most)
        whole = plan(*(worker(f"w{n}", host, rate) for n, (host, rate) in enumerate(workers)), least=least)
        parts = {host: workers_to_run(whole, host, needed, 0, most) for host in "hgi"}
        for host, chosen in parts.items():
            there = [w for w in whole.workers if w.host == host]
            assert min(least, len(there)) <= len(chosen) <= most
            assert all(w in there for w in chosen)
        if most == 12:
            together = sum(w.tokens_per_s for chosen in parts.values() for w in chosen)
            assert together >= min(needed, sum(w.tokens_per_s for w in whole.workers)) * (1 - 1e-9)

    def test_in_the_bounds_the_own_least_counts_too(self) -> None:
        whole = plan(worker("a", rate=1), worker("b", rate=2))
        assert [w.name for w in workers_to_run(whole, "h", 0, 1, 5)] == ["b"]
        assert [w.name for w in workers_to_run(whole, "h", 1e9, 0, 1)] == ["b"]

"""The calendar of KV memory against a list of jobs that is looked through every time."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.kv_calendar import KvCalendar

WIDTH, SPAN, LEAD = 32, 128, 64
BINS = SPAN + LEAD

operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 5000), st.integers(0, 6000)),
        st.tuples(st.just("advance"), st.floats(0, 3000), st.just(0)),
        st.tuples(st.just("remove"), st.integers(0, 50), st.just(0)),
    ),
    max_size=40,
)


@dataclass(frozen=True)
class Job:
    start: float
    prompt: int
    output: int

    def at_end_of(self, number: int) -> float:
        """Tokens counted for a bin: those it would hold at the bin's end, in its last bin, too."""
        first = int(self.start // WIDTH)
        last = min(max(ceil((self.start + self.output) / WIDTH) - 1, first), first + SPAN - 1)
        return self.prompt + (number + 1) * WIDTH - self.start if first <= number <= last else 0.0

    def held(self, step: float) -> float:
        """Tokens it truly holds at a step."""
        return self.prompt + step - self.start if self.start <= step < self.start + self.output else 0.0


def counted(calendar: KvCalendar) -> list[float]:
    return (-calendar.free(0.0) - calendar.excess).tolist()


def play(actions: list[tuple[str, float, float]]) -> tuple[KvCalendar, list[Job]]:
    calendar, jobs = KvCalendar(), list[Job]()
    for action, a, b in actions:
        if action == "add":
            jobs.append(Job(calendar.step, int(a), int(b)))
            calendar.add(calendar.step, int(a), int(b))
        elif action == "advance":
            calendar.advance(calendar.step + a)
        elif jobs:
            gone = jobs.pop(int(a) % len(jobs))
            calendar.add(gone.start, gone.prompt, gone.output, sign=-1)
    return calendar, jobs


@given(actions=operations)
def test_each_bin_is_the_sum_of_the_jobs_in_it(actions: list[tuple[str, float, float]]) -> None:
    calendar, jobs = play(actions)
    present = int(calendar.step // WIDTH)
    expected = [sum(job.at_end_of(present + i) for job in jobs) for i in range(BINS)]
    assert counted(calendar) == pytest.approx(expected, abs=1e-6)
    assert calendar.now == pytest.approx(expected[0], abs=1e-6)


@given(actions=operations, ahead=st.floats(0, 4000))
def test_never_less_than_what_the_jobs_will_hold(actions: list[tuple[str, float, float]], ahead: float) -> None:
    calendar, jobs = play(actions)
    step = calendar.step + ahead
    in_sight = [job for job in jobs if step < (int(job.start // WIDTH) + SPAN) * WIDTH]
    at = int(step // WIDTH) - int(calendar.step // WIDTH)
    if at < BINS:
        assert counted(calendar)[at] >= sum(job.held(step) for job in in_sight) - 1e-6


@given(actions=operations)
def test_nothing_is_left_after_all_jobs_are_gone(actions: list[tuple[str, float, float]]) -> None:
    calendar, jobs = play(actions)
    for job in jobs:
        calendar.add(job.start, job.prompt, job.output, sign=-1)
    assert counted(calendar) == pytest.approx([0.0] * BINS, abs=1e-6)
    assert calendar.steps_left == 0.0


@given(actions=operations)
def test_the_last_job_ends_within_a_bin_of_the_steps_left(actions: list[tuple[str, float, float]]) -> None:
    calendar, jobs = play([*actions, ("add", 1, 5)])
    ends = [
        min(job.start + job.output, (int(job.start // WIDTH) + SPAN) * WIDTH) for job in jobs if job.prompt + job.output
    ]
    assert calendar.steps_left == pytest.approx(max(0.0, max(ends) - calendar.step), abs=WIDTH)


def test_time_never_runs_back() -> None:
    calendar = KvCalendar()
    calendar.advance(100.0)
    calendar.add(100.0, 50, 200)
    before = counted(calendar)
    calendar.advance(3.0)
    assert (calendar.step, counted(calendar)) == (100.0, before)


def test_what_ends_beyond_the_calendar_is_counted_up_to_its_end() -> None:
    calendar = KvCalendar()
    calendar.add(0.0, 100, 10**6)
    assert counted(calendar)[SPAN - 1 : SPAN + 1] == [100 + WIDTH * SPAN, 0]


def test_jobs_that_end_before_the_others_are_long_leave_room_for_more() -> None:
    """That is the point of it: two jobs of 1,000 tokens that follow each other need room for one."""
    calendar = KvCalendar()
    calendar.add(0.0, 900, 100)
    calendar.advance(96.0)
    held = calendar.held(96.0, 10, 900)
    assert (calendar.free(1100.0)[: len(held)] >= held).all()
    assert not (calendar.free(1000.0)[: len(held)] >= held).all()


def test_excess_counts_everywhere() -> None:
    calendar = KvCalendar()
    calendar.add(0.0, 100, 2 * WIDTH)
    calendar.excess = 50.0
    assert calendar.free(1000.0)[:2].tolist() == [850.0 - WIDTH, 850.0 - 2 * WIDTH]
    assert np.unique(calendar.free(1000.0)[2:]).tolist() == [950.0]


def test_what_outlasted_its_prediction_leaves_no_excess_when_it_ends() -> None:
    calendar = KvCalendar()
    calendar.add(0.0, 100, 10)
    calendar.add(0.0, 40, 1000)
    calendar.advance(500.0)
    calendar.tell(600.0 + calendar.now)  # the first goes on and on: it holds 600 tokens by now
    assert calendar.excess == pytest.approx(600.0)
    calendar.ended(0.0, 100, 10, 600.0)
    assert calendar.excess == pytest.approx(0.0)
    assert calendar.now == pytest.approx(40 + 512)


def test_what_ends_before_its_time_leaves_the_others_as_they_are() -> None:
    calendar = KvCalendar()
    calendar.add(0.0, 100, 5000)
    calendar.add(0.0, 70, 5000)
    calendar.advance(64.0)
    calendar.tell(calendar.now + 25.0)
    calendar.ended(0.0, 100, 5000, 100.0 + 96.0)  # all that is counted: a job grows to the end of the present bin
    assert calendar.excess == pytest.approx(25.0)
    assert calendar.now == pytest.approx(70 + 96)


def test_of_guessed_jobs_the_engine_is_taken_to_hold_less_when_one_ends() -> None:
    calendar = KvCalendar()
    for _ in range(4):
        calendar.add(0.0, 500, 100, guessed=True)
    calendar.advance(96.0)
    calendar.tell(1.5 * calendar.now, guessed=True)
    held = calendar.now * calendar.scale
    calendar.ended(0.0, 500, 100, 600.0, guessed=True)
    assert calendar.now * calendar.scale + calendar.excess == pytest.approx(held - 600.0)


def test_an_engine_that_never_told_is_taken_to_hold_what_is_counted() -> None:
    calendar = KvCalendar()
    calendar.add(0.0, 100, 50)
    calendar.ended(0.0, 100, 50, 10.0)
    assert (calendar.now, calendar.excess, calendar.scale) == (0.0, 0.0, 1.0)

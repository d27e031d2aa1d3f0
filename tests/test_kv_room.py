"""Room in KV memory against a list of jobs that is looked through every time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.kv_calendar import EDGES, Array, KvCalendar
from broker.kv_room import KvRoom

jobs = st.tuples(st.integers(1, 3000), st.integers(1, 2000), st.floats(0, 500))
in_flight = st.lists(jobs, max_size=12)


def calendar_of(held: list[tuple[int, int, float]], step: float) -> KvCalendar:
    calendar = KvCalendar()
    for prompt, output, start in held:
        calendar.add(start, prompt, output)
    calendar.advance(step)
    return calendar


def peak(calendar: KvCalendar, put: list[tuple[int, int, float]], job: tuple[int, int, float]) -> float:
    """The most that is held in any bin in which the job is, from its start on."""
    load = calendar.load(len(EDGES)).copy()
    for prompt, output, start in [*put, job]:
        held = calendar.held(start, prompt, output)
        load[: len(held)] += held
    prompt, output, start = job
    edges = EDGES[: calendar.bins(start, output)] + calendar.origin
    # Before its start it is counted as if it shrank towards now: the engine itself holds it back until there is room.
    early = np.where(edges < start, start - edges, 0.0)
    return float((load[: len(edges)] - early).max())


@given(held=in_flight, step=st.floats(0, 1000), job=jobs, bound=st.floats(0, 20_000), excess=st.floats(0, 500))
def test_a_job_fits_where_the_peak_with_it_is_within_the_bound(
    held: list[tuple[int, int, float]], step: float, job: tuple[int, int, float], bound: float, excess: float
) -> None:
    calendar = calendar_of(held, step)
    calendar.excess = excess
    prompt, output, delay = job
    start = calendar.step + delay
    highest = peak(calendar, [], (prompt, output, start)) + excess
    if highest != pytest.approx(bound):
        assert KvRoom(calendar, bound).fits(prompt, output, start) == (highest < bound)


@given(held=in_flight, put=st.lists(jobs, max_size=12), job=jobs, bound=st.floats(0, 40_000))
def test_what_was_put_in_since_counts(
    held: list[tuple[int, int, float]],
    put: list[tuple[int, int, float]],
    job: tuple[int, int, float],
    bound: float,
) -> None:
    """It may be told to wait where it just fits, for a cheaper answer; it never fits where the peak is too high."""
    calendar = calendar_of(held, 100.0)
    room = KvRoom(calendar, bound)
    prompt, output, delay = job
    room.fits(prompt, output, 100.0 + delay)
    inside: list[tuple[int, int, float]] = []
    for more_prompt, more_output, more_delay in put:
        room.put(more_prompt, more_output, 100.0 + more_delay)
        inside.append((more_prompt, more_output, 100.0 + more_delay))
    highest = peak(calendar, inside, (prompt, output, 100.0 + delay))
    if room.fits(prompt, output, 100.0 + delay):
        assert highest <= bound + 1e-6
    elif len(put) > 4:
        assert highest >= bound - 1e-6


@given(held=in_flight, job=jobs, bound=st.floats(1000, 40_000))
def test_what_is_sure_to_fit_does(
    held: list[tuple[int, int, float]], job: tuple[int, int, float], bound: float
) -> None:
    calendar = calendar_of(held, 0.0)
    room = KvRoom(calendar, bound)
    prompt, output, start = job
    room.put(prompt, output, start)
    assert room.sure == pytest.approx(bound - sum(p + o for p, o, _ in [*held, job]))
    assert room.least() == pytest.approx(bound - float((calendar.load(len(EDGES)) + _padded(calendar, job)).max()))


def _padded(calendar: KvCalendar, job: tuple[int, int, float]) -> Array:
    held = calendar.held(job[2], job[0], job[1])
    return np.concatenate([held, np.zeros(len(EDGES) - len(held))])

"""Tokens a second from samples of a counter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.real.rates import Sample, rate_of


def test_of_a_counter_that_always_moves_the_first_span_is_left_out() -> None:
    samples = [Sample(0.0, 0), Sample(1.0, 50), Sample(2.0, 150), Sample(4.0, 350)]
    assert rate_of(samples) == 100.0


@given(st.integers(3, 40), st.integers(1, 3000), st.floats(0.0, 39.0))
def test_a_slow_engines_rate_does_not_depend_on_when_one_begins_to_look(step_s: int, tokens: int, begun: float) -> None:
    window_s = 3 * step_s
    samples = [Sample(t, int(t // step_s) * tokens) for t in (begun + s for s in range(window_s + 1))]
    slack = 1 / step_s  # a look a second tells an end by a second at most
    assert rate_of(samples) == pytest.approx(tokens / step_s, rel=slack)


def test_where_fewer_than_two_steps_ended_all_that_was_seen_counts() -> None:
    assert rate_of([Sample(0.0, 10), Sample(2.0, 10), Sample(5.0, 60)]) == 10.0
    assert rate_of([Sample(0.0, 10), Sample(5.0, 10)]) == 0.0

"""How much memory is spoken for, corrected by what the engine is seen to do."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.kv_calendar import BIN_STEPS, KvCalendar
from broker.kv_share import FirstFill, KvShare

looks = st.lists(
    st.tuples(
        st.floats(0, 10), st.floats(0, 1.2), st.floats(0, 2), st.integers(0, 500), st.integers(0, 500), st.booleans()
    ),
    max_size=60,
)


@given(looks=looks)
def test_it_stays_within_bounds(looks: list[tuple[float, float, float, int, int, bool]]) -> None:
    share = KvShare()
    for elapsed, used, to_come, running, waiting, blocked in looks:
        share.blocked = blocked
        share.observe(elapsed, used, to_come, running, waiting)
        assert 0.4 <= share.value <= 4.0
        assert not share.blocked


def test_where_predictions_keep_jobs_out_of_empty_memory_it_grows() -> None:
    share = KvShare()
    for _ in range(5):
        share.blocked = True
        share.observe(1.0, used=0.5, to_come=0.0, running=10, waiting=0)
    assert share.value > 1.5


def test_prompts_that_are_still_to_be_computed_are_no_empty_memory() -> None:
    """A slow device takes long over its first prompts: until then its memory looks empty."""
    share = KvShare()
    for _ in range(50):
        share.blocked = True
        share.observe(1.0, used=0.3, to_come=0.62, running=100, waiting=0)
    assert share.value == KvShare().value


@pytest.mark.parametrize(("waiting", "shrinks"), [(50, True), (1, False)])
def test_where_requests_wait_for_full_memory_it_shrinks(waiting: int, shrinks: bool) -> None:
    share = KvShare()
    for _ in range(5):
        share.observe(1.0, used=0.99, to_come=0.0, running=10, waiting=waiting)
    assert (share.value < KvShare().value) == shrinks


def test_an_engine_that_was_empty_is_not_roomy_before_its_jobs_have_grown() -> None:
    calendar, fill = KvCalendar(), FirstFill()
    assert fill.expected(calendar) == inf
    for _ in range(10):
        calendar.add(0.0, 100, 960)
    expected: list[float] = []
    for step in range(0, 1200, BIN_STEPS):
        calendar.advance(float(step))
        expected.append(fill.expected(calendar))
    grown = expected[: 960 // BIN_STEPS]
    assert grown == sorted(grown)
    assert grown[0] < 10 * 200 < 10 * 1000 < grown[-1]
    assert expected[-1] == inf  # from then on it can be judged by what it holds

    share = KvShare()
    share.blocked = True
    before = share.value
    share.observe(1.0, used=0.2, to_come=0.0, running=10, waiting=0, expected=0.2)
    assert share.value == before
    share.blocked = True
    share.observe(1.0, used=0.2, to_come=0.0, running=10, waiting=0, expected=0.9)
    assert share.value > before

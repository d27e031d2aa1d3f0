"""How long workers have been silent: whatever Redis' clock does, and however late we look."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.silence import Silences

LONGEST = 2.0


def test_a_stamp_that_does_not_change_is_silence() -> None:
    silences = Silences(LONGEST)
    silences.look(100.0)
    assert silences.of("w", 5.0) == 0
    silences.look(101.0)
    assert silences.of("w", 5.0) == 1
    silences.look(102.5)
    assert silences.of("w", 5.0) == 2.5
    silences.look(103.0)
    assert silences.of("w", 5.1) == 0


def test_a_clock_that_is_set_is_no_silence() -> None:
    silences = Silences(LONGEST)
    for second, stamp in enumerate([1000.0, 5000.0, 10.0, 10.5]):
        silences.look(float(second))
        assert silences.of("w", stamp) == 0


def test_time_without_a_look_counts_only_for_a_while() -> None:
    silences = Silences(LONGEST)
    silences.look(0.0)
    silences.of("w", 1.0)
    silences.look(60.0)
    assert silences.of("w", 1.0) == LONGEST


def test_an_outage_does_not_count_and_what_was_counted_before_stays() -> None:
    silences = Silences(LONGEST)
    for now in (0.0, 1.0, 2.0):
        silences.look(now)
        silences.of("w", 1.0)
    silences.interrupt()
    silences.look(60.0)
    assert silences.of("w", 1.0) == 2
    silences.look(61.0)
    assert silences.of("w", 1.0) == 3


def test_who_was_gone_begins_anew() -> None:
    silences = Silences(LONGEST)
    silences.look(0.0)
    silences.of("w", 1.0)
    silences.look(1.0)
    silences.keep_only([])
    assert silences.of("w", 1.0) == 0


@given(st.lists(st.tuples(st.floats(0, 10), st.booleans()), max_size=50))
def test_it_is_what_the_definition_says(looks: list[tuple[float, bool]]) -> None:
    silences, now, stamp, silent = Silences(LONGEST), 0.0, 0.0, 0.0
    silences.look(now)
    silences.of("w", stamp)
    for passed, beats in looks:
        now += passed
        stamp += beats
        silent = 0.0 if beats else silent + min(passed, LONGEST)
        silences.look(now)
        assert abs(silences.of("w", stamp) - silent) < 1e-6

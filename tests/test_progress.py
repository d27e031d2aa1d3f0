"""How far a request is, estimated from the engine's total: against requests whose progress is known."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.progress import Progress


def test_alone_it_has_all_that_was_generated_since() -> None:
    progress = Progress()
    progress.look(0.0, 1000)
    progress.begin("a", 5.0)
    assert progress.output_tokens("a", 7.5, 1060) == 60


def test_those_of_the_same_age_have_the_same_share() -> None:
    progress = Progress()
    progress.look(0.0, 0)
    for entry in "abcd":
        progress.begin(entry, 1.0)
    assert [progress.output_tokens(entry, 3.0, 80) for entry in "abcd"] == [20] * 4


def test_what_was_generated_before_it_came_is_not_its_own() -> None:
    progress = Progress()
    progress.look(0.0, 0)
    progress.begin("early", 0.0)
    progress.look(10.0, 500)
    progress.begin("late", 10.0)
    assert progress.output_tokens("late", 12.0, 500 + 40) == 20


def test_where_it_was_looked_at_only_later_that_time_tells_the_rate() -> None:
    progress = Progress()
    progress.begin("a", 0.0)
    progress.look(5.0, 100)
    assert progress.output_tokens("a", 10.0, 150) == 100


def test_one_that_has_not_begun_or_has_ended_has_none() -> None:
    progress = Progress()
    progress.look(0.0, 0)
    assert progress.output_tokens("a", 1.0, 50) == 0
    progress.begin("a", 1.0)
    assert progress.has_begun("a")
    progress.end("a", 2.0)
    assert not progress.has_begun("a")
    assert progress.output_tokens("a", 3.0, 100) == 0


def test_an_engine_that_was_started_again_begins_anew() -> None:
    progress = Progress()
    progress.look(0.0, 10_000)
    progress.begin("a", 1.0)
    progress.look(2.0, 3)
    assert progress.output_tokens("a", 4.0, 23) == 30


@given(
    begins=st.lists(st.integers(0, 50), min_size=1, max_size=8),
    rate=st.integers(1, 30),
    looks=st.lists(st.integers(0, 60), max_size=10),
)
def test_where_all_run_at_one_rate_the_estimate_is_exact(begins: list[int], rate: int, looks: list[int]) -> None:
    """Whenever the engine was looked at, requests that each get ``rate`` tokens a second are told from their age."""
    progress, now, end = Progress(), 0, 61

    def total(at: int) -> int:
        return sum(rate * max(0, at - begin) for begin in begins)

    progress.look(0.0, 0)
    steps = [(at, f"{i}") for i, at in enumerate(begins)] + [(at, "") for at in looks]
    for now, entry in sorted(steps):
        if entry:
            progress.begin(entry, float(now))
        else:
            progress.look(float(now), total(now))
    for i, begin in enumerate(begins):
        assert progress.output_tokens(f"{i}", float(end), total(end)) == rate * (end - begin)


@given(
    events=st.lists(st.tuples(st.sampled_from("bel"), st.integers(0, 3), st.floats(0, 10), st.integers(-50, 500))),
)
def test_it_is_never_negative_and_never_more_than_was_generated_since_the_start(
    events: list[tuple[str, int, float, int]],
) -> None:
    progress, now, total, generated = Progress(), 0.0, 0, 0
    progress.look(now, total)
    for kind, number, passed, more in events:
        now += passed
        if more < 0:
            total = 0  # started again
        else:
            total, generated = total + more, generated + more
        match kind:
            case "b":
                progress.begin(f"{number}", now)
            case "e":
                progress.end(f"{number}", now)
            case _:
                progress.look(now, total)
        assert all(progress.output_tokens(f"{n}", now, total) >= 0 for n in range(4))

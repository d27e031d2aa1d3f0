"""The lengths of ended jobs: counted exactly, bounded, and nothing forged counts for much."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.events import EndedTokens
from broker.recent_mix import MixTally, RecentMix, parse_mix

TOKENS = st.integers(1, 10**9)
JOBS = st.lists(st.builds(EndedTokens, TOKENS, TOKENS, st.just(0)), max_size=50)


def written(*groups: list[EndedTokens]) -> list[str]:
    tally = MixTally()
    texts: list[str] = []
    for group in groups:
        tally.add(group)
        texts.append(tally.take())
    assert tally.take() == ""
    return texts


@given(JOBS, JOBS)
def test_sums_are_exact_however_they_were_written(first: list[EndedTokens], second: list[EndedTokens]) -> None:
    mix = parse_mix(written(first, second))
    every = first + second
    assert mix.jobs == len(every)
    assert mix.tokens == sum(job.prompt + job.output for job in every)
    assert mix == parse_mix(written(second + first))


@given(JOBS)
def test_lengths_that_differ_much_are_in_different_classes(jobs: list[EndedTokens]) -> None:
    mix = parse_mix(written(jobs))
    for one in mix.length_classes():
        prompt, output = one.work.prompt, one.longest - one.work.prompt
        close = [job for job in jobs if 0.6 < prompt / job.prompt < 1.7 and 0.3 < output / job.output < 3.1]
        assert close, (prompt, output)


def test_jobs_that_failed_tell_nothing() -> None:
    assert parse_mix(written([EndedTokens(0, 0, 0), EndedTokens(5, 0, 0)])) == RecentMix()
    assert RecentMix().tokens_a_job == 0


@given(st.lists(st.text(max_size=40), max_size=5))
def test_rubbish_is_passed_over(texts: list[str]) -> None:
    for one in parse_mix(texts).classes:
        assert 1 <= one.jobs <= min(one.prompt_tokens, one.output_tokens)


def test_what_cannot_be_counts_nothing() -> None:
    forged = ["-1:5:5", "2:1:5", "1:99999999999999:1", "1:2", "1:2:3:4", "0:0:0", "١:1:1", "1e3:1:1", "1:5:7"]
    assert parse_mix(forged).jobs == 1
    assert parse_mix([" ".join(["1:5:7"] * 5000)]).jobs == 1000

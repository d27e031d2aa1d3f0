"""The work that is left against a list of jobs that is looked through every time."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.backlog import Backlog
from broker.throughput import work_of

LEAST = 0.05  # of the work of all is always left: jobs that outlast their prediction are not done


@dataclass(frozen=True)
class Job:
    start: float
    prompt: int
    output: int

    def share_left(self, step: float) -> float:
        return 1 - (step - self.start) / max(self.output, 1)


jobs_in_flight = st.lists(
    st.builds(Job, st.floats(0, 1000), st.integers(1, 5000), st.integers(1, 3000)), min_size=1, max_size=20
)


def backlog_of(jobs: list[Job]) -> Backlog:
    backlog = Backlog()
    for job in jobs:
        backlog.add(job.start, job.prompt, job.output)
    return backlog


@given(jobs=jobs_in_flight, step=st.floats(0, 5000))
def test_decoding_goes_on_a_token_a_step_in_each_job(jobs: list[Job], step: float) -> None:
    left = backlog_of(jobs).left(step)
    for name in ("steps", "context_steps"):
        works = [getattr(work_of(job.prompt, job.output), name) for job in jobs]
        even = sum(work * job.share_left(step) for work, job in zip(works, jobs, strict=True))
        expected = min(max(even, LEAST * sum(works)), sum(works))
        assert getattr(left, name) == pytest.approx(expected, rel=1e-6, abs=1e-3)


@given(jobs=jobs_in_flight, steps=st.lists(st.floats(0, 5000), min_size=2, max_size=2))
def test_it_only_gets_less(jobs: list[Job], steps: list[float]) -> None:
    backlog = backlog_of(jobs)
    earlier, later = (backlog.left(step) for step in sorted(steps))
    assert later.steps <= earlier.steps + 1e-6
    assert later.context_steps <= earlier.context_steps + 1e-3


@given(jobs=jobs_in_flight, computed=st.lists(st.integers(0, 20_000), max_size=10))
def test_prompts_are_left_until_the_engine_says_that_it_computed_them(jobs: list[Job], computed: list[int]) -> None:
    backlog = backlog_of(jobs)
    for tokens in computed:
        backlog.computed(tokens)
    left = backlog.left(0.0)
    prompts = sum(job.prompt for job in jobs)
    share = max(0, prompts - sum(computed)) / prompts
    assert left.prompt == pytest.approx(share * prompts, abs=1e-6)
    assert left.prompt_squared == pytest.approx(share * sum(job.prompt**2 for job in jobs))
    assert left.tokens == pytest.approx(left.prompt + left.steps)


@given(
    jobs=jobs_in_flight,
    data=st.data(),
    errors=st.lists(st.floats(0.2, 5), min_size=20, max_size=20),
    step=st.floats(0, 10_000),
)
def test_nothing_is_left_after_all_jobs_are_gone(
    jobs: list[Job], data: st.DataObject, errors: list[float], step: float
) -> None:
    """In whatever order they end, and however wrong their predicted prompts were: errors do not add up."""
    backlog = backlog_of(jobs)
    for job, error in data.draw(st.permutations(list(zip(jobs, errors, strict=False)))):
        true = round(job.prompt * error)
        backlog.computed(true)
        backlog.remove(job.start, job.prompt, job.output, true)
    assert backlog.left(step) == pytest.approx((0, 0, 0, 0, 0), abs=1e-2)
    backlog.add(step, 700, 30)
    assert backlog.left(step) == pytest.approx(work_of(700, 30), rel=1e-3, abs=0.1)


@given(jobs=jobs_in_flight, step=st.floats(0, 2000))
def test_a_job_that_went_back_unstarted_leaves_what_the_others_leave(jobs: list[Job], step: float) -> None:
    backlog = backlog_of([*jobs, Job(500.0, 777, 333)])
    backlog.remove(500.0, 777, 333, 0.0)
    assert backlog.left(step) == pytest.approx(backlog_of(jobs).left(step), rel=1e-6, abs=0.1)

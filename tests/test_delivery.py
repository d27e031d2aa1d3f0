"""Which failures may pass, and when a job is tried again."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.delivery import LONGEST_DELAY_S, delay_s, may_pass, retry_s
from broker.jobs import BATCH_CANCELLED, BATCH_EXPIRED, REQUEST_TIMEOUT


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_says_nothing_against_the_request_may_pass(status: int) -> None:
    assert may_pass(status)


@pytest.mark.parametrize("status", [0, 200, 400, 401, 404, 413, 422, 501, 505, -1, 10**9])
def test_what_the_engine_refuses_does_not(status: int) -> None:
    assert not may_pass(status)
    assert retry_s(status, "", 1, random.Random(0), 1.0) == 0


def test_of_the_errors_without_an_answer_only_a_timeout_may_pass() -> None:
    assert may_pass(0, REQUEST_TIMEOUT)
    assert not any(may_pass(500, code) for code in (BATCH_CANCELLED, BATCH_EXPIRED, "what is this"))


@given(st.integers(-5, 10**6), st.floats(1e-3, 600), st.integers())
def test_delays_double_up_to_the_longest_and_half_is_chance(attempt: int, first_s: float, seed: int) -> None:
    delay = delay_s(attempt, random.Random(seed), first_s)
    doubled = min(first_s * 2.0 ** min(max(attempt - 1, 0), 100), LONGEST_DELAY_S)
    assert doubled / 2 <= delay <= doubled


def test_jobs_that_failed_together_do_not_come_back_together() -> None:
    rng = random.Random(1)
    delays = [delay_s(2, rng, 1.0) for _ in range(100)]
    assert len(set(delays)) == 100
    assert max(delays) - min(delays) > 0.5

"""The report of a batch, from plain results."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_results import columns, result
from rich.console import Console

from broker.jobs import BATCH_CANCELLED, BatchCounts, Result
from broker.throughput import DeviceKind, Profile
from tokenyard.batch_bound import Reached, bound_seconds, reached, share_of_ideal
from tokenyard.batch_report import BatchReport, PredictionError, busy_seconds, prediction_error, report_of
from tokenyard.ended_jobs import EndedJobs, Ending, JobColumns
from tokenyard.known_devices import KnownDevice
from tokenyard.views.batch_report import reached_line, report_lines, report_view

#: One request at a time, 10 ms a prompt token and 1 s a step: easy to reckon with.
ONE_SEAT = Profile(0.0, 0.01, 0.0, 1.0, 0.0, 0.0, kv_tokens=1000, seats=1)


def device(profile: Profile | None = ONE_SEAT, *, pool: str = "p", kind: str = "GPU") -> KnownDevice:
    # With room for any prompt in a step, steps are those of decoding alone.
    known = DeviceKind(profile, max_batched_tokens=10**9) if profile else None
    return KnownDevice(pool, kind, "ready", 1000, 1000, known)


def report(*results: Result, devices: dict[str, KnownDevice] | None = None, **counts: Any) -> BatchReport:
    counts = {"total": len(results), "done": len(results), "sealed": True} | counts
    return report_of("b", BatchCounts(**counts), columns(*results), devices or {})


def shown(what: BatchReport, width: int = 80) -> list[str]:
    console = Console(width=width, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(report_view(what), soft_wrap=False)
    return captured.get().splitlines()


# --- the numbers of ended jobs


def test_what_is_kept_of_a_result() -> None:
    jobs = columns(
        result("a", dispatched=10, started=11, ended=12, predicted_s=3.0, predicted_output_tokens=7, cached_tokens=4),
        result("", status_code=0, error_code=BATCH_CANCELLED, ended=20),
        result("a", dispatched=11, ended=13, status_code=500, attempt=3),
    )
    assert jobs.devices == ("a",)
    assert jobs.device.tolist() == [0, -1, 0]
    assert jobs.ending.tolist() == [Ending.DONE, Ending.CANCELLED, Ending.FAILED]
    assert jobs.dispatched.tolist() == [10, 0, 11]
    assert (jobs.predicted_s[0], jobs.predicted_output_tokens[0], jobs.cached_tokens[0]) == (3.0, 7, 4)
    assert jobs.attempt.tolist() == [1, 1, 3]
    assert len(jobs.ran()) == 2


def test_an_end_that_was_rounded_below_its_beginning() -> None:
    jobs = columns(result("a", dispatched=10.0, ended=9.999), result("a", dispatched=10.0, ended=9.9))
    assert jobs.ran().ended.tolist() == [10.0]


def test_the_same_name_in_two_pools_is_two_devices() -> None:
    jobs = EndedJobs()
    for pool in ("p", "q", "p"):
        jobs.add([result("w", dispatched=1, ended=2)], pool)
    assert jobs.columns().devices == ("p/w", "q/w")
    assert jobs.columns().device.tolist() == [0, 1, 0]


@given(
    st.floats(),
    st.floats(),
    st.floats(),
    st.integers(-(10**20), 10**20),
)
def test_whatever_a_result_says_a_report_comes_of_it(first: float, second: float, third: float, number: int) -> None:
    rubbish = result(
        submitted=first, dispatched=second, started=third, ended=first, predicted_s=third, prompt_tokens=number
    )
    good = result(dispatched=5, ended=6)
    shown(report(rubbish, good, devices={"w": device()}))


# --- single figures


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=12))
def test_busy_seconds_are_those_with_a_job(jobs: list[tuple[int, int]]) -> None:
    start = np.array([begin for begin, _ in jobs], dtype=float)
    end = np.array([begin + length for begin, length in jobs], dtype=float)
    covered = {second for begin, length in jobs for second in range(begin, begin + length)}
    assert busy_seconds(start, end) == len(covered)


def test_prediction_errors() -> None:
    predicted, actual = np.array([2.0, 1.0, 5.0, 0.0, 3.0]), np.array([1.0, 2.0, 5.0, 4.0, 0.0])
    error = prediction_error(predicted, actual)
    assert error == PredictionError(3, 0.5, 0.0)
    assert prediction_error(predicted * 0, actual) is None


# --- the report


def test_a_report() -> None:
    found = report(
        result("a", dispatched=100, ended=102, prompt_tokens=300, output_tokens=100, predicted_s=3.0),
        result("a", dispatched=101, ended=104, prompt_tokens=100, output_tokens=60, attempt=2),
        result("b", dispatched=100, ended=110, prompt_tokens=200, output_tokens=240, predicted_output_tokens=120),
        result("b", dispatched=105, ended=106, status_code=500, prompt_tokens=0, output_tokens=0),
        result("", status_code=0, error_code=BATCH_CANCELLED, ended=120),
        result("", status_code=0, error_code="attempts_exhausted", ended=120, attempt=3),
        devices={"a": device(None, kind="H100")},
        total=9,
        done=3,
        failed=2,
        cancelled=1,
        wasted_prompt_tokens=5,
        wasted_output_tokens=6,
        copies=2,
        copies_won=1,
    )
    assert (found.batch, found.state, found.retried) == ("b", "running", 2)
    assert (found.began, found.span_s, found.tokens_per_s, found.jobs_per_s) == (100, 10, 100, 0.4)
    assert [row.name for row in found.devices] == ["a", "b", ""]
    a, b, nowhere = found.devices
    assert (a.device, a.jobs, a.failed, a.prompt_tokens, a.output_tokens) == ("H100", 2, 0, 400, 160)
    assert (a.busy_share, a.tokens_per_s) == (0.4, 140)
    assert (a.median_s, a.time_error, a.length_error) == (2.5, PredictionError(1, 0.5, 0.5), None)
    assert (b.device, b.jobs, b.failed, b.busy_share) == ("", 2, 1, 1)
    assert (b.median_s, b.p95_s, b.length_error) == (10, 10, PredictionError(1, 0.5, -0.5))
    assert (nowhere.jobs, nowhere.failed, nowhere.median_s) == (1, 1, None)
    assert found.dispatch_to_result is not None
    assert (found.dispatch_to_result.p50, found.dispatch_to_result.max) == (3, 10)
    assert found.submit_to_result is not None
    assert (found.submit_to_result.p50, found.submit_to_result.max) == (4, 11)
    lines = report_lines(found)
    assert lines[:2] == [
        "batch b: running",
        "9 jobs: 3 done, 2 failed, 1 cancelled, 3 not ended yet, 2 of them after a retry",
    ]
    assert lines[2].endswith("to the last end: 0.4 jobs/s, 100 tokens/s")
    assert lines[-1] == "wasted: 5 prompt and 6 output tokens; 2 second runs of stragglers, 1 of them first"


def test_nothing_has_ended_yet() -> None:
    found = report(total=3, done=0)
    assert (found.span_s, found.devices, found.submit_to_result) == (0, [], None)
    assert shown(found) == [
        "batch b: running",
        "3 jobs: 0 done, 0 failed, 0 cancelled, 3 not ended yet",
        "share of the bound not known: no job has ended on a device yet",
    ]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_tables_fit(width: int) -> None:
    found = report(
        *(result("a-name-" * 9 + str(n), dispatched=1, ended=9, predicted_s=1e3 * n) for n in range(3)),
        devices={"a-name-" * 9 + "1": device(kind="NVIDIA H100 80GB HBM3")},
    )
    lines = shown(found, width)
    assert max(map(len, lines)) <= width
    for word in ("tokens/s", "busy", "median", "length error", "from submission"):
        assert width < 80 or any(word in line for line in lines)


def test_names_cannot_steer_the_terminal() -> None:
    lines = shown(report(result("\x1b[2J[bold]", dispatched=1, ended=2)))
    assert any(line.startswith("?[2J[bold]") for line in lines)


# --- the share of the bound


def jobs_of(*workers: str, seconds: float, prompt_tokens: int = 100, output_tokens: int = 10) -> list[Result]:
    """Jobs that run one after the other on each of these devices, each for so long."""
    ends: dict[str, float] = dict.fromkeys(workers, 100.0)
    found: list[Result] = []
    for worker in workers:
        begin = ends[worker]
        ends[worker] = begin + seconds
        lengths = {"prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
        found.append(result(worker, dispatched=begin, ended=begin + seconds, **lengths))
    return found


def ran(*results: Result) -> JobColumns:
    return columns(*results).ran()


def test_the_bound_of_one_device() -> None:
    # A prompt of 100 tokens takes 1 s, nine steps take 9 s: 10 s a job, and each took 20.
    found = reached(ran(*jobs_of("a", "a", "a", seconds=20)), {"a": device()})
    assert (found.of, found.note) == ("bound", "")
    assert (found.share, found.bound_jobs_per_s) == (pytest.approx(0.5), pytest.approx(0.1))


def test_the_bound_shares_the_jobs_out_best() -> None:
    # All three jobs on the slow one; with a fast one beside it, three times as fast, the two would need 7.5 s.
    fast = replace(ONE_SEAT, prefill_b=0.01 / 3, decode_d=1 / 3)
    jobs = ran(
        *jobs_of("slow", "slow", "slow", seconds=10), *jobs_of("fast", seconds=0.001, output_tokens=0, prompt_tokens=0)
    )
    found = reached(jobs, {"slow": device(), "fast": device(fast), "never seen": device()})
    assert found.share == pytest.approx(7.5 / 30, rel=1e-3)


def test_cached_tokens_are_no_work() -> None:
    jobs = ran(result("a", dispatched=1, ended=11, prompt_tokens=100, output_tokens=10, cached_tokens=100))
    assert bound_seconds(jobs, {"a": device()}) == pytest.approx(9)


def test_the_pools_of_a_batch_have_bounds_of_their_own() -> None:
    jobs = EndedJobs()
    jobs.add(jobs_of("w", "w", seconds=15), "p")
    jobs.add(jobs_of("w", seconds=15), "q")
    found = reached(jobs.columns().ran(), {"p/w": device(pool="p"), "q/w": device(pool="q")})
    assert found.share == pytest.approx(20 / 30)
    assert found.bound_jobs_per_s == pytest.approx(3 / 20)


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 200)), min_size=1, max_size=60))
def test_a_schedule_of_the_model_never_passes_the_bound(lengths: list[tuple[int, int]]) -> None:
    at = 100.0
    results: list[Result] = []
    for prompt, output in lengths:
        until = at + ONE_SEAT.alone_seconds(prompt, output)
        results.append(result("a", dispatched=at, ended=until, prompt_tokens=prompt, output_tokens=output))
        at = until
    found = reached(ran(*results), {"a": device()})
    assert found.share is not None
    assert found.share == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("devices", "note"),
    [
        ({}, "no profile known: run `tokenyard profile` for the share of the bound"),
        ({"a": device(None)}, "no profile known: run `tokenyard profile` for the share of the bound"),
        ({"a": device()}, "no profile known of 1 of 2 devices: run `tokenyard profile` for the share of the bound"),
    ],
)
def test_without_profiles_it_is_the_share_of_the_ideal(devices: dict[str, KnownDevice], note: str) -> None:
    # Both work 20 s at the same pace; then one goes on alone for 20 s: three quarters of what both could have done.
    jobs = ran(*jobs_of(*"a" * 20, *"b" * 40, seconds=1))
    found = reached(jobs, devices)
    assert (found.of, found.note, found.bound_jobs_per_s) == ("ideal", note, None)
    assert found.share == pytest.approx(0.75, abs=0.01)
    assert share_of_ideal(jobs) == found.share
    line = f"75 % of the ideal (the sum of each device's best sustained rate); {note}"
    assert reached_line(found) == line


def test_no_share_without_tokens() -> None:
    found = reached(ran(*jobs_of("a", seconds=1, prompt_tokens=0, output_tokens=0)), {"a": device()})
    assert reached_line(found) == "share of the bound not known: no job with any tokens is done"


def test_a_device_faster_than_its_profile_is_said() -> None:
    line = reached_line(Reached(1.5, "bound", 2.0))
    assert line.startswith("150 % of the bound, 2 jobs/s")
    assert line.endswith("faster than the profiles say: measure them again")
    assert "faster" not in reached_line(Reached(1.01, "bound", 2.0))

"""Adding up a run: rates, the best of each device, and the share of the ideal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.heartbeat import Heartbeat, WorkerState
from tokenyard.device_tally import DeviceSummary, DeviceTally


def beat(
    seen: float,
    tokens: int,
    *,
    state: WorkerState = "ready",
    running: int = 4,
    incarnation: str = "a",
) -> Heartbeat:
    """A heartbeat whose counters say ``tokens``, a tenth of them output."""
    return Heartbeat(
        incarnation=incarnation,
        state=state,
        engine="simulated",
        model="m",
        device="cpu x1",
        version="simulated 1",
        host="h",
        pid=1,
        jobs_total=0,
        prompt_tokens_per_s=0,
        output_tokens_per_s=0,
        prompt_tokens_total=tokens - tokens // 10,
        output_tokens_total=tokens // 10,
        steps_total=0,
        max_batched_tokens=2048,
        profile="",
        kv_tokens_total=1000,
        kv_tokens_free=1000,
        seats=4,
        context_tokens=100,
        running=running,
        waiting=0,
        free_memory_bytes=0,
        seen=seen,
    )


def run(
    tally: DeviceTally, name: str, rates: Iterable[float], *, start: float = 1000.0, interval: float = 0.5
) -> float:
    """Feed a device that works at these tokens a second, one for each interval; returns when it ended."""
    now, total = start, 0.0
    tally.observe(now, name, beat(now, 0, running=0))
    for rate in rates:
        now += interval
        total += rate * interval
        tally.observe(now, name, beat(now, round(total), running=4 if rate else 0))
    return now


def job(tally: DeviceTally, worker: str, at: float, *, tokens: int = 100, ok: bool = True) -> None:
    tally.job_ended(worker, prompt_tokens=tokens // 2, output_tokens=tokens - tokens // 2, ok=ok, at=at)


def of(tally: DeviceTally, name: str) -> DeviceSummary:
    return next(summary for summary in tally.summaries() if summary.name == name)


def test_nothing_seen() -> None:
    tally = DeviceTally()
    assert (tally.summaries(), tally.elapsed_s, tally.share_of_ideal()) == ([], 0.0, None)


def test_a_device_at_its_best_all_the_time() -> None:
    tally = DeviceTally()
    end = run(tally, "fast", [100] * 120)
    job(tally, "fast", end, tokens=6000)
    assert tally.elapsed_s == 60
    assert tally.share_of_ideal() == pytest.approx(1.0)
    fast = of(tally, "fast")
    assert (fast.device, fast.engine, fast.model, fast.jobs, fast.failed) == ("cpu x1", "simulated", "m", 1, 0)
    assert fast.best_tokens_per_s == pytest.approx(100)
    assert fast.tokens_per_s == pytest.approx(100)
    assert fast.output_tokens_per_s == pytest.approx(50)
    assert fast.busy_share == 1.0


def test_a_device_that_idles_for_half_the_run() -> None:
    tally = DeviceTally()
    run(tally, "fast", [100] * 120)
    run(tally, "slow", [50] * 60 + [0] * 60)
    assert tally.share_of_ideal() == pytest.approx((100 * 60 + 50 * 30) / (150 * 60))


def test_a_device_that_joins_late_counts_from_then_on() -> None:
    tally = DeviceTally()
    tally.observe(1000, "late", beat(1000, 0, state="starting", running=0))
    run(tally, "early", [100] * 120)
    tally.observe(1040, "late", beat(1040, 0, state="starting", running=0))
    end = run(tally, "late", [50] * 40, start=1040.5)
    job(tally, "late", end)
    assert tally.share_of_ideal() == pytest.approx(1.0)
    assert of(tally, "late").busy_share == pytest.approx(20 / 60.5)


def test_gaps_do_not_lower_the_best() -> None:
    tally = DeviceTally()
    run(tally, "fast", ([100] * 10 + [0] * 10) * 6)
    assert of(tally, "fast").best_tokens_per_s == pytest.approx(100)
    assert tally.share_of_ideal() == pytest.approx(0.5)


def test_a_spike_is_no_sustained_rate() -> None:
    tally = DeviceTally()
    run(tally, "fast", [100] * 40 + [1000] * 2 + [100] * 40)
    assert of(tally, "fast").best_tokens_per_s == pytest.approx((9 * 100 + 1000) / 10)


def test_a_faster_stretch_is_the_best() -> None:
    tally = DeviceTally()
    run(tally, "fast", [100] * 40 + [300] * 20 + [100] * 40)
    assert of(tally, "fast").best_tokens_per_s == pytest.approx(300)


def test_the_tokens_of_a_long_step_are_not_those_of_a_moment() -> None:
    tally = DeviceTally()
    for half_seconds in range(76):  # steps of 6 s and 1,000 tokens
        tally.observe(0.0, "a", beat(1000 + half_seconds / 2, half_seconds // 12 * 1000))
    assert of(tally, "a").best_tokens_per_s == pytest.approx(1000 / 6)


def test_a_run_shorter_than_the_window_counts_all_its_work() -> None:
    tally = DeviceTally()
    run(tally, "fast", [0, 0, 80, 120, 0])
    assert of(tally, "fast").best_tokens_per_s == pytest.approx(100)
    assert tally.share_of_ideal() == pytest.approx(100 / (100 * 2.5))


def test_what_was_done_before_the_run_is_not_counted() -> None:
    tally = DeviceTally()
    for second in range(5):
        tally.observe(second, "old", beat(1000 + second, 1_000_000 + 100 * second))
    assert of(tally, "old").best_tokens_per_s == pytest.approx(100)


def test_counters_that_begin_anew() -> None:
    tally = DeviceTally()
    end = run(tally, "fast", [100] * 40)
    tally.observe(end + 1, "fast", beat(end + 1, 0, state="starting", running=0))
    tally.observe(end + 30, "fast", beat(end + 30, 0))
    for step in range(1, 21):
        tally.observe(end + 30 + step / 2, "fast", beat(end + 30 + step / 2, 50 * step))
    assert of(tally, "fast").best_tokens_per_s == pytest.approx(100, rel=0.01)
    assert tally.share_of_ideal() == pytest.approx(1.0, rel=0.01)  # nothing could run while it started again


def test_a_worker_that_joins_anew_and_goes_on_counting() -> None:
    tally = DeviceTally()
    end = run(tally, "fast", [100] * 40)
    tally.observe(end + 20, "fast", beat(end + 20, 0, running=0, incarnation="b"))
    tally.observe(end + 20.5, "fast", beat(end + 20.5, 9000, incarnation="b"))
    tally.observe(end + 21.0, "fast", beat(end + 21.0, 9050, incarnation="b"))
    assert of(tally, "fast").best_tokens_per_s == pytest.approx(100, rel=0.05)


def test_the_same_heartbeat_again_changes_nothing() -> None:
    once, often = DeviceTally(), DeviceTally()
    for second in range(20):
        for tally, times in ((once, 1), (often, 3)):
            for again in range(times):
                tally.observe(second + again / 10, "fast", beat(1000 + second, 100 * second))
    assert once.summaries() == often.summaries()


def test_a_clock_that_is_set_back_costs_one_interval() -> None:
    tally = DeviceTally()
    run(tally, "fast", [100] * 40)
    for step in range(41):
        tally.observe(1020.5 + step / 2, "fast", beat(500 + step / 2, 2050 + 50 * step))
    assert of(tally, "fast").best_tokens_per_s == pytest.approx(100)
    assert tally.share_of_ideal() == pytest.approx(1.0)
    job(tally, "fast", 1040.5)
    assert of(tally, "fast").busy_share == pytest.approx(40 / 40.5)


def test_no_work_without_time() -> None:
    tally = DeviceTally()
    run(tally, "fast", [100] * 40)
    tally.observe(1020.1, "fast", beat(1020, 999_999))
    assert of(tally, "fast").best_tokens_per_s == pytest.approx(100)


def test_a_device_that_never_worked_is_left_out() -> None:
    tally = DeviceTally()
    run(tally, "fast", [100] * 40)
    run(tally, "idle", [0] * 40)
    assert tally.share_of_ideal() == pytest.approx(1.0)
    assert of(tally, "idle").best_tokens_per_s == 0


def test_only_idle_devices_have_no_ideal() -> None:
    tally = DeviceTally()
    end = run(tally, "idle", [0] * 10)
    job(tally, "", end, ok=False)
    assert tally.share_of_ideal() is None
    nobody = of(tally, "")
    assert (nobody.jobs, nobody.failed, nobody.busy_share) == (1, 1, 0.0)


def test_jobs_without_any_heartbeat() -> None:
    tally = DeviceTally()
    job(tally, "w", 10.0, tokens=100)
    job(tally, "w", 20.0, tokens=300, ok=False)
    summary = of(tally, "w")
    assert (summary.jobs, summary.failed, summary.prompt_tokens, summary.output_tokens) == (2, 1, 200, 200)
    assert summary.tokens_per_s == 40
    assert tally.share_of_ideal() is None


@dataclass(frozen=True)
class Step:
    """What a device does until its next heartbeat."""

    seconds: float
    tokens: int
    state: WorkerState
    running: int
    anew: bool
    incarnation: str


steps = st.builds(
    Step,
    seconds=st.floats(0, 40),
    tokens=st.integers(0, 100_000),
    state=st.sampled_from(("starting", "ready", "draining", "paused")),
    running=st.integers(0, 8),
    anew=st.booleans(),
    incarnation=st.sampled_from("aab"),
)


@given(st.dictionaries(st.sampled_from("abc"), st.lists(steps, max_size=40), max_size=3), st.lists(st.floats(0, 1e4)))
def test_whatever_the_heartbeats_say_the_figures_make_sense(devices: dict[str, list[Step]], ends: list[float]) -> None:
    tally = DeviceTally()
    for name, script in devices.items():
        now, total = 1000.0, 0
        for step in script:
            now += step.seconds
            total = step.tokens if step.anew else total + step.tokens
            tally.observe(
                now, name, beat(now, total, state=step.state, running=step.running, incarnation=step.incarnation)
            )
    for at in ends:
        job(tally, "a", 1000 + at)
    share = tally.share_of_ideal()
    assert share is None or 0 <= share <= 1
    assert math.isfinite(tally.elapsed_s)
    for summary in tally.summaries():
        figures = astuple(summary)[4:]
        assert all(math.isfinite(value) and value >= 0 for value in figures)
        assert summary.busy_share <= 1


@given(st.lists(st.lists(st.integers(1, 50).map(lambda n: 20.0 * n), min_size=1, max_size=80), min_size=1, max_size=3))
def test_devices_that_never_idle_are_bounded_by_their_slowest_stretch(devices: list[list[float]]) -> None:
    tally = DeviceTally()
    for number, rates in enumerate(devices):
        run(tally, f"d{number}", rates)
        best = of(tally, f"d{number}").best_tokens_per_s
        assert sum(rates) / len(rates) - 1e-6 <= best <= max(rates) + 1e-6
    share = tally.share_of_ideal()
    assert share is not None
    assert share >= min(min(rates) for rates in devices) / max(max(rates) for rates in devices) - 1e-9

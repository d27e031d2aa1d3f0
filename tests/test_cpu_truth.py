"""``benchmarks.planner_truth --cpu``: its candidates, predictions and figures, without engines."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.planning.cpu_truth import (
    BLOCK_TOKENS,
    SEATS,
    Candidate,
    Predictor,
    candidates,
    groups,
    kv_tokens,
    measured_engine,
    outcomes,
    predicted,
    rows_of,
    shown,
    summary_of,
)
from broker.length_class import LengthClass
from broker.profiles import ProfileRecord, ProfileValues
from broker.throughput import Profile
from planner.estimate import Estimator
from tokenyard.model_config import read_model

SHAPE = read_model("demo")
MIX = [LengthClass.of(60, 40, 3), LengthClass.of(200, 30)]


def record(cores: int, dtype: str, slower: float = 1.0) -> ProfileRecord:
    times = (0.02, 5e-4, 1e-7, 0.03, 1e-4, 4e-5)
    profile = Profile(*(slower * t for t in times), kv_tokens=4000, seats=SEATS)
    return ProfileRecord(
        device=f"cpu x{cores}", model=SHAPE.name, engine="vllm", version="1", dtype=dtype, max_batched_tokens=4096,
        measured=date(2026, 1, 1), profile=ProfileValues.of(profile),
    )  # fmt: skip


def estimator() -> Estimator:
    return Estimator(
        SHAPE, [measured_engine([record(2, "bfloat16")]), measured_engine([record(1, "float32", 3.0)] * 2)]
    )


def test_each_candidate_has_both_cores_and_no_core_twice() -> None:
    for candidate in candidates():
        words = [spec.options for spec in candidate.specs([4, 7])]
        cores = [core for w in words for core in w[w.index("--cores") + 1].split(",")]
        assert sorted(cores) == ["4", "7"]
        memory = sum(float(w[w.index("--kv-gib") + 1]) for w in words)
        assert memory == pytest.approx(candidate.kv_gib)
    assert len(set(candidates())) == 8
    assert set(shown()) < set(candidates())
    assert {(c.cores, c.dtype) for c in shown()} == {(2, "bfloat16"), (1, "float32")}


def test_engines_side_by_side_are_one_of_mean_times() -> None:
    both = measured_engine([record(1, "float32", 1.0), record(1, "float32", 3.0)])
    assert both.units == 1
    assert both.profile.decode_d == pytest.approx(2 * 0.03)


@given(st.sampled_from(candidates()))
def test_memory_is_whole_blocks_less_one(candidate: Candidate) -> None:
    held = kv_tokens(candidate, SHAPE)
    each = candidate.kv_gib * (1 << 30) / candidate.engines / SHAPE.kv_bytes(candidate.dtype)
    assert held % BLOCK_TOKENS == 0
    assert each - 2 * BLOCK_TOKENS < held <= each - BLOCK_TOKENS


def test_the_times_of_what_was_profiled_are_taken_and_the_others_lie_between() -> None:
    known = estimator()
    rates = {c: predicted(c, known, SHAPE, MIX) for c in candidates()}
    for dtype in ("bfloat16", "float32"):
        one, two = (rates[Candidate(*layout, dtype, 0.5)] for layout in ((1, 2), (2, 1)))
        assert one < two < 2 * one  # two cores in one engine share what does not divide
    assert rates[Candidate(1, 2, "float32", 0.5)] < rates[Candidate(1, 2, "bfloat16", 0.5)]
    for candidate, rate in rates.items():
        assert rate <= rates[replace(candidate, kv_gib=0.5)]


def test_all_are_measured_and_the_profiled_ones_with_all_others() -> None:
    assert {c for group in groups() for c in group} == set(candidates())
    for group in groups():
        assert set(shown()) <= set(group)
        names = [spec.name for c in group for spec in c.specs([4, 7])]
        assert len(set(names)) == len(names)


def predictor() -> Predictor:
    known = measured_engine([record(2, "bfloat16")]), measured_engine([record(1, "float32", 3.0)] * 2)
    return Predictor(known, SHAPE, MIX)


def measured_at(*speeds: float) -> list[dict[Candidate, float]]:
    """What the profiled ones do is as predicted, of the others 4 % less; the groups at these speeds."""
    known = predictor()
    return [
        {c: known.rate(c) * speed * (1.0 if c in shown() else 1 / 1.04) for c in group}
        for group, speed in zip(groups(), speeds, strict=True)
    ]


def test_figures() -> None:
    found = outcomes(predictor(), measured_at(1.0, 1.0, 1.0))
    summary = summary_of(found, 99.0)
    assert summary["worst_prediction_error"] == pytest.approx(0.04)  # those that were profiled do not count
    assert summary["worst_prediction_error_by_profiles"] == pytest.approx(0.04)
    assert summary["profiling_s"] == 99.0
    rates = {one.candidate: one.measured for one in found}
    chosen = max(candidates(), key=predictor().rate)
    assert summary["best_found"] == int(rates[chosen] == max(rates.values()))
    assert summary["chosen_share_of_best"] == pytest.approx(rates[chosen] / max(rates.values()))
    assert sum(row["profiled"] == "yes" for row in rows_of(found)) == 2 * len(groups())


def test_a_machine_that_slows_down_is_not_the_predictions_fault_and_is_told() -> None:
    found = outcomes(predictor(), measured_at(1.0, 0.5, 1.0))
    summary = summary_of(found, 99.0)
    assert summary["worst_prediction_error"] == pytest.approx(0.04)
    assert summary["worst_prediction_error_by_profiles"] == pytest.approx(1.08)
    assert {round(one.speed, 6) for one in found} == {1.0, 0.5}
    steady = summary_of(outcomes(predictor(), measured_at(1.0, 1.0, 1.0)), 99.0)
    assert summary["chosen_share_of_best"] == pytest.approx(steady["chosen_share_of_best"])


def test_an_error_of_one_candidate_stays_its_own() -> None:
    measured = measured_at(1.0, 1.0, 1.0)
    odd = next(c for c in groups()[0] if c not in shown())
    measured[0][odd] /= 1.25
    assert summary_of(outcomes(predictor(), measured), 99.0)["worst_prediction_error"] == pytest.approx(0.3)


def test_one_profiled_engine_that_is_slower_now_makes_the_predictions_from_its_profile_lower() -> None:
    known = predictor()
    rates = {c: known.rate(c) for c in candidates()}
    slow, other = shown()
    now = known.put_right({slow: rates[slow] / 2, other: rates[other]})
    assert now.rate(slow) == pytest.approx(rates[slow] / 2)
    assert now.rate(other) == pytest.approx(rates[other])
    assert now.rate(replace(slow, kv_gib=0.1)) == pytest.approx(rates[replace(slow, kv_gib=0.1)] / 2)

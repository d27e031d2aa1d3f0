"""``benchmarks.planner_truth`` and ``plan_search`` on tiny data that the tests write."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cluster import BenchmarkError
from benchmarks.planning import gpu_truth
from benchmarks.planning.uniform import MixedCluster, simulated_rate, uniform_row
from broker.length_class import LengthClass
from planner.cluster_plan import PlannedMachine, cluster_plan
from planner.configurations import Space, options_of
from planner.estimate import Estimator, Measured
from planner.inventory import DeviceGroup, Machine
from planner.model_shape import known_shape
from planner.scaling import Law, Times

DEVICE, MODEL = "A100-SXM4-80GB", "Llama-3.1-8B"
LAW = Law(Times(0.008, 4e-5, 2e-9, 0.01, 3e-5, 8e-8), Times(0.002, 1e-5, 0, 0.002, 1e-5, 0))
MIXES = {"short": [LengthClass.of(500, 100)], "long": [LengthClass.of(4000, 50)]}


def write(folder: Path, name: str, rows: Sequence[Sequence[object]]) -> None:
    with (folder / name).open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A model that follows the law at all degrees but one, at which it is twice as slow as any law would have it."""
    (tmp_path / "profiles").mkdir()
    coefficients = ["prefill_a_s", "prefill_b_s_per_tok", "prefill_c_s_per_tok2"]
    coefficients += ["decode_d_s", "decode_e_s_per_req", "decode_f_s_per_ctxtok"]
    times = {n: [t * (2 if n == 8 else 1) for t in LAW.at(n)] for n in (1, 2, 4, 8)}
    fits = [["device", "model", "tp", *coefficients], *([DEVICE, MODEL, n, *times[n]] for n in times)]
    write(tmp_path / "profiles", "fits.csv", fits)
    held = {1: 430_000, 2: 980_000, 4: 2_080_000, 8: 4_280_000}
    rows = [["device", "model", "tp", "free_kv_tokens_replica"], *([DEVICE, MODEL, n, held[n]] for n in held)]
    write(tmp_path / "profiles", "kv.csv", rows)
    points: list[list[object]] = [["device", "model", "tp", "phase", "batch", "tokens", "seconds"]]
    for n, (a, b, c, d, e, f) in times.items():
        points.append([DEVICE, MODEL, n, "prefill", 1, 1000, a + b * 1000 + c * 1e6])
        points.append([DEVICE, MODEL, n, "decode", 10, 100, d + 10 * e + 1000 * f])
    write(tmp_path / "profiles", "profiles.csv", points)
    return tmp_path


def test_what_is_held_back_is_predicted_and_compared(data: Path) -> None:
    (case,) = gpu_truth.cases(data, [DEVICE], [MODEL])
    assert case.shown_degrees == [1, 2]
    four, eight = gpu_truth.prediction_rows([case], MIXES)
    assert (four["tp"], four["from"]) == (4, "tp 1 and 2")
    for mix in MIXES:
        assert four[mix] == pytest.approx(0, abs=0.01)
        assert eight[mix] == pytest.approx(1, abs=0.05)  # it was twice as slow


def test_steps_are_compared_with_the_points(data: Path) -> None:
    four, eight = gpu_truth.step_rows(gpu_truth.cases(data, [DEVICE], [MODEL]), data)
    assert four["prefill predicted"] == pytest.approx(0, abs=1e-6)
    assert eight["decode predicted"] == pytest.approx(0.5, abs=0.01)
    assert eight["decode fitted"] == pytest.approx(0, abs=1e-6)


def test_the_choice_is_judged_by_the_measured_times(data: Path) -> None:
    rows = gpu_truth.choice_rows(gpu_truth.cases(data, [DEVICE], [MODEL]), MIXES)
    assert [row["mix"] for row in rows] == list(MIXES)
    for row in rows:
        share = row["share"]
        assert isinstance(share, float)
        assert share == pytest.approx(1.0) or row["chosen"] != row["best measured"]
        assert share <= 1 + 1e-6


def test_data_without_a_degree_to_hold_back_is_told(data: Path) -> None:
    with pytest.raises(BenchmarkError, match="no device and model measured"):
        gpu_truth.cases(data, ["L4"], [MODEL])
    with pytest.raises(BenchmarkError, match="the shape of the model 'X' is not known"):
        gpu_truth.cases(data, [DEVICE], ["X"])


def test_a_plan_reaches_about_what_is_predicted_in_the_simulator() -> None:
    shape = known_shape(MODEL)
    assert shape is not None
    known = [Measured(DEVICE, MODEL, 1, "", LAW.at(1).profile(100_000, 64), 4096)]
    machine = Machine("m", (DeviceGroup(DEVICE, 1, 80 << 30),), "nvlink")
    (option,), _ = options_of(machine, machine.groups[0], Space(shape, ("bfloat16",), (64,)), Estimator(shape, known))
    mix = [LengthClass.of(300, 40)]
    plan = cluster_plan([PlannedMachine(machine, ((option, 1),))], mix)
    rate = simulated_rate(plan, np.tile(np.array([[300, 40]]), (3000, 1)), 0)
    assert 0.9 * plan.jobs_per_s < rate <= 1.02 * plan.jobs_per_s


def test_a_mixed_cluster_is_compared_with_one_degree_everywhere() -> None:
    lengths = np.tile(np.array([[400, 8], [800, 16]]), (3000, 1))
    cluster = MixedCluster("A100 + T4x2", MODEL, ((DEVICE, 1), ("T4", 2)))
    row = uniform_row(cluster, [], lengths, 0)
    assert row["best uniform"] == "tp 1"  # a T4 holds the model only over two
    assert "T4 tp 2" in str(row["plan"])
    assert isinstance(row["gain"], float)
    assert row["gain"] > 0

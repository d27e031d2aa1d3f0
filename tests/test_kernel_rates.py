"""What a device does at best, from kernel times that others measured; and the package that has them, or has not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from plan_machines import GIB, SMALL

from planner.device_catalogue import find_spec
from planner.estimate import Basis, Estimator
from planner.kernel_rates import KernelTime, kernel_rates
from tokenyard import kernel_database

#: Recorded from aiconfigurator-core 0.12.0: vLLM 0.24.0 on H100 and L40S, vLLM 0.14.0 on A100; m, n, k, microseconds.
_RECORDED = {
    "NVIDIA H100 80GB HBM3": (
        (2048, 16384, 4096, 330.56),
        (2048, 8192, 8192, 366.26),
        (2048, 4096, 4096, 86.685),
        (256, 4096, 4096, 19.581),
        (16, 16384, 4096, 54.703),
        (16, 8192, 8192, 46.438),
        (16, 4096, 4096, 15.543),
        (16, 1024, 1024, 3.9849),
    ),
    "NVIDIA L40S": (
        (2048, 16384, 4096, 1117.9),
        (2048, 8192, 8192, 1134.8),
        (2048, 4096, 4096, 273.78),
        (256, 4096, 4096, 60.615),
        (16, 16384, 4096, 186.65),
        (16, 8192, 8192, 218.77),
        (16, 4096, 4096, 45.340),
        (16, 1024, 1024, 5.6889),
    ),
    "NVIDIA A100-SXM4-80GB": (
        (2048, 16384, 4096, 1019.4),
        (2048, 8192, 8192, 990.76),
        (2048, 4096, 4096, 305.23),
        (16, 16384, 4096, 101.13),
        (16, 8192, 8192, 100.64),
        (16, 4096, 4096, 26.556),
    ),
}


def recorded() -> list[KernelTime]:
    return [
        KernelTime(device, "bfloat16", m, n, k, microseconds / 1e6)
        for device, rows in _RECORDED.items()
        for m, n, k, microseconds in rows
    ]


def test_rates_lie_below_the_data_sheets_and_not_far() -> None:
    rates = {rate.device: rate for rate in kernel_rates(recorded(), "recorded")}
    assert rates.keys() == _RECORDED.keys()
    for device, rate in rates.items():
        spec = find_spec(device)
        assert spec is not None
        assert 0.5 * spec.flops < rate.flops < spec.flops
        assert 0.6 * spec.bandwidth < rate.bandwidth < spec.bandwidth
    by_hand = sorted(2.0 * m * n * k / us * 1e6 for m, n, k, us in _RECORDED["NVIDIA L40S"] if m == 2048)
    assert by_hand[1] < rates["NVIDIA L40S"].flops < by_hand[2]


@pytest.mark.parametrize(
    "times",
    [
        [],
        recorded()[:2],
        [time._replace(dtype="fp8") for time in recorded()],
        [time._replace(seconds=0.0) for time in recorded()],
        [time._replace(n=64) for time in recorded()],
    ],
)
def test_too_little_tells_nothing(times: list[KernelTime]) -> None:
    assert kernel_rates(times) == []


def test_an_estimate_of_a_device_nobody_measured_rests_on_them() -> None:
    rates = kernel_rates(recorded(), "kernel times")
    before = Estimator(SMALL, []).estimate("L40S", 1, "bfloat16")
    after = Estimator(SMALL, [], rates=rates).estimate("L40S", 1, "bfloat16")
    assert (before.source, after.source) == ("specification of L40S", "kernel times")
    assert before.basis is after.basis is Basis.ROUGH
    assert after.times != before.times
    (l40s,) = [rate for rate in rates if rate.device == "NVIDIA L40S"]
    assert after.times.d == pytest.approx(SMALL.weight_bytes("bfloat16") / l40s.bandwidth)
    assert after.times.b == pytest.approx(2 * SMALL.parameters / l40s.flops)
    other = Estimator(SMALL, [], rates=rates).estimate("L4", 1, "bfloat16")
    assert other == Estimator(SMALL, []).estimate("L4", 1, "bfloat16")
    assert SMALL.weight_bytes("bfloat16") == 2 * GIB


def package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of that name without anything in it; returns where its tables would be."""
    data = folder / kernel_database.PACKAGE / "systems" / "data"
    data.mkdir(parents=True)
    (folder / kernel_database.PACKAGE / "__init__.py").write_text("raise RuntimeError('it is not imported')")
    monkeypatch.setattr(sys, "path", [str(folder)])
    kernel_database.known_rates.cache_clear()
    monkeypatch.setattr(sys, "path_importer_cache", {})
    return data


def test_without_the_package_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    kernel_database.known_rates.cache_clear()
    assert not kernel_database.is_installed()
    assert kernel_database.known_rates() == ()
    kernel_database.known_rates.cache_clear()


def test_a_package_of_another_form_is_passed_over_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = package(tmp_path, monkeypatch)
    assert kernel_database.is_installed()
    assert kernel_database.known_rates() == ()
    assert "no times of vLLM's kernels that are known here" in caplog.text
    table = data / "h100_sxm" / "gemm" / "vllm" / "0.24.0" / "gemm_perf.parquet"
    table.parent.mkdir(parents=True)
    table.write_bytes(b"no table")
    kernel_database.known_rates.cache_clear()
    assert kernel_database.known_rates() == ()
    assert f"cannot read {table}" in caplog.text
    kernel_database.known_rates.cache_clear()

"""``benchmarks.client_stream`` on a small number of prompts."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.client_stream import main


@pytest.mark.slow
async def test_nothing_is_lost_or_doubled_by_kills() -> None:
    report = await main(argparse.Namespace(jobs=5000, workers=1))
    assert {name: report.summary[name] for name in ("lost", "doubled", "strange", "failed", "known_again")} == {
        "lost": 0,
        "doubled": 0,
        "strange": 0,
        "failed": 0,
        "known_again": 5000,
    }
    assert [row["known"] for row in report.rows][2] == 5000

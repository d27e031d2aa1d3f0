"""``benchmarks.client_stream`` on a small number of prompts."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.client_stream import main


@pytest.mark.slow
async def test_nothing_is_lost_or_doubled_by_kills() -> None:
    report = await main(argparse.Namespace(jobs=5000, workers=1, map=False))
    assert {name: report.summary[name] for name in ("lost", "doubled", "strange", "failed", "known_again")} == {
        "lost": 0,
        "doubled": 0,
        "strange": 0,
        "failed": 0,
        "known_again": 5000,
    }
    assert [row["known"] for row in report.rows][2] == 5000


@pytest.mark.slow
async def test_one_map_gives_every_result() -> None:
    report = await main(argparse.Namespace(jobs=5000, workers=1, map=True))
    assert {name: report.summary[name] for name in ("lost", "doubled", "strange", "failed")} == {
        "lost": 0,
        "doubled": 0,
        "strange": 0,
        "failed": 0,
    }

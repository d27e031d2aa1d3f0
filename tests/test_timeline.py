"""The time line: what it holds, how it is reckoned from jobs, and the picture."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_results import columns, result

from broker.errors import UsageError
from tokenyard.batch_timeline import mean_rates, timeline_of
from tokenyard.views.timeline import Bar, Timeline, draw, lanes

TIMES = st.floats(0, 100, allow_nan=False).map(lambda t: round(t, 3))
INTERVALS = st.tuples(TIMES, TIMES).map(lambda ends: (min(ends), max(ends) + 0.001))


def timeline(devices: int = 2, intervals: int = 5, **fields: object) -> Timeline:
    shape = (devices, intervals)
    sample = Timeline(
        devices=tuple(f"device-{n}" for n in range(devices)),
        edges=np.linspace(0, 10, intervals + 1),
        running=np.arange(devices * intervals, dtype=float).reshape(shape),
        prompt_tokens_per_s=np.full(shape, 300.0),
        output_tokens_per_s=np.full(shape, 100.0),
    )
    return replace(sample, **fields)  # type: ignore[arg-type]


def drawn(folder: Path, what: Timeline, title: str = "a title") -> str:
    path = folder / "picture.svg"
    draw(what, path, title)
    return path.read_text()


# --- from jobs to a time line


@given(st.lists(st.tuples(INTERVALS, st.floats(0, 50)), max_size=20), st.integers(1, 7))
def test_mean_rates_are_those_of_each_job_added_up(jobs: list[tuple[tuple[float, float], float]], count: int) -> None:
    edges = np.linspace(0, 101, count + 1)
    start = np.array([job[0][0] for job in jobs])
    end = np.array([job[0][1] for job in jobs])
    rate = np.array([job[1] for job in jobs])
    found = mean_rates(start, end, rate, edges)
    for n in range(count):
        overlap = np.maximum(0, np.minimum(end, edges[n + 1]) - np.maximum(start, edges[n]))
        assert found[n] == pytest.approx((overlap * rate).sum() / (edges[n + 1] - edges[n]), abs=1e-6)


def test_a_time_line_of_jobs() -> None:
    jobs = columns(
        result("a", dispatched=10, started=11, ended=15, prompt_tokens=40, output_tokens=20),
        result("a", dispatched=10, started=10, ended=20, prompt_tokens=0, output_tokens=10),
        result("b", dispatched=12, started=12, ended=14, prompt_tokens=2, output_tokens=6),
    )
    found = timeline_of(jobs, intervals=10)
    assert found.devices == ("a", "b")
    assert found.edges.tolist() == list(range(11))
    assert found.running[0].tolist() == pytest.approx([1, 2, 2, 2, 2, 1, 1, 1, 1, 1])
    assert found.running[1].tolist() == pytest.approx([0, 0, 1, 1, 0, 0, 0, 0, 0, 0])
    assert found.output_tokens_per_s[0].tolist() == pytest.approx([1, 6, 6, 6, 6, 1, 1, 1, 1, 1])
    assert found.prompt_tokens_per_s.sum() == pytest.approx(42)
    assert found.bars == (Bar(0, 1, 5), Bar(0, 0, 10), Bar(1, 2, 4))


def test_bars_show_failed_jobs() -> None:
    jobs = columns(result("a", dispatched=1, ended=2, status_code=500), result("a", dispatched=1, ended=3))
    assert [bar.ok for bar in timeline_of(jobs).bars] == [False, True]


def test_many_jobs_are_no_bars() -> None:
    jobs = columns(*[result("a", dispatched=n + 1, ended=n + 2) for n in range(100)])
    assert timeline_of(jobs).bars == ()


def test_jobs_that_took_no_time() -> None:
    found = timeline_of(columns(result("a", dispatched=5, started=5, ended=5, output_tokens=10)), intervals=4)
    work = (found.output_tokens_per_s * np.diff(found.edges)).sum()
    assert found.edges[-1] > 0
    assert work == pytest.approx(10)


# --- bars


@given(st.lists(INTERVALS, max_size=30))
def test_no_bar_lies_over_another_and_lanes_are_few(intervals: list[tuple[float, float]]) -> None:
    bars = [Bar(0, start, end) for start, end in intervals]
    found = lanes(bars)
    placed = sorted((lane, bar.start, bar.end) for lane, bar in zip(found, bars, strict=True))
    for (lane, _, end), (next_lane, start, _) in pairwise(placed):
        assert lane != next_lane or end <= start
    most = max((sum(b.start <= bar.start < b.end for b in bars) for bar in bars), default=0)
    assert len(set(found)) == most


# --- the picture


def test_the_same_time_line_gives_the_same_bytes(tmp_path: Path) -> None:
    what = timeline(kv_share=np.full((2, 5), 0.5))
    assert drawn(tmp_path, what) == drawn(tmp_path, what)
    assert drawn(tmp_path, what) != drawn(tmp_path, what, "another title")


@pytest.mark.parametrize("devices", [1, 2, 12, 30, 200])
def test_every_device_is_named(tmp_path: Path, devices: int) -> None:
    picture = drawn(tmp_path, timeline(devices))
    named = [n for n in range(devices) if f"<!-- device-{n} -->" in picture]
    assert named[0] == 0
    assert len(named) == devices or 40 <= len(named) < devices
    for text in ("a title", "seconds", "prompt tokens", "output tokens"):
        assert f"<!-- {text} -->" in picture


def test_what_is_drawn_is_in_the_legend(tmp_path: Path) -> None:
    plain = drawn(tmp_path, timeline())
    assert "<!-- running jobs -->" in plain
    assert "<!-- KV memory in use -->" not in plain
    unknown_at_first = np.array([[np.nan, 0.1, 0.2, 0.3, 1.0], [np.nan] * 5])
    assert "<!-- KV memory in use -->" in drawn(tmp_path, timeline(kv_share=unknown_at_first))
    assert "<!-- a job that failed -->" in drawn(tmp_path, timeline(bars=(Bar(0, 0, 1), Bar(1, 1, 2, ok=False))))


@pytest.mark.parametrize("name", ["$x^2$ $", "<b>&--", "\x1b[2J\n", "名前", "a" * 300, ""])
def test_names_are_text_whatever_is_in_them(tmp_path: Path, name: str, recwarn: pytest.WarningsRecorder) -> None:
    picture = drawn(tmp_path, replace(timeline(1), devices=(name,)), title=name)
    ElementTree.fromstring(picture)
    assert not recwarn.list


def test_nothing_ran(tmp_path: Path) -> None:
    nothing = np.zeros((2, 5))
    ElementTree.fromstring(
        drawn(tmp_path, timeline(running=nothing, prompt_tokens_per_s=nothing, output_tokens_per_s=nothing))
    )


def test_a_png(tmp_path: Path) -> None:
    draw(timeline(), tmp_path / "picture.PNG", "a title")
    head = (tmp_path / "picture.PNG").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(head[16:20], "big") == 900


@pytest.mark.parametrize("name", ["picture.gif", "picture", "nowhere/picture.svg"])
def test_a_picture_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="picture"):
        draw(timeline(), tmp_path / name, "a title")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "picture.svg").mkdir()
    with pytest.raises(UsageError, match="cannot write"):
        draw(timeline(), tmp_path / "picture.svg", "a title")


@pytest.mark.parametrize("name", ["running", "prompt_tokens_per_s", "output_tokens_per_s", "kv_share"])
def test_shapes_must_go_together(name: str) -> None:
    with pytest.raises(ValueError, match="shape"):
        replace(timeline(), **{name: np.zeros((2, 6))})  # type: ignore[arg-type]

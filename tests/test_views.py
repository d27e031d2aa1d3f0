"""What is shown: on a terminal of 80 columns, without colour, and in a log."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from broker.heartbeat import Heartbeat, WorkerState
from broker.jobs import BatchCounts
from tokenyard.cluster_snapshot import ClusterSnapshot, PoolSnapshot
from tokenyard.device_tally import DeviceTally
from tokenyard.views.cluster import cluster_view
from tokenyard.views.devices import device_lines, device_table
from tokenyard.views.eta import Eta
from tokenyard.views.progress import BatchProgress, ProgressView
from tokenyard.views.summary import summary_line, summary_table
from tokenyard.views.text import duration


def beat(
    state: WorkerState = "ready", *, tokens_per_s: float = 280.0, running: int = 16, seen: float = 100.0
) -> Heartbeat:
    return Heartbeat(
        incarnation="a",
        state=state,
        engine="vllm",
        model="m",
        device="NVIDIA H100 80GB HBM3",
        version="vllm",
        host="h",
        pid=1,
        jobs_total=12_345,
        prompt_tokens_total=0,
        output_tokens_total=0,
        prompt_tokens_per_s=tokens_per_s / 4,
        output_tokens_per_s=tokens_per_s * 3 / 4,
        steps_total=0,
        max_batched_tokens=2048,
        profile="",
        kv_tokens_total=1000,
        kv_tokens_free=250,
        seats=16,
        context_tokens=100,
        running=running,
        waiting=3,
        free_memory_bytes=0,
        seen=seen,
    )


def progress(ended: int, total: int = 96, *, failed: int = 0) -> BatchProgress:
    return BatchProgress(total, ended - failed, failed, prompt_tokens=100 * ended, output_tokens=50 * ended)


def console(*, terminal: bool = False, width: int = 80) -> Console:
    """A console that writes into memory, as the command line makes its own."""
    return Console(
        file=io.StringIO(),
        force_terminal=terminal,
        width=width,
        soft_wrap=True,
        color_system=None,
        legacy_windows=False,
    )


def text_of(where: Console) -> str:
    file = where.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def shown(view: RenderableType, width: int = 80) -> list[str]:
    where = console(width=width)
    where.print(view, soft_wrap=False)
    return text_of(where).splitlines()


# --- devices


def test_a_device_in_80_columns() -> None:
    lines = shown(device_table({"fast": beat(), "slow": beat("starting"), "gone": None}, None))
    assert lines[0].split() == ["device", "state", "tokens/s", "running", "waiting", "KV", "used", "jobs"]
    assert lines[2].split() == ["fast", "ready", "280", "16/16", "3", "75", "%", "12,345"]
    assert lines[3].split()[:2] == ["slow", "starting"]
    assert lines[4].split() == ["gone", "no", "heartbeat"]


def test_an_old_heartbeat_is_shown_with_its_age() -> None:
    assert "silent" not in "\n".join(shown(device_table({"fast": beat(seen=100)}, 101.0)))
    assert "ready, silent 9 s" in "\n".join(shown(device_table({"fast": beat(seen=100)}, 109.0)))


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_long_names_give_way_to_the_figures(width: int) -> None:
    lines = shown(device_table({"a-name-" * 18: beat()}, None), width)
    assert max(len(line) for line in lines) <= width
    if width >= 80:
        assert lines[2].split()[1:] == ["ready", "280", "16/16", "3", "75", "%", "12,345"]


def test_a_name_cannot_steer_the_terminal() -> None:
    devices: dict[str, Heartbeat | None] = {"\x1b[2Jx\n[bold]": beat()}
    assert "?[2Jx?[bold]" in "\n".join(shown(device_table(devices, None)))
    assert device_lines(devices)[0].startswith("?[2Jx?[bold]: ready")


def test_a_log_names_only_some_of_many_devices() -> None:
    lines = device_lines({f"d{number}": beat() for number in range(100)})
    assert lines[0] == "d0: ready 280 tok/s 16/16 running"
    assert lines[-1] == "92 more devices"


# --- progress in a log


def test_a_log_line_says_it_all() -> None:
    where = console()
    with ProgressView(where) as view:
        view.update(progress(0), {"f": beat(), "slow": beat("starting")}, 0.0)
        view.update(progress(12), {"f": beat(), "slow": beat("starting")}, 6.0)
    assert text_of(where).splitlines() == [
        "0/96 jobs, 0 failed, 0 output tokens/s, time left unknown; f: ready 280 tok/s 16/16 running; slow: starting",
        "12/96 jobs, 0 failed, 100 output tokens/s, 0:00:42 left; f: ready 280 tok/s 16/16 running; slow: starting",
    ]


def test_a_log_is_not_flooded() -> None:
    where = console()
    with ProgressView(where, log_interval_s=5.0) as view:
        for step in range(101):
            view.update(progress(min(step, 96)), {"fast": beat()}, step / 4)
    lines = text_of(where).splitlines()
    assert [line.split(" jobs")[0] for line in lines] == ["0/96", "20/96", "40/96", "60/96", "80/96", "96/96"]


def test_a_log_is_silent_while_nothing_changes() -> None:
    where = console()
    with ProgressView(where) as view:
        for second in range(100):
            view.update(progress(0), {"slow": beat("starting", running=0)}, float(second))
    assert len(text_of(where).splitlines()) == 1


def test_the_last_state_is_logged_once() -> None:
    where = console()
    with ProgressView(where) as view:
        view.update(progress(0), {}, 0.0)
        view.update(progress(96), {}, 1.0)
    assert [line.split(",")[0] for line in text_of(where).splitlines()] == ["0/96 jobs", "96/96 jobs"]


def test_a_view_without_any_update_says_nothing() -> None:
    where = console()
    with ProgressView(where):
        pass
    assert text_of(where) == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_notes_are_taken_literally(terminal: bool) -> None:
    where = console(terminal=terminal)
    with ProgressView(where) as view:
        view.update(progress(1), {"fast": beat()}, 0.0)
        view.note("worker [bold] ended: " + "x" * 100)
    assert "worker [bold] ended: " + "x" * 100 + "\n" in text_of(where)


# --- progress on a terminal


def test_the_terminal_shows_jobs_rate_time_and_devices() -> None:
    where = console(terminal=True)
    with ProgressView(where) as view:
        view.update(progress(0), {"fast": beat(), "slow": beat("starting")}, 0.0)
        view.update(progress(24, failed=1), {"fast": beat(), "slow": beat("starting")}, 12.0)
        during = text_of(where)
    last = during.rsplit("\x1b[2K", 1)[1]
    assert "24/96 jobs" in last
    assert "1 failed, 100 output tokens/s, 0:00:36 left, 0:00:12 elapsed" in last
    assert [line.split()[:2] for line in last.splitlines() if line.startswith(("fast", "slow"))] == [
        ["fast", "ready"],
        ["slow", "starting"],
    ]
    after = text_of(where)[len(during) :]
    assert "24/96 jobs" in after.rsplit("\x1b[2K", 1)[1]
    assert "slow" not in after


@pytest.mark.parametrize("width", [20, 80])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    where = console(terminal=True, width=width)
    with ProgressView(where) as view:
        view.update(BatchProgress(10**9, 10**8, 10**8, 0, 0), {"n" * 100: beat(tokens_per_s=1e8), "x": None}, 0.0)
    drawn = re.split(r"\x1b\[\??[0-9;]*[A-Za-z]|[\r\n]", text_of(where))
    assert 10 < max(len(part) for part in drawn) <= width


def test_no_color_means_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    where = Console(file=io.StringIO(), force_terminal=True, width=80, color_system="standard")
    with ProgressView(where) as view:
        view.update(progress(24), {"fast": beat(), "slow": beat("starting"), "gone": None}, 0.0)
    assert not any(f"\x1b[{code}m" in text_of(where) for code in range(30, 38))


# --- time left


def test_the_time_left_follows_the_last_minute() -> None:
    eta = Eta()
    assert eta.update(0.0, 0, 1000) is None
    for second in range(1, 101):
        eta.update(float(second), second, 1000)
    assert eta.update(101.0, 101, 1000) == pytest.approx(899)
    for second in range(102, 180):
        eta.update(float(second), 101 + (second - 101) * 2, 1000)
    assert eta.update(180.0, 259, 1000) == pytest.approx(741 / 2, rel=0.01)


def test_the_start_of_the_engines_does_not_count() -> None:
    where = console()
    with ProgressView(where) as view:
        for second in range(40):
            view.update(progress(0), {"fast": beat("starting", running=0)}, float(second))
        for second in range(41):
            view.update(progress(second), {"fast": beat()}, 40.0 + second)
    assert "40/96 jobs, 0 failed, 50 output tokens/s, 0:00:57 left" in text_of(where).splitlines()[-1]


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 50)), max_size=30))
def test_the_time_left_is_never_negative(steps: list[tuple[float, int]]) -> None:
    eta, now, ended = Eta(), 0.0, 0
    for seconds, jobs in steps:
        now, ended = now + seconds, ended + jobs
        left = eta.update(now, ended, 1000)
        assert left is None or left >= 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3600, "1:00:00"), (360_000, "100:00:00"), (-1, "0:00:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# --- the closing table


def tally_of(*, failed: bool = False) -> DeviceTally:
    tally = DeviceTally()
    for second in range(61):
        for name, rate in (("fast", 300), ("slow", 100)):
            counters = {"prompt_tokens_total": 0, "output_tokens_total": rate * second}
            tally.observe(float(second), name, beat(seen=100 + second).model_copy(update=counters))
    tally.job_ended("fast", prompt_tokens=0, output_tokens=18_000, ok=True, at=30.0)
    tally.job_ended("slow", prompt_tokens=1000, output_tokens=5000, ok=not failed, at=60.0)
    return tally


def test_the_closing_table() -> None:
    lines = [line.split() for line in shown(summary_table(tally_of(failed=True)))]
    assert lines[0] == ["device", "kind", "jobs", "failed", "output", "tokens", "tokens/s", "busy", "of", "tokens"]
    assert lines[2][:3] == ["fast", "NVIDIA", "H100"]
    assert lines[2][-8:] == ["1", "0", "18,000", "300", "100", "%", "75", "%"]
    assert lines[3][:3] == ["slow", "NVIDIA", "H100"]
    assert lines[3][-8:] == ["1", "1", "5,000", "100", "100", "%", "25", "%"]
    assert lines[-1] == ["total", "2", "1", "23,000", "400", "100", "%"]


def test_the_closing_line() -> None:
    assert summary_line(tally_of()) == (
        "2 jobs in 0:01:00, 400 tokens/s, 100 % of the ideal (the sum of each device's best sustained rate)"
    )
    empty = DeviceTally()
    empty.job_ended("", prompt_tokens=0, output_tokens=0, ok=False, at=1.0)
    assert summary_line(empty) == "1 job in 0:00:00, 0 tokens/s"
    assert "(no device)" in "\n".join(shown(summary_table(empty)))


# --- the cluster


def test_a_cluster_in_80_columns() -> None:
    pool = PoolSnapshot(
        "default", ("m", "n"), None, {"returned": 0, "high": 2, "normal": 1000, "low": 0}, {"fast": beat()}
    )
    batches = {
        "batch_2": BatchCounts(total=100, done=10, sealed=True),
        "batch_1": BatchCounts(total=5, done=4, failed=1, sealed=True),
        "batch_0": BatchCounts(total=5, done=1, cancelled=1, sealed=True, state="cancelled"),
    }
    lines = shown(cluster_view(ClusterSnapshot(100.0, [pool], batches), {"batch_2": 90.0, "batch_0": None}))
    assert max(len(line) for line in lines) <= 80
    assert lines[:3] == [
        "pool default: m, n",
        "scheduler: none: start `tokenyard scheduler`",
        "waiting jobs: 2 high, 1,000 normal",
    ]
    assert [line.split() for line in lines[-3:]] == [
        ["batch_2", "running", "100", "10", "0", "0", "0:01:30"],
        ["batch_1", "complete", "5", "4", "1", "0"],
        ["batch_0", "cancelling", "5", "1", "0", "1", "-"],
    ]


def test_a_server_without_anything() -> None:
    text = "\n".join(shown(cluster_view(ClusterSnapshot(0.0, [], {}))))
    assert "no pools yet: start a worker with `tokenyard worker" in text
    assert "no batches" in text

"""``benchmarks.placement``, ``simulator_truth`` and ``decision_cost`` on tiny data that the tests write."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cluster import BenchmarkError
from benchmarks.decision_cost import kinds_of
from benchmarks.placing.bound import bound_of, separate_bound
from benchmarks.placing.devices import Catalogue, Cluster, Part, read_clusters
from benchmarks.placing.finite import LowerBound, lower_bound, makespan
from benchmarks.placing.headline import Headline
from benchmarks.placing.lengths import Mix, TraceFile, draw, mixes_of
from benchmarks.placing.steady import Steady, simulate, steady_state
from benchmarks.placing.tables import summary
from benchmarks.placing.tasks import (
    BoundTask,
    Cell,
    CellBound,
    Finish,
    FiniteTask,
    HeadlineTask,
    SteadyTask,
    Task,
)
from benchmarks.simulator_truth import read_requests, read_settings, replay
from broker.batching import ContinuousBatch, EventKind
from broker.throughput import DeviceKind, Profile, work_of

_FITS = (
    "device,model,tp,prefill_a_s,prefill_b_s_per_tok,prefill_c_s_per_tok2,"
    "decode_d_s,decode_e_s_per_req,decode_f_s_per_ctxtok"
)
_TIMES = ".001,.0001,0,.01,.00005,1e-7"
_LENGTHS = st.lists(st.tuples(st.integers(1, 900), st.integers(1, 300)), min_size=1, max_size=30)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two usable kinds, one of them named like another, and one without memory."""
    (tmp_path / "profiles").mkdir()
    lines = [
        f"Big-80GB,M-8B,1,{_TIMES}",
        '"Slow-24GB(Cloud,X)",M-8B(scaled),1,.005,.0008,0,.05,.0002,4e-7',
        f"Slower-1,M-8B,1,{_TIMES}",
        f"Big-80GB,M-70B,1,{_TIMES}",
    ]
    (tmp_path / "profiles" / "fits.csv").write_text("\n".join([_FITS, *lines]) + "\n")
    held = ["Big-80GB,M-8B,1,20000", '"Slow-24GB(Cloud,X)",M-8B(scaled),1,4000', "Slower-1,M-8B,1,0"]
    (tmp_path / "profiles" / "kv.csv").write_text("\n".join(["device,model,tp,free_kv_tokens_replica", *held]) + "\n")
    return tmp_path


def trace(file: Path, lengths: list[tuple[int, int]]) -> Path:
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([("when", "in", "out"), *((0, *pair) for pair in lengths)])
    return file


def drawn(count: int, seed: int = 0) -> list[tuple[int, int]]:
    rng = random.Random(seed)
    return [(rng.randrange(5, 600), rng.randrange(1, 60)) for _ in range(count)]


def test_devices_are_found_by_the_beginning_of_their_name(data: Path) -> None:
    cluster = Catalogue(data).cluster(
        "c", [Part(device="Big", model="M-8B"), Part(device="Slow", model="M-8B", count=3)]
    )
    assert [label for label, _ in cluster.kinds] == ["Big-80GB", "Slow-24GB"]
    assert (cluster.count, cluster.longest) == (4, 20000)
    assert len({device.name for device in cluster.devices()}) == 4
    assert [kind.max_batched_tokens for kind in cluster.fleet] == [8192, 2048]  # at .1 and .8 ms a token


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Part(device="Slower", model="M-8B"), "no memory left for KV tokens"),
        (Part(device="Big", model="M-70B"), "kv.csv has no line"),
        (Part(device="Bi", model="M-8B"), "no line for Bi with M-8B at tp 1; it knows Big-80GB, Slow"),
        (Part(device="Big", model="M-8B", tp=2), "at tp 2"),
    ],
)
def test_a_device_that_cannot_be_used_is_told_in_a_line(data: Path, part: Part, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        Catalogue(data).cluster("c", [part])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "no JSON file"),
        ("{}", "holds no cluster"),
        ('{"c": [{"device": "Big"}]}', "c: 0: model"),
        ('{"c": [{"device": "Big", "model": "M", "count": 0}]}', "count"),
        ('{"c": [{"device": "Big", "model": "M", "number": 1}]}', "number"),
    ],
)
def test_a_wrong_file_of_clusters_is_told_in_a_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "clusters.json"
    file.write_text(text)
    with pytest.raises(BenchmarkError, match=message):
        read_clusters(file)


def test_traces_and_mixtures(tmp_path: Path) -> None:
    file = trace(tmp_path / "a:b.csv", [(5, 2), (7, 0)])
    read = TraceFile.parse(f"mine={file}:in:out").read()
    assert read.tolist() == [[5, 2], [7, 1]]
    names = [mix.name for mix in mixes_of(["a", "b", "c", "d"])]
    assert names == ["a", "b", "c", "d", "a+b+c", "all", "c+d"]
    assert [mix.name for mix in mixes_of(["a", "b"])] == ["a", "b", "a+b"]
    assert mixes_of(["a"]) == [Mix("a", ("a",))]
    for wrong in ("mine", f"mine={file}", f"={file}:in:out", f"mine={file}:in:"):
        with pytest.raises(BenchmarkError, match="NAME=PATH"):
            TraceFile.parse(wrong)
    for wrong, message in ((f"m={file}:in:other", "numbers in in and other"), ("m=/none:in:out", "cannot read")):
        with pytest.raises(BenchmarkError, match=message):
            TraceFile.parse(wrong).read()


def test_only_what_no_device_can_hold_is_left_out() -> None:
    traces = {"a": np.array([[10, 5], [100, 50]]), "b": np.array([[1000, 1]])}
    drawn, left_out = draw(traces, Mix("all", ("a", "b")), 300, 150, 0)
    assert {tuple(pair) for pair in drawn.tolist()} == {(10, 5), (100, 50)}
    assert len(drawn) + left_out == 300
    assert left_out > 50
    with pytest.raises(BenchmarkError, match="no request of all fits"):
        draw(traces, Mix("all", ("a", "b")), 300, 10, 0)


@given(_LENGTHS)
def test_the_worth_of_requests_is_what_the_program_says_and_sums_to_no_more_than_its_time(
    lengths: list[tuple[int, int]],
) -> None:
    fast = Profile(0.001, 1e-4, 0, 0.01, 5e-5, 1e-7, kv_tokens=20_000, seats=64)
    slow = Profile(0.005, 8e-4, 0, 0.05, 2e-4, 4e-7, kv_tokens=1200, seats=64)
    fleet = [DeviceKind(fast), DeviceKind(slow, 2, slowdown=1.5)]
    bound = bound_of(np.array(lengths), fleet)
    expected = [bound.plan.seconds_of(fleet, work_of(*pair), sum(pair)) for pair in lengths]
    assert bound.worth.tolist() == pytest.approx(expected)
    assert bound.seconds <= bound.plan.seconds * (1 + 1e-6)


def test_one_device_alone_has_the_two_bounds_that_can_be_worked_out_by_hand() -> None:
    profile = Profile(0, 1e-4, 0, 0.01, 0, 0, kv_tokens=10_000, seats=8)
    lengths = np.array([[100, 11]] * 50)  # 10 steps a request, of which 8 share one; 1 % of the memory
    bound = bound_of(lengths, [DeviceKind(profile, 2)])
    assert bound.requests_per_s == pytest.approx(2 / (0.01 + 0.1 / 8))
    assert separate_bound(lengths, [DeviceKind(profile, 2)]) == pytest.approx(bound.requests_per_s)


def small_cluster(data: Path) -> Cluster:
    return Catalogue(data).cluster("c", [Part(device="Big", model="M-8B"), Part(device="Slow", model="M-8B")])


@pytest.mark.parametrize("policy", ["throughput", "round_robin"])
def test_no_policy_does_better_than_the_bounds(data: Path, policy: str) -> None:
    cluster, lengths = small_cluster(data), np.array(drawn(3000))
    bound = bound_of(lengths, cluster.fleet)
    outcome = simulate(lengths, cluster, policy, 0, window_jobs=200)
    steady = steady_state(outcome, bound)
    assert 0 < steady.share_of_bound < 1.02  # what is in progress at both ends is estimated
    assert steady.seconds == pytest.approx(0.65 * outcome.last_seen_at)
    assert outcome.makespan >= bound.seconds
    few = lengths[:100]
    assert makespan(few, cluster, policy, 0) >= lower_bound(few, cluster).seconds


def test_a_run_without_a_steady_state_is_told(data: Path) -> None:
    cluster, lengths = small_cluster(data), np.array(drawn(5))
    with pytest.raises(BenchmarkError, match="too few jobs"):
        steady_state(simulate(lengths, cluster, "throughput", 0), bound_of(lengths, cluster.fleet))


def test_the_lower_bound_of_one_long_job_is_that_job_alone(data: Path) -> None:
    cluster = small_cluster(data)
    lengths = np.array([[10, 3000]])
    bound = lower_bound(lengths, cluster)
    assert bound.seconds == pytest.approx(cluster.fleet[0].profile.alone_seconds(10, 3000))
    assert bound.work < bound.seconds < bound.longest_in_batch
    assert not bound.reachable
    assert makespan(lengths, cluster, "throughput", 0) == pytest.approx(bound.seconds, rel=0.01)


def test_the_placement_benchmark_from_end_to_end(data: Path, tmp_path: Path) -> None:
    file = trace(tmp_path / "t.csv", drawn(200))
    clusters = tmp_path / "clusters.json"
    parts = [{"device": device, "model": "M-8B", "tp": 1, "count": 1} for device in ("Big", "Slow")]
    clusters.write_text(json.dumps({"two": parts}))
    words = ["--data", data, "--clusters", clusters, "--trace", f"t={file}:in:out", "--seconds", 1, "--jobs", 4000]
    words += ["--processes", 2, "--parts", "steady"]
    found = run("benchmarks.placement", *words, json_file=tmp_path / "o.json")
    assert found["rows"][0]["requests"] == "t"
    assert set(found["summary"]) == {"median_share_of_bound", "worst_share_of_bound", "cells_below_baseline"}
    assert 0.2 < found["summary"]["worst_share_of_bound"] <= found["summary"]["median_share_of_bound"]
    assert len(found["tables"]) == 3


def test_the_figures_are_the_medians_and_worst_of_the_tables() -> None:
    cells = [Cell("c", Mix("a", ("a",))), Cell("d", Mix("a", ("a",)))]
    results: dict[Task, Any] = {BoundTask(cell): CellBound(10, 0, 5.0, 4.0) for cell in cells}
    shares = {"throughput": 0.9, "capacity": 0.8}, {"throughput": 0.7, "capacity": 0.71}
    for cell, by_policy in zip(cells, shares, strict=True):
        results |= {SteadyTask(cell, name): Steady(share, share, 100.0, 0) for name, share in by_policy.items()}
    for factor, share in ((None, 0.6), (2.0, 0.9), (0.5, 0.81)):
        results[SteadyTask(cells[0], "throughput", factor)] = Steady(share, share, 100.0, 0)
    results[FiniteTask(cells[0], "throughput", 10)] = Finish(LowerBound(90.0, 100.0, 120.0), 110.0)
    results[HeadlineTask(1.2, "M", cells[0].mix, 10)] = Headline("c", 1.2, 22.0, 10.0, 23.0)
    results[HeadlineTask(0.3, "M", cells[0].mix, 10)] = None
    figures, below = summary(results)
    assert figures == {
        "median_share_of_bound": pytest.approx(0.8),
        "worst_share_of_bound": 0.7,
        "cells_below_baseline": 1,
        "learned_share": 0.6,
        "off_by_two_loss": pytest.approx(0.1),
        "gain_over_rr_a": pytest.approx(1.3),
        "gain_over_rr_b": None,
        "makespan_over_lower_bound": pytest.approx(1.1),
    }
    assert below == ["below a baseline: d, a: capacity 0.7100, throughput 0.7000"]


def test_a_run_of_the_simulators_own_engine_is_replayed_without_error(data: Path, tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    lengths, rng = drawn(60), random.Random(1)
    arrivals = np.cumsum([rng.expovariate(10) for _ in lengths]).tolist()
    profile = Profile(0.001, 1e-4, 0, 0.01, 5e-5, 1e-7, kv_tokens=6400, seats=16)
    batch = ContinuousBatch(profile, max_batched_tokens=512)
    times: dict[EventKind, dict[object, float]] = {kind: {} for kind in EventKind}
    for number, (pair, at) in enumerate(zip(lengths, arrivals, strict=True)):
        batch.add(number, *pair, at)
    for kind, number, at, *_ in batch.advance(float("inf")):
        times[kind].setdefault(number, at)
    with (run_folder / "requests.jsonl").open("w") as out:
        for number, (pair, at) in enumerate(zip(lengths, arrivals, strict=True)):
            first, last = times[EventKind.FIRST_TOKEN][number], times[EventKind.FINISHED][number]
            line = {"input_toks": pair[0], "output_toks": pair[1], "arrival_time": 9e8 + at, "queued_ts": at}
            print(json.dumps(line | {"first_token_ts": first, "last_token_ts": last}), file=out)
    meta = {
        "engine_kwargs": {"max_num_seqs": 99, "enable_prefix_caching": True},
        "kv_cache": {"num_gpu_blocks": 400, "block_size": 16},
        "resolved_config": {"scheduler_config": {"max_num_seqs": 16, "max_num_batched_tokens": 512}},
    }
    (run_folder / "meta.json").write_text(json.dumps(meta))
    settings = read_settings(run_folder / "meta.json")
    assert (settings.seats, settings.max_batched_tokens, settings.kv_tokens, settings.prefix_caching) == (
        16,
        512,
        6400,
        True,
    )
    again, preemptions = replay(read_requests(run_folder / "requests.jsonl"), profile, settings, 0.0)
    assert preemptions == len(times[EventKind.PREEMPTED]) or preemptions > 0
    assert len(again) == 60
    words = ["--run", run_folder, "--device", "Big", "--model", "M-8B", "--tp", 1, "--data", data]
    found = run("benchmarks.simulator_truth", *words, json_file=tmp_path / "o.json")
    assert set(found["summary"]) == {"makespan_error", "ttft_median_error", "e2e_median_error"}
    assert max(found["summary"].values()) < 1e-6


@pytest.mark.parametrize(
    ("line", "message"),
    [("{}", "holds no request"), ('{"last_token_ts": 1}', "without"), ("[]", "no JSON object"), ("{", "line 1")],
)
def test_a_wrong_log_is_told_in_a_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(BenchmarkError, match=message):
        read_requests(file)


@given(st.integers(1, 200))
def test_the_devices_of_decision_cost_are_as_many_as_asked_for(devices: int) -> None:
    assert sum(kind.count for kind in kinds_of(devices)) == devices


def test_decision_cost_counts_and_reports(tmp_path: Path) -> None:
    found = run("benchmarks.decision_cost", "--devices", "1,2", json_file=tmp_path / "o.json")
    assert [row["devices"] for row in found["rows"]] == [1, 2]
    assert all(row["jobs"] >= 4000 and row["decide_us"] > row["plans_us"] > 0 for row in found["rows"])
    assert found["summary"]["us_per_job_at_2"] == found["rows"][1]["decide_us"]


def run(module: str, *words: object, json_file: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", module, *map(str, words), "--json", str(json_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(json_file.read_bytes())

"""What a simulation is made of: clusters, profiles, traces."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from simulated_fleet import devices, known, profile_folder

from broker.errors import InputFileError, UsageError
from planner.fleet import Entry, find, fleet, parse_clusters, parse_profiles, same_device
from planner.traces import Arrivals, Lengths, lengths_of_bodies, parse_arrivals, parse_trace, requests_of
from planner.what_if import Change, changed, parse_devices, parse_slow
from tokenyard.simulation_input import read_batch, read_cluster, read_known, read_own_profiles, read_trace

RNG = np.random.default_rng


def rows(*lines: str) -> list[list[str]]:
    return [line.split(",") for line in lines]


# --- clusters


@pytest.mark.parametrize(
    ("name", "given", "same"),
    [
        ("L4-24GB(GCP,Helix)", "L4", True),
        ("L4-24GB(GCP,Helix)", "l4-24gb", True),
        ("L40S-48GB", "L4", False),
        ("L40S-48GB", "L40S-48GB", True),
        ("H100-SXM-80GB", "H100-SXM", True),
        ("H100-SXM-80GB", "", False),
        ("L4", "L4-24GB", False),
    ],
)
def test_a_device_is_called_by_its_beginning(name: str, given: str, same: bool) -> None:
    assert same_device(name, given) is same


def test_devices_are_numbered_by_kind_and_have_what_the_entry_says() -> None:
    entries = [
        Entry(device="L4", model="small-model", count=2, seats=32, max_num_batched_tokens=1024),
        Entry(device="BIG", tp=2),
        Entry(device="L4", count=1),
    ]
    found = fleet(entries, known(), {})
    assert [device.name for device in found] == ["L4-1", "L4-2", "BIG-tp2-1", "L4-3"]
    assert found[0].kind.profile.seats == 32
    assert found[0].kind.max_batched_tokens == 1024
    assert found[0].kind.profile.kv_tokens == 20_000
    assert found[2].label == "BIG-80GB tp 2"
    assert (found[3].kind.profile.seats, found[3].kind.max_batched_tokens) == (256, 8192)


@pytest.mark.parametrize(
    ("device", "model", "tp", "said"),
    [
        ("B200", "", 1, "no profile of a device 'B200'; known are BIG-80GB, L4-24GB(here), L40S-48GB"),
        ("BIG", "other", 1, "no profile of 'BIG' with other at tp 1; known are BIG-80GB with small-model at tp 1"),
        ("BIG", "", 4, "no profile of 'BIG' with any model at tp 4"),
    ],
)
def test_an_unknown_device_is_told_with_those_there_are(device: str, model: str, tp: int, said: str) -> None:
    with pytest.raises(UsageError) as error:
        find(known(), device, model, tp)
    assert said in str(error.value)


def test_a_name_that_could_be_two_devices_is_asked_for() -> None:
    two = [*known(), *parse_profiles([{**_row("BIG-40GB")}], [], "more")]
    with pytest.raises(UsageError, match="'BIG' could be BIG-80GB with small-model, BIG-40GB with small-model"):
        find(two, "BIG", "", 1)
    assert find(two, "BIG-80GB", "", 1).device == "BIG-80GB"


def _row(device: str) -> dict[str, str]:
    names = "prefill_a_s prefill_b_s_per_tok prefill_c_s_per_tok2 decode_d_s decode_e_s_per_req decode_f_s_per_ctxtok"
    return {"device": device, "model": "small-model", "tp": "1", **dict.fromkeys(names.split(), "0.001")}


@pytest.mark.parametrize(("device", "said"), [("T4", "0 KV tokens"), ("P4", "KV size is not known")])
def test_a_device_without_memory_for_the_model_is_refused(device: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        fleet([Entry(device=device)], known(), {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "not a description of clusters"),
        ('{"a": [{"device": "L4", "counts": 2}]}', "a: 0: counts"),
        ('{"a": [{"device": "L4", "count": -1}]}', "a: 0: count"),
        ('{"a": []}', "cluster 'a' has no device"),
        ('{"a": [{"count": 2}]}', "an entry needs a device"),
        ("{}", "no cluster in it"),
    ],
)
def test_a_bad_description_is_told_in_a_line(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_clusters(text, "c.json")
    assert str(error.value).startswith("c.json: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("column", "value"), [("tp", "two"), ("prefill_a_s", "fast"), ("decode_d_s", None)])
def test_bad_profiles_are_told_in_a_line(column: str, value: str | None) -> None:
    row = {**_row("X"), column: value}
    with pytest.raises(UsageError, match=r"^here: fits\.csv"):
        parse_profiles([row], [], "here")  # type: ignore[list-item]
    del row[column]
    with pytest.raises(UsageError, match=f"no column '{column}'"):
        parse_profiles([row], [], "here")  # type: ignore[list-item]


def test_profiles_come_from_folders_and_files(tmp_path: Path) -> None:
    bare = dict.fromkeys(("prefill_a", "prefill_b", "prefill_c", "decode_d", "decode_e", "decode_f"), 1e-3)
    (tmp_path / "mine.json").write_text(json.dumps({**bare, "kv_tokens": 5000, "seats": 9}))
    clusters = {"one": [{"device": "Mine", "profile": "mine.json", "tp": 2}], "two": [{"device": "L4"}]}
    (tmp_path / "c.json").write_text(json.dumps(clusters))
    with pytest.raises(UsageError, match="say --name with one of one, two"):
        read_cluster(tmp_path / "c.json", None)
    name, entries = read_cluster(tmp_path / "c.json", "one")
    (device,) = fleet(entries, [], read_own_profiles(entries))
    assert (name, device.name, device.kind.profile.seats) == ("one", "Mine-tp2-1", 9)
    (tmp_path / "c.json").unlink()
    values = {**bare, "kv_tokens": 5000, "seats": 9}
    record = {"device": "New", "model": "m", "engine": "e", "version": "1", "measured": "2026-01-01", "profile": values}
    (tmp_path / "record.json").write_text(json.dumps(record))
    found = read_known([profile_folder(tmp_path), tmp_path / "mine.json"])
    assert [d.device for d in found if d not in known()] == ["New", "mine"]
    (tmp_path / "record.json").write_text(json.dumps({**record, "engine": 5}))
    with pytest.raises(UsageError, match=r"record\.json: not a valid profile record: engine"):
        read_known([tmp_path])


def test_a_folder_without_profiles_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="has no profiles"):
        read_known([tmp_path])
    (tmp_path / "fits.csv").write_text("device\n")
    with pytest.raises(InputFileError, match=r"cannot read .*kv\.csv"):
        read_known([tmp_path])


# --- what if


def test_changes_are_read() -> None:
    assert parse_devices("+2xL4") == [Change(2, "L4", 0)]
    assert parse_devices("-1xL40S+3xBIG-80GB tp2") == [Change(-1, "L40S", 0), Change(3, "BIG-80GB", 2)]
    assert parse_devices("2xH100, 1xL4-24GB(GCP,Helix)") == [Change(2, "H100", 0), Change(1, "L4-24GB(GCP,Helix)", 0)]


@pytest.mark.parametrize("text", ["", "L4", "+L4", "2x", "+0xL4", "two L4"])
def test_what_is_no_change_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_devices(text)


def test_a_changed_cluster_has_the_devices_more_and_fewer() -> None:
    entries = [Entry(device="BIG", model="small-model"), Entry(device="L40S", count=3, seats=7)]
    after = changed(entries, parse_devices("-2xL40S+1xL40S+1xL4"))
    assert [(e.device, e.count, e.seats) for e in after if e.count] == [
        ("BIG", 1, None),
        ("L40S", 1, 7),
        ("L40S", 1, 7),
        ("L4", 1, None),
    ]
    assert after[-1].model == "small-model"


@pytest.mark.parametrize(("change", "said"), [("-2xBIG", "the cluster has 1"), ("-1xBIG", "no device is left")])
def test_more_than_there_is_cannot_go(change: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        changed([Entry(device="BIG")], parse_devices(change))


def test_slow_stretches_are_read() -> None:
    where = devices(BIG=1, L4=2)
    changes = parse_slow("L4@10-20x3", where)
    assert [(c.at, c.device, c.slowdown) for c in changes] == [
        (10, "L4-1", 3),
        (10, "L4-2", 3),
        (20, "L4-1", 1),
        (20, "L4-2", 1),
    ]
    assert [(c.at, c.device, c.slowdown) for c in parse_slow("BIG-1@0x1.5", where)] == [(0, "BIG-1", 1.5)]


@pytest.mark.parametrize("text", ["L4", "L4@1", "L4@5-3x2", "L4@1-2x0", "H100@1-2x3", "@1-2x3"])
def test_what_is_no_slow_stretch_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--slow"):
        parse_slow(text, devices(L4=1))


# --- requests


def test_known_headers_are_found_and_times_read() -> None:
    found = parse_trace(
        rows(
            "TIMESTAMP,ContextTokens,GeneratedTokens",
            "2023-11-16 18:17:03.9799600,10,1",
            "2023-11-16 18:17:05.4799600,30,3",
            "2023-11-16 18:17:04.9799600,20,2",
        ),
        [],
        "t.csv",
    )
    assert found.prompt_tokens.tolist() == [10, 20, 30]
    assert found.output_tokens.tolist() == [1, 2, 3]
    assert found.arrivals is not None
    assert found.arrivals == pytest.approx([0, 1, 1.5])


def test_columns_can_be_named() -> None:
    found = parse_trace(rows("id,In, Out", "a,5,6.0"), ["in", "out"], "t.csv")
    assert (found.prompt_tokens[0], found.output_tokens[0], found.arrivals) == (5, 6, None)
    with pytest.raises(InputFileError, match=r"t\.csv has no column 'x': its header is id, In"):
        parse_trace(rows("id,In", "a,5"), ["In", "x"], "t.csv")
    with pytest.raises(InputFileError, match="say with --columns"):
        parse_trace(rows("id,In", "a,5"), [], "t.csv")
    with pytest.raises(InputFileError, match="its header is nothing"):
        parse_trace([], [], "t.csv")


@pytest.mark.parametrize(
    "bad", ["x,5", "5", "-1,5", "0,5", "5,-1", "nan,5", "inf,5", "5.5,5", "1e30,5", "5,", ",", "2²,5"]
)
def test_a_bad_row_is_left_out_and_told(bad: str) -> None:
    found = parse_trace(rows("prompt_tokens,output_tokens", "7,8", bad, bad), [], "t.csv")
    assert (len(found), found.left_out) == (1, 2)
    assert found.problem.startswith("t.csv:3: ")
    with pytest.raises(InputFileError, match=r"^t\.csv:2: "):
        parse_trace(rows("prompt_tokens,output_tokens", bad), [], "t.csv")


@pytest.mark.parametrize("bad", ["soon", "nan", "inf", "2023-13-01"])
def test_a_bad_time_is_left_out(bad: str) -> None:
    found = parse_trace(rows("a,b,c", "1,2,0", f"1,2,{bad}"), ["a", "b", "c"], "t.csv")
    assert "is no time" in found.problem


def test_files_that_are_no_trace_are_told(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputFileError, match="no CSV file"):
        read_trace(tmp_path / "t.csv", [])
    with pytest.raises(InputFileError, match="cannot read"):
        read_trace(tmp_path, [])


def test_a_batch_files_lengths_come_from_bytes_and_max_tokens(tmp_path: Path) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 50}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    path = tmp_path / "b.jsonl"
    path.write_text(json.dumps(line) + "\nrubbish\n")
    found = read_batch(path, None, 4.0, RNG(0), 10**6)
    assert found.prompt_tokens.tolist() == [round(len(json.dumps(body)) / 4)]
    assert (found.output_tokens.tolist(), found.left_out) == ([50], 1)
    assert f"{path}:2: " in found.problem
    path.write_text("rubbish\n")
    with pytest.raises(InputFileError, match=":1: not a valid JSON object"):
        read_batch(path, None, 4.0, RNG(0), 10**6)


def test_outputs_are_drawn_around_a_mean_and_cut_at_max_tokens() -> None:
    found = lengths_of_bodies([(100, 0)] * 4000 + [(100, 20)] * 100, 80.0, 4.0, RNG(3))
    assert found.output_tokens[:4000].mean() == pytest.approx(80, rel=0.1)
    assert found.output_tokens[4000:].max() == 20
    assert found.output_tokens.min() >= 1
    with pytest.raises(UsageError, match="2 requests name no max_tokens"):
        lengths_of_bodies([(100, 0), (100, 0), (100, 5)], None, 4.0, RNG(0))


# --- how many, and when

THREE = Lengths(np.array([1, 2, 3]), np.array([4, 5, 6]), np.array([0.0, 1.0, 4.0]))


def test_jobs_are_sampled_evenly_by_the_seed() -> None:
    found = requests_of(THREE, 7, Arrivals("backlog"), RNG(5))
    assert sorted(found.prompt_tokens.tolist()[:6]) == [1, 1, 2, 2, 3, 3]
    assert len(found) == 7
    assert (found.output_tokens - found.prompt_tokens == 3).all()
    assert not found.arrivals.any()
    again = requests_of(THREE, 7, Arrivals("backlog"), RNG(5))
    assert again.prompt_tokens.tolist() == found.prompt_tokens.tolist()
    assert requests_of(THREE, None, Arrivals("backlog"), RNG(5)).prompt_tokens.tolist() == [1, 2, 3]


def test_a_trace_is_repeated_after_its_end() -> None:
    found = requests_of(THREE, 5, Arrivals("trace", 2.0), RNG(0))
    assert found.prompt_tokens.tolist() == [1, 2, 3, 1, 2]
    assert found.arrivals.tolist() == [0, 0.5, 2, 3, 3.5]  # a mean gap between the end and the next beginning
    without = Lengths(THREE.prompt_tokens, THREE.output_tokens)
    with pytest.raises(UsageError, match="no times of arrival"):
        requests_of(without, 5, Arrivals("trace"), RNG(0))


def test_a_rate_is_kept_on_average() -> None:
    found = requests_of(THREE, 5000, Arrivals("rate", 20.0), RNG(1))
    assert found.arrivals[-1] == pytest.approx(250, rel=0.1)
    assert (np.diff(found.arrivals) >= 0).all()


def test_arrivals_are_read() -> None:
    assert parse_arrivals("12.5/s") == Arrivals("rate", 12.5)
    assert parse_arrivals("x0.5") == Arrivals("trace", 0.5)
    assert parse_arrivals("backlog") == Arrivals("backlog")
    for text in ("", "12", "0/s", "x0", "-1/s", "x", "fast", "nan/s"):
        with pytest.raises(UsageError, match="--arrivals"):
            parse_arrivals(text)

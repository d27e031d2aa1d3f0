"""The command ``tokenyard simulate``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_process import ROOT, tokenyard
from cluster_fixtures import cluster_of
from simulated_fleet import known, profile_folder
from typer.testing import CliRunner, Result

from broker.profiles import profile_text
from planner.fleet import find
from tokenyard.cli import app

CLUSTERS = {
    "mixed": [
        {"device": "BIG", "model": "small-model", "tp": 1, "count": 1},
        {"device": "L4", "model": "small-model", "count": 2, "seats": 64, "max_num_batched_tokens": 2048},
    ],
    "large": [{"device": "BIG", "count": 12}, {"device": "L40S", "count": 12}],
    "alike": [{"device": "L4", "count": 6}],
    "none": [{"device": "T4", "count": 1}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    profile_folder(tmp_path)
    (tmp_path / "c.json").write_text(json.dumps(CLUSTERS))
    lines = [f"{n},{50 + 10 * n},{5 + n}" for n in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n")
    return tmp_path


def arguments(folder: Path, *words: str, cluster: str = "mixed") -> list[str]:
    files = ["--profiles", str(folder), "--cluster", str(folder / "c.json"), "--trace", str(folder / "t.csv")]
    return ["simulate", *files, "--name", cluster, *words]


def simulate(folder: Path, *words: str, cluster: str = "mixed") -> Result:
    return CliRunner().invoke(app, arguments(folder, *words, cluster=cluster), env={"COLUMNS": "100"})


def told(folder: Path, *words: str) -> dict[str, object]:
    result = simulate(folder, *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_run_is_told_and_called_simulated(folder: Path) -> None:
    result = simulate(folder, "--jobs", "200")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("simulated: 200 jobs on 3 devices, policy throughput\nmakespan ")
    for text in ("BIG-1", "L4-24GB(here)", "he bound, ", "times the least possible", "arrival to first token"):
        assert text in result.stdout
    assert "simulating 200 jobs" in result.stderr


def test_many_devices_are_told_by_kind(folder: Path) -> None:
    result = simulate(folder, cluster="large")
    assert "all 12" in result.stdout
    assert "BIG-1 " not in result.stdout


def test_policies_are_compared(folder: Path) -> None:
    words = [word for name in ("throughput", "round_robin", "throughput") for word in ("--policy", name)]
    result = simulate(folder, *words, "--lengths", "known")
    assert result.exit_code == 0, result.output
    rows = [line.split()[0] for line in result.stdout.splitlines() if line]
    assert (rows.count("throughput"), rows.count("round_robin")) == (1, 1)
    assert "which no scheduler passes" in result.stdout


def test_another_cluster_is_compared(folder: Path) -> None:
    answer = told(folder, "--jobs", "400", "--what-if", "+2xL4")
    (changed,) = answer["what_if"]  # type: ignore[misc]
    assert [use["name"] for use in changed["difference"]["added"]] == ["L4-3", "L4-4"]
    assert changed["run"]["done"] == 400
    assert changed["difference"]["bound_jobs_per_s"] > 0
    shown = simulate(folder, "--jobs", "400", "--what-if", "-1xL4").stdout
    assert "with -1xL4" in shown
    assert "each device taken away: " in shown


def test_jobs_may_come_over_time(folder: Path) -> None:
    assert "load: the jobs came at" in simulate(folder, "--arrivals", "x4").stdout
    result = simulate(folder, "--arrivals", "20/s", "--jobs", "100", "--what-if", "+1xL4", "--slow", "L4@1-3x3")
    assert "the jobs came over time" in result.stdout


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_picture_is_drawn(folder: Path, suffix: str) -> None:
    path = folder / f"picture.{suffix}"
    result = simulate(folder, "--plot", str(path))
    assert result.exit_code == 0, result.output
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    if suffix == "svg":
        assert "simulated, throughput: 60 jobs" in path.read_text()


def test_a_long_run_draws_the_engines_own_counts(folder: Path) -> None:
    path = folder / "picture.svg"
    simulate(folder, "--arrivals", "trace", "--plot", str(path))  # a minute: heartbeats enough
    assert "KV memory in use" in path.read_text()


def test_a_request_that_fits_no_device_is_left_out(folder: Path) -> None:
    with (folder / "t.csv").open("a") as file:
        file.write("70,99999,5\nrubbish\n")
    result = simulate(folder)
    assert "1 requests fit no device and are left out" in result.stderr
    assert "1 lines are no request" in result.stderr
    assert "simulated: 60 jobs" in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--policy", "best"], "no placement policy 'best'"),
        (["--lengths", "guessed"], "--lengths guessed"),
        (["--arrivals", "soon"], "--arrivals soon"),
        (["--slow", "H100@1-2x3"], "no device 'H100'; there are BIG-1, L4-1, L4-2"),
        (["--what-if", "more"], "give devices as"),
        (["--what-if", "-3xL4"], "3 L4 cannot go"),
        (["--what-if", "+1xB200"], "no profile of a device 'B200'"),
        (["--columns", "a"], "--columns a"),
        (["--plot", "picture.gif"], "a picture is written as .svg or .png"),
        (["--batch", "b.jsonl"], "say which requests, one way"),
        (["--devices", "2xL4"], "say which devices, one way"),
        (["--from-redis", "--redis-url", "redis://127.0.0.1:1"], "Redis"),
        (["--profiles", "nowhere"], "cannot read the profile nowhere"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(folder: Path, words: list[str], said: str) -> None:
    result = simulate(folder, *words)
    assert result.exit_code in (2, 4)
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not result.stdout


def test_a_device_without_memory_is_told(folder: Path) -> None:
    assert "0 KV tokens" in simulate(folder, cluster="none").stderr


def test_a_cluster_in_a_word(folder: Path) -> None:
    words = ["--profiles", str(folder), "--trace", str(folder / "t.csv"), "--devices", "1xBIG tp 2, 2xL4"]
    result = CliRunner().invoke(app, ["simulate", *words, "--model", "small-model", "--json"])
    assert [use["name"] for use in json.loads(result.stdout)["runs"][0]["devices"]] == ["BIG-tp2-1", "L4-1", "L4-2"]


def test_the_same_arguments_give_the_same_bytes_in_every_process(folder: Path) -> None:
    """The order of a set of names is another one in each process: nothing may hang on it."""
    words = arguments(folder, "--jobs", "600", "--json", cluster="alike")
    found: list[bytes] = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "TOKENYARD_WINDOW_JOBS": "100"}
        command = [sys.executable, "-m", "tokenyard", *words]
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True, timeout=100)
        found.append(ended.stdout)
    assert found[0] == found[1]


def test_another_seed_gives_another_run(folder: Path) -> None:
    first, second = (told(folder, "--jobs", "100", "--seed", seed)["runs"] for seed in ("1", "2"))
    assert first != second


async def test_the_devices_of_a_running_pool(folder: Path, redis_url: str, pool: str) -> None:
    profile = profile_text(find(known(), "L40S", "", 1).profile)
    async with cluster_of(redis_url, pool) as cluster:
        for name in ("one", "two"):
            await cluster.puppet(name, device="some card", profile=profile, kv_tokens_total="40000", seats="16")
        words = ["simulate", "--pool", pool, "--from-redis", "--trace", str(folder / "t.csv"), "--json"]
        ended = await tokenyard(redis_url, *words, "--what-if", "+1xsome card")
        assert ended.code == 0, ended.err
        answer = json.loads(ended.out)
        assert [use["device"] for use in answer["runs"][0]["devices"]] == ["some card"] * 2
        assert len(answer["what_if"][0]["run"]["devices"]) == 3
        await cluster.puppet("three", device="other card", kv_tokens_total="40000", seats="16")
        ended = await tokenyard(redis_url, *words)
        assert "worker three has no profile: run `tokenyard profile` on its device" in ended.err

"""The command ``tokenyard plan``."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from cli_process import tokenyard
from cluster_fixtures import cluster_of
from simulated_fleet import KV, profile_folder
from typer.testing import CliRunner, Result

from broker.connection import connected
from broker.profiles import ProfileRecord, ProfileValues, profile_text
from broker.store.profiles import ProfileStore
from broker.throughput import Profile
from tokenyard.cli import app
from tokenyard.model_config import read_model

CONFIG = {
    "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16,
    "num_key_value_heads": 16, "vocab_size": 32000, "max_position_embeddings": 32768, "dtype": "bfloat16",
}  # fmt: skip
INVENTORY = """
[[machine]]
name = "big"
price_per_hour = 4.0
devices = [{kind = "BIG-80GB", count = 4, memory_gib = 16}]

[[machine]]
names = ["l4-1", "l4-2", "l4-3", "l4-4"]
price_per_hour = 0.5
devices = [{kind = "L4-24GB(here)", count = 2, memory_gib = 22}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    profile_folder(tmp_path)
    assert "BIG-80GB" in KV
    (tmp_path / "inv.toml").write_text(INVENTORY)
    (tmp_path / "small-model").mkdir()
    (tmp_path / "small-model" / "config.json").write_text(json.dumps(CONFIG))
    lines = [f"{n},{50 + 10 * n},{5 + n}" for n in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n")
    return tmp_path


def words_of(folder: Path, *words: str, requests: bool = True) -> list[str]:
    files = [str(folder / "inv.toml"), "--model", str(folder / "small-model"), "--profiles", str(folder)]
    return ["plan", *files, *(["--trace", str(folder / "t.csv")] if requests else []), *words]


def plan(folder: Path, *words: str, requests: bool = True) -> Result:
    return CliRunner().invoke(app, words_of(folder, *words, requests=requests), env={"COLUMNS": "120"})


def told(folder: Path, *words: str, requests: bool = True) -> dict[str, Any]:
    result = plan(folder, *words, "--json", requests=requests)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_plans_are_told_side_by_side_and_by_machine(folder: Path) -> None:
    result = plan(folder, "--what-if", "+2xL4-24GB")
    assert result.exit_code == 0, result.output
    rows = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    assert rows[:5] == ["plan", rows[1], "best", "runner-up", "with"]
    for text in ("per million tokens", "best, by machine", "l4-1 … l4-4 (4)", "what each does", "measured"):
        assert text in result.stdout
    assert "what-if-1" in result.stdout


def test_figures_for_machines(folder: Path) -> None:
    found = told(folder, "--what-if", "+2xL4-24GB")
    best, more = found["best"], found["what_if"]
    assert best["tokens_per_s"] == pytest.approx(sum(e["tokens_per_s"] for e in best["engines"]))
    assert best["price_per_hour"] == 6.0
    assert best["price_per_million_tokens"] == pytest.approx(6e6 / 3600 / best["tokens_per_s"])
    assert {m["name"] for m in best["machines"]} == {"big", "l4-1", "l4-2", "l4-3", "l4-4"}
    assert found["runner_up"]["tokens_per_s"] <= best["tokens_per_s"]
    assert more["gain"] == pytest.approx(more["tokens_per_s"] / best["tokens_per_s"] - 1)
    assert more["gain"] > 0
    assert more["price_per_hour"] is None
    assert found["today"] is None


def test_lengths_in_words_are_a_mix(folder: Path) -> None:
    one = told(folder, "--lengths", "1000,200", requests=False)["best"]
    both = told(folder, "--lengths", "3x1000,200", "--lengths", "100,10", requests=False)["best"]
    assert one["tokens_per_s"] == pytest.approx(1200 * one["jobs_per_s"])
    assert both["tokens_per_s"] == pytest.approx((0.75 * 1200 + 0.25 * 110) * both["jobs_per_s"])


def test_a_deadline_takes_the_machines_it_needs(folder: Path) -> None:
    words = ["--lengths", "1000,200", "--jobs", "100000"]
    loose = told(folder, *words, "--deadline", "30d", requests=False)["batch"]
    used = {m["name"] for m in loose["machines"] if m["engines"]}
    assert used
    assert "big" not in used  # eight times the price, and not eight times as fast
    assert loose["seconds"] <= 30 * 86400
    fast = told(folder, *words, "--budget", str(loose["price"] * 1.5), requests=False)["batch"]
    assert fast["seconds"] < loose["seconds"]
    assert fast["price"] <= loose["price"] * 1.5001
    text = plan(folder, *words, "--deadline", "30d", requests=False).stdout
    assert "for 100,000 requests: " in text


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_picture(folder: Path, suffix: str) -> None:
    pictures = [folder / f"{n}.{suffix}" for n in (1, 2)]
    for picture in pictures:
        assert plan(folder, "--plot", str(picture)).exit_code == 0
    one, two = (picture.read_bytes() for picture in pictures)
    assert one == two
    assert one.startswith(b"<?xml" if suffix == "svg" else b"\x89PNG")
    if suffix == "svg":
        assert b"runner-up" in one
        assert b"tokens/s" in one


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say which requests, one way"),
        (["--lengths", "12"], "--lengths 12: give PROMPT,OUTPUT"),
        (["--lengths", "0,5"], "--lengths 0,5"),
        (["--lengths", "10,10", "--dtype", "int3"], "--dtype int3: give one of"),
        (["--lengths", "10,10", "--seats", "0"], "--seats 0"),
        (["--lengths", "10,10", "--what-if", "two L4"], "give devices as +2xL4"),
        (["--lengths", "10,10", "--what-if", "-9xBIG-80GB"], "9 BIG-80GB cannot go: there are 4"),
        (["--lengths", "10,10", "--deadline", "soon"], "--deadline soon: give a time"),
        (["--lengths", "1000,200", "--jobs", "1000000000", "--deadline", "1s"], "no plan is done in 1 s"),
        (["--lengths", "1000,200", "--jobs", "1000000000", "--budget", "0.01"], "no plan costs 0.01 or less"),
        (["--lengths", "100,10", "--deadline", "1h"], "how many requests: give --jobs"),
        (["--lengths", "900000,10"], "no request fits: the roomiest configuration holds"),
        (["--lengths", "10,10", "--context", "99999"], "takes 32,768 tokens of context, and 99,999 are asked for"),
        (["--lengths", "10,10", "--plot", "picture.gif"], "a picture is written as .svg or .png"),
        (["--lengths", "10,10", "--profiles", "nowhere"], "cannot read the profile nowhere"),
        (["--lengths", "10,10", "--redis-url", "redis://127.0.0.1:1"], "Redis"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(folder: Path, words: list[str], said: str) -> None:
    result = plan(folder, *words, requests=False)
    assert result.exit_code in (2, 4), result.output
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not result.stdout


def test_memory_that_does_not_do_is_told_with_what_is_missing(folder: Path) -> None:
    inventory = folder / "inv.toml"
    inventory.write_text(INVENTORY.replace("memory_gib = 16", "memory_gib = 2").replace("22", "3"))
    result = plan(folder)
    assert result.exit_code == 2
    assert "no configuration fits: big: BIG-80GB x" in result.stderr
    assert "GiB short" in result.stderr
    inventory.write_text(INVENTORY.replace("memory_gib = 16", "memory_gib = 2"))
    assert "big can run nothing: BIG-80GB x" in plan(folder).stdout


def test_profiles_of_another_model_are_told(folder: Path) -> None:
    (folder / "small-model").rename(folder / "other")
    words = ["plan", str(folder / "inv.toml"), "--model", str(folder / "other"), "--profiles", str(folder)]
    result = CliRunner().invoke(app, [*words, "--lengths", "10,10"])
    assert result.exit_code == 2
    assert "the profiles are of small-model, small-model(scaled), none of other" in result.stderr
    named = CliRunner().invoke(app, [*words, "--lengths", "10,10", "--served-name", "small-model"])
    assert named.exit_code == 0, named.output


def test_models_are_found_by_folder_and_by_name(folder: Path) -> None:
    assert read_model(str(folder / "small-model")).layers == 16
    assert read_model("meta-llama/Llama-3.1-8B-Instruct").layers == 32
    assert read_model("demo").attention_heads == 9


@pytest.mark.parametrize(
    ("text", "said"), [("{", "is no JSON"), ("[]", "holds no object"), ("{}", "num_hidden_layers is None")]
)
def test_what_is_no_model_is_told(folder: Path, text: str, said: str) -> None:
    (folder / "small-model" / "config.json").write_text(text)
    assert said in plan(folder).stderr
    (folder / "small-model" / "config.json").unlink()
    assert "config.json: No such file or directory" in plan(folder).stderr
    assert "no such folder, and the model is not known by name" in CliRunner().invoke(
        app, ["plan", str(folder / "inv.toml"), "--model", "nobody/nothing", "--lengths", "1,1"]
    ).stderr  # fmt: skip


async def test_what_the_pool_runs_today_and_has_measured(folder: Path, redis_url: str, pool: str) -> None:
    """The pool's own records are profiles; its workers with a profile are today's plan."""
    times = Profile(0.01, 5e-5, 2e-9, 0.01, 4e-5, 8e-8, kv_tokens=100_000, seats=64)
    record = ProfileRecord(
        device="BIG-80GB", model="small-model", engine="vllm", version="1", dtype="bfloat16",
        measured=date(2026, 1, 1), profile=ProfileValues.of(times),
    )  # fmt: skip
    (folder / "inv.toml").write_text(INVENTORY.partition("[[machine]]\nnames")[0])
    async with cluster_of(redis_url, pool) as cluster, connected(redis_url) as redis:
        await ProfileStore(redis, pool).save(record)
        await cluster.puppet("one", profile=profile_text(times), kv_tokens_total="40000", seats="16")
        await cluster.puppet("two", device="unknown", kv_tokens_total="40000", seats="16")
        words = ["plan", str(folder / "inv.toml"), "--model", str(folder / "small-model"), "--lengths", "1000,200"]
        ended = await tokenyard(redis_url, *words, "--pool", pool, "--json")
        assert ended.code == 0, ended.err
        found = json.loads(ended.out)
        assert (found["today"]["workers"], found["today"]["without_profile"]) == (1, ["two"])
        assert found["today"]["gain"] > 0
        assert {engine["source"] for engine in found["best"]["engines"]} <= {"measured", "from tp 1"}
        ended = await tokenyard(redis_url, *words, "--pool", pool)
        assert "gain over today's 1 worker: +" in ended.out
        assert "for want of a profile: two (1)" in ended.out

"""report and explain against a cluster that runs."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from cli_process import Ended, tokenyard
from cluster_fixtures import Cluster, ManualEngine, cluster_of, eventually, exactly_once
from typer.testing import CliRunner

from broker.client import new_batch_id
from broker.jobs import job_id
from broker.profiles import profile_text
from broker.throughput import Profile
from tokenyard.batch_reading import read_report
from tokenyard.batch_timeline import timeline_of
from tokenyard.cli import app
from tokenyard.job_explanation import REASONS
from tokenyard.views.batch_report import picture_title
from tokenyard.views.timeline import draw
from workers.engines.simulated import SimulatedEngine, SimulatedOptions

SMALL = Profile(0.002, 1e-6, 0.0, 0.001, 1e-6, 1e-9, kv_tokens=65_536, seats=8)


@pytest.fixture
async def unscheduled(redis_url: str, pool: str) -> AsyncGenerator[Cluster]:
    """Where a job stays as the test writes it."""
    async with cluster_of(redis_url, pool) as cluster:
        yield cluster


@pytest.fixture
async def cluster(unscheduled: Cluster) -> Cluster:
    unscheduled.schedule("the-owner")
    await unscheduled.leading("the-owner")
    return unscheduled


def simulated(cluster: Cluster, profile: Profile = SMALL) -> SimulatedEngine:
    return SimulatedEngine(SimulatedOptions(profile=profile, models=(cluster.model,), device="simulated GPU"))


async def ended_batch(cluster: Cluster, count: int) -> str:
    batch = await cluster.submit(count)
    exactly_once(await cluster.collect(batch), count)
    return batch


async def reported(cluster: Cluster, batch: str, *words: str | Path) -> dict[str, Any]:
    shown = await tokenyard(cluster.url, "report", batch, "--json", *words)
    assert shown.code == 0
    return json.loads(shown.out)


async def explained(cluster: Cluster, *words: str) -> dict[str, Any]:
    shown = await tokenyard(cluster.url, "explain", "--json", *words)
    assert (shown.code, shown.err) == (0, "")
    return json.loads(shown.out)


def one_line(shown: Ended, code: int) -> str:
    assert (shown.code, shown.out, shown.err.count("\n")) == (code, "", 1)
    assert shown.err.startswith("error: ")
    return shown.err


# --- report


async def test_report_for_machines(cluster: Cluster) -> None:
    await cluster.join("fast", simulated(cluster))
    await cluster.join("slow", simulated(cluster, replace(SMALL, decode_d=0.004, seats=4)))
    batch = await ended_batch(cluster, 60)
    found = await reported(cluster, batch)
    assert (found["batch"], found["state"], found["total"], found["done"], found["failed"]) == (
        batch,
        "complete",
        60,
        60,
        0,
    )
    assert [row["name"] for row in found["devices"]] == ["fast", "slow"]
    assert sum(row["jobs"] for row in found["devices"]) == 60
    counts = await cluster.client.counts(batch)
    assert sum(row["output_tokens"] for row in found["devices"]) == counts.output_tokens
    assert sum(row["prompt_tokens"] for row in found["devices"]) == counts.prompt_tokens
    assert all(0 < row["busy_share"] <= 1 and row["device"] == "simulated GPU" for row in found["devices"])
    assert found["span_s"] > 0
    assert found["jobs_per_s"] == pytest.approx(60 / found["span_s"])
    assert 0 < found["dispatch_to_result"]["p50"] <= found["dispatch_to_result"]["max"] <= found["span_s"] + 0.001
    assert found["submit_to_result"]["max"] >= found["dispatch_to_result"]["p50"]
    assert 0 < found["reached"]["share"] < 1.1


async def test_report_for_people_with_a_picture(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.join("w", simulated(cluster))
    batch = await ended_batch(cluster, 60)
    picture = tmp_path / "line.svg"
    shown = await tokenyard(cluster.url, "report", batch, "--plot", picture)
    assert (shown.code, shown.err) == (0, f"time line drawn to {picture}\n")
    lines = shown.out.splitlines()
    assert lines[:2] == [f"batch {batch}: complete", "60 jobs: 60 done, 0 failed, 0 cancelled"]
    assert any(line.split()[:4] == ["w", "simulated", "GPU", "60"] for line in lines)
    drawn = picture.read_text()
    ElementTree.fromstring(drawn)
    assert "<!-- w -->" in drawn
    report, jobs = await read_report(cluster.client, batch)
    draw(timeline_of(jobs.ran()), picture, picture_title(report))
    assert picture.read_text() == drawn


async def test_the_bound_by_the_profiles_in_the_heartbeats(cluster: Cluster) -> None:
    running = await cluster.join("w", simulated(cluster))
    batch = await ended_batch(cluster, 8)
    await running.stop()
    assert (await reported(cluster, batch))["reached"]["of"] == "ideal"
    await cluster.puppet("w", profile=profile_text(SMALL))
    assert (await reported(cluster, batch))["reached"]["of"] == "bound"


async def test_a_batch_that_has_not_ended(cluster: Cluster, tmp_path: Path) -> None:
    engine = ManualEngine()
    await cluster.join("w", engine)
    batch = await cluster.submit(3)
    picture = tmp_path / "line.svg"
    shown = await tokenyard(cluster.url, "report", batch, "--plot", picture)
    assert (shown.code, shown.err) == (0, "no picture: no job has ended on a device yet\n")
    assert "3 jobs: 0 done, 0 failed, 0 cancelled, 3 not ended yet" in shown.out
    assert not picture.exists()
    await eventually(lambda: len(engine.running) == 3, "3 jobs run")
    engine.finish(1)
    engine.finish(1, status_code=400)

    async def two_ended() -> bool:
        return (await cluster.client.counts(batch)).ended == 2

    await eventually(two_ended, "2 jobs ended")
    found = await reported(cluster, batch)
    assert (found["state"], found["done"], found["failed"], found["devices"][0]["failed"]) == ("running", 1, 1, 1)
    await cluster.client.cancel(batch)


async def test_the_report_of_a_batch_in_two_pools(cluster: Cluster, pool: str) -> None:
    async with cluster_of(cluster.url, f"{pool}-too") as other:
        other.schedule("other")
        await cluster.join("w", simulated(cluster))
        await other.join("w", simulated(other))
        batch = new_batch_id()
        requests = [*cluster.requests(5, "here"), *other.requests(7, "there")]
        await cluster.client.submit(requests, batch)
        await cluster.client.seal(batch)
        await cluster.collect(batch)
        found = await reported(cluster, batch)
        assert [(row["name"], row["jobs"]) for row in found["devices"]] == [(f"{pool}-too/w", 7), (f"{pool}/w", 5)]


async def test_no_such_batch(cluster: Cluster) -> None:
    said = one_line(await tokenyard(cluster.url, "report", "nothing"), 1)
    assert "no batch nothing: `tokenyard status` lists the ones there are" in said


@pytest.mark.parametrize("name", ["line.pdf", "nowhere/line.svg"])
async def test_a_picture_that_cannot_be(cluster: Cluster, tmp_path: Path, name: str) -> None:
    one_line(await tokenyard(cluster.url, "report", "any", "--plot", tmp_path / name), 2)


# --- explain


async def test_a_job_that_has_ended(cluster: Cluster) -> None:
    await cluster.join("w", simulated(cluster))
    batch = await ended_batch(cluster, 3)
    identity = job_id(batch, "r1")
    found = await explained(cluster, "--batch", batch, "r1")
    job = found["job"]
    assert (job["job_id"], job["custom_id"], job["batch"], job["state"]) == (identity, "r1", batch, "done")
    assert (job["worker"], job["attempt"], job["status_code"], job["output_tokens"]) == ("w", 1, 200, 3)
    times = [job["submitted"], job["dispatched"], job["started"], job["ended"], found["now"]]
    assert times[0] > 0
    assert all(before <= after + 0.002 for before, after in pairwise(times))  # some are rounded, others cut off
    assert found["actual_s"] == pytest.approx(job["ended"] - job["dispatched"], abs=0.002)
    assert found["lengths"] == {"prompt_tokens": job["prompt_tokens"], "output_tokens": 3, "known": True}
    assert [(row["name"], row["chosen"], row["fits"]) for row in found["devices"]] == [("w", True, True)]
    for words in ([identity], [f"batch_req_{identity}"]):
        assert (await explained(cluster, *words))["job"] == job


async def test_what_other_devices_would_have_cost(unscheduled: Cluster) -> None:
    await unscheduled.puppet("w", profile=profile_text(SMALL), kv_tokens_total="65536", seats="8")
    await unscheduled.puppet("half", profile=profile_text(replace(SMALL, decode_d=1.0)), kv_tokens_total="65536")
    await unscheduled.puppet("tiny", kv_tokens_total="64", kv_tokens_free="64")
    batch = await unscheduled.submit(1)
    identity = job_id(batch, "r0")
    dispatched = {"state": "dispatched", "worker": "w", "dispatched": "1700000000.5", "output_tokens": "500"}
    await unscheduled.write(unscheduled.keys.job(identity), **dispatched, predicted_s="2.5", reason="share")
    shown = await tokenyard(unscheduled.url, "explain", identity)
    assert (shown.code, shown.err) == (0, "")
    rows = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert rows[0] == f"job {identity} (custom_id r0): on w, waiting there or running"
    assert any(row.startswith("dispatched") and row.endswith(f"to w, because {REASONS['share']}") for row in rows)
    assert "dispatch to result 2.50 s - -" in rows
    assert "output tokens 500 - -" in rows
    costs = {row.removeprefix("* ").split()[0]: row.split() for row in rows if " d " in row}
    assert costs["w"][0] == "*"
    assert costs["w"][-3] == "1.00"
    assert float(costs["half"][-3]) > 100
    assert costs["tiny"][2:5] == ["no:", "KV", "memory"]
    await unscheduled.client.cancel(batch)


async def test_a_job_that_waits(unscheduled: Cluster) -> None:
    await unscheduled.register_model()
    batch = await unscheduled.submit(1)
    shown = await tokenyard(unscheduled.url, "explain", "--batch", batch, "r0")
    assert (shown.code, shown.err) == (0, "")
    assert "waits for a device" in shown.out
    assert "no device of its pool is known now" in shown.out
    await unscheduled.client.cancel(batch)


async def test_jobs_that_are_not_there(cluster: Cluster) -> None:
    for words, said in [
        (["nothing"], "no job nothing: give its id as the output file has it, or --batch BATCH CUSTOM_ID"),
        (["--batch", "nothing", "r0"], "no batch nothing: `tokenyard status` lists the ones there are"),
    ]:
        assert said in one_line(await tokenyard(cluster.url, "explain", *words), 1)


# --- without a server


@pytest.mark.parametrize("words", [["report", "b"], ["explain", "b.j"]])
def test_nobody_to_ask(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENYARD_REDIS_URL", raising=False)
    monkeypatch.delenv("TOKENYARD_CONFIG", raising=False)
    no_address = CliRunner().invoke(app, words)
    assert (no_address.exit_code, no_address.stdout) == (2, "")
    assert no_address.stderr.startswith("error: no Redis: set TOKENYARD_REDIS_URL or give --redis-url")
    nobody = CliRunner().invoke(app, [*words, "--redis-url", f"unix://{tmp_path}/none.sock"])
    assert (nobody.exit_code, nobody.stdout) == (4, "")
    assert nobody.stderr.startswith("error: cannot reach Redis")

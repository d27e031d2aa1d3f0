"""submit, follow, collect and cancel against a cluster that runs."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from batch_lines import ids_in
from cli_process import start, tokenyard
from cluster_fixtures import Cluster, ManualEngine, cluster_of, eventually, instant_engine

from broker.client import new_batch_id
from broker.jobs import Priority
from tokenyard.batch_files import errors_path_of


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncGenerator[Cluster]:
    async with cluster_of(redis_url, pool) as cluster:
        cluster.schedule()
        yield cluster


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def line(custom_id: str, model: str) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 3}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}).encode()


def batch_file(folder: Path, *lines: bytes) -> Path:
    path = folder / "in.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def requests(folder: Path, model: str, count: int) -> Path:
    return batch_file(folder, *(line(f"r{i}", model) for i in range(count)))


async def ended(cluster: Cluster, batch: str, count: int) -> None:
    async def so_many() -> bool:
        return (await cluster.client.counts(batch)).ended == count

    await eventually(so_many, f"{count} jobs of {batch} ended")


async def all_run(engine: ManualEngine, count: int) -> None:
    await eventually(lambda: len(engine.running) == count, f"{count} jobs run")


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def one_line(text: str) -> bool:
    return text.count("\n") == 1 and text.startswith("error: ")


# --- the whole way


async def test_from_file_to_file(cluster: Cluster, tmp_path: Path, out: Path) -> None:
    await cluster.join("w", instant_engine(cluster.model))
    source = requests(tmp_path, cluster.model, 20)

    submitted = await tokenyard(cluster.url, "submit", source)
    batch = submitted.out.removesuffix("\n")
    assert (submitted.code, submitted.out) == (0, f"{batch}\n")
    assert batch.startswith("batch_")
    assert "20 jobs queued" in submitted.err

    followed = await tokenyard(cluster.url, "follow", batch)
    assert (followed.code, followed.out) == (0, "")
    assert "20/20 jobs, 0 failed" in followed.err
    assert "20 done, 0 failed, 0 cancelled" in followed.err

    for text in ("20 responses written", "0 responses written to"):
        collected = await tokenyard(cluster.url, "collect", batch, "-o", out)
        assert (collected.code, collected.out) == (0, "")
        assert text in collected.err
        assert sorted(map(str, ids_in(out))) == sorted(f"r{i}" for i in range(20))
    assert not errors_path_of(out).exists()


async def test_submitting_again_runs_nothing_twice(cluster: Cluster, tmp_path: Path) -> None:
    engine = ManualEngine()
    await cluster.join("w", engine)
    source = requests(tmp_path, cluster.model, 3)
    batch = new_batch_id()
    first = await tokenyard(cluster.url, "submit", source, "--batch", batch, "--json")
    assert json.loads(first.out) == {
        "batch": batch,
        "accepted": 3,
        "known": 0,
        "refused": 0,
        "on_disk": True,
        "replicas": 0,
    }
    await all_run(engine, 3)
    again = await tokenyard(cluster.url, "submit", source, "--batch", batch)
    assert (again.code, again.out) == (0, f"{batch}\n")
    assert "0 jobs queued, 3 known already" in again.err
    engine.finish()
    await ended(cluster, batch, 3)
    assert len(engine.started) == 3


async def test_priorities(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.register_model()  # and no worker: everything waits
    for priority in Priority:
        await tokenyard(
            cluster.url, "submit", requests(tmp_path, cluster.model, 2), "--priority", priority, "--batch", priority
        )
    assert await cluster.monitor.waiting() == {"returned": 0, "high": 2, "normal": 2, "low": 2}
    for priority in Priority:
        await cluster.client.cancel(priority)


# --- lines that cannot run


async def test_bad_lines_are_named_and_the_rest_runs(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.register_model()
    good = [line("a", cluster.model), line("b", cluster.model)]
    source = batch_file(tmp_path, good[0], *([b"no JSON"] * 11), line("c", "other"), good[0], good[1])
    refused = tmp_path / "refused.jsonl"
    submitted = await tokenyard(cluster.url, "submit", source, "--errors", refused)
    assert submitted.code == 0
    lines = submitted.err.splitlines()
    assert [text.split(": ")[0] for text in lines[:10]] == [f"{source}:{number}" for number in range(2, 12)]
    assert lines[10] == f"13 lines cannot run, the first 10 are above; all are in {refused}"
    assert "2 jobs queued" in lines[11]
    errors = [json.loads(text)["error"] for text in refused.read_text().splitlines()]
    assert [error["code"] for error in errors] == [
        *["invalid_json_line"] * 11,
        "duplicate_custom_id",
        "model_not_found",
    ]
    assert errors[-1]["message"].startswith(f"{source}:13: no pool serves model 'other'; served here: ")
    await cluster.client.cancel(submitted.out.strip())


async def test_refused_lines_of_an_earlier_run_go(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.register_model()
    source = batch_file(tmp_path, line("a", cluster.model), b"no JSON")
    refused = tmp_path / "refused.jsonl"
    for _ in range(2):
        submitted = await tokenyard(cluster.url, "submit", source, "--errors", refused)
        assert len(refused.read_bytes().splitlines()) == 1
        await cluster.client.cancel(submitted.out.strip())


async def test_a_file_with_no_line_that_can_run(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.register_model()
    batch = new_batch_id()
    for content in (b"no JSON", line("a", "other")):
        submitted = await tokenyard(cluster.url, "submit", batch_file(tmp_path, content), "--batch", batch)
        assert (submitted.code, submitted.out) == (2, "")
        assert submitted.err.splitlines()[-1].startswith(f"error: {tmp_path / 'in.jsonl'}: no line can run")
    assert await cluster.client.pools_of(batch) == []
    assert names_in(tmp_path) == ["in.jsonl"]


async def test_a_damaged_file_can_be_gone_on_with(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.join("w", instant_engine(cluster.model))
    good = gzip.compress(b"\n".join(line(f"r{i}", cluster.model) for i in range(2000)))
    source = tmp_path / "in.jsonl.gz"
    source.write_bytes(good[:-20])
    batch = new_batch_id()
    damaged = await tokenyard(cluster.url, "submit", source, "--batch", batch)
    assert (damaged.code, damaged.out) == (2, "")
    assert f"`tokenyard submit {source} --batch {batch}` goes on" in damaged.err
    assert "is damaged after line" in damaged.err.splitlines()[-1]
    source.write_bytes(good)
    mended = await tokenyard(cluster.url, "submit", source, "--batch", batch, "--json")
    report = json.loads(mended.out)
    assert report["known"] > 0
    assert report["known"] + report["accepted"] == 2000
    await ended(cluster, batch, 2000)


async def test_no_more_into_a_cancelled_batch(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.register_model()
    batch = await cluster.submit(1)
    await cluster.client.cancel(batch)
    submitted = await tokenyard(cluster.url, "submit", requests(tmp_path, cluster.model, 1), "--batch", batch)
    assert submitted.code == 2
    assert submitted.err.splitlines()[-1] == f"error: batch {batch} is cancelled; submit to a new one"


# --- follow


async def test_ctrl_c_leaves_the_batch_running(cluster: Cluster) -> None:
    engine = ManualEngine()
    await cluster.join("w", engine)
    batch = await cluster.submit(3)
    await all_run(engine, 3)
    following = await start(cluster.url, "follow", batch)
    await following.says("0/3 jobs")
    following.interrupt()
    followed = await following.end()
    assert followed.code == 130
    assert followed.err.endswith(f"the batch goes on without this: `tokenyard follow {batch}` shows it again\n")
    assert len(engine.running) == 3
    engine.finish()
    await ended(cluster, batch, 3)


async def test_a_batch_that_is_still_being_submitted(cluster: Cluster) -> None:
    await cluster.join("w", instant_engine(cluster.model))
    batch = new_batch_id()
    await cluster.client.submit(cluster.requests(2), batch)
    following = await start(cluster.url, "follow", batch)
    await following.says("must still complete it")
    await cluster.client.submit(cluster.requests(3), batch)
    await cluster.client.seal(batch)
    followed = await following.end()
    assert followed.code == 0
    assert "3/3 jobs" in followed.err


# --- collect


async def test_what_is_there_and_later_the_rest(cluster: Cluster, out: Path) -> None:
    engine = ManualEngine()
    await cluster.join("w", engine)
    batch = await cluster.submit(4)
    await all_run(engine, 4)
    engine.finish(2)
    await ended(cluster, batch, 2)
    part = await tokenyard(cluster.url, "collect", batch, "-o", out, "--no-wait")
    assert part.code == 0
    assert "2 responses written" in part.err
    assert f"more are to come: `tokenyard collect {batch} -o {out}` goes on" in part.err
    assert len(ids_in(out)) == 2

    collecting = await start(cluster.url, "collect", batch, "-o", out)
    await collecting.says("2/4 jobs")
    engine.finish(1, status_code=400)
    await ended(cluster, batch, 3)
    engine.finish()
    rest = await collecting.end()
    assert rest.code == 0
    assert "1 response written" in rest.err
    assert f"1 request without a response; the reasons are in {errors_path_of(out)}" in rest.err
    assert "more are to come" not in rest.err
    written = ids_in(out) + ids_in(errors_path_of(out))
    assert sorted(map(str, written)) == ["r0", "r1", "r2", "r3"]
    [failure] = [json.loads(text) for text in errors_path_of(out).read_text().splitlines()]
    assert (failure["response"]["status_code"], failure["error"]) == (400, None)


async def test_ctrl_c_keeps_what_was_collected(cluster: Cluster, out: Path) -> None:
    engine = ManualEngine()
    await cluster.join("w", engine)
    batch = await cluster.submit(2)
    await all_run(engine, 2)
    engine.finish(1)
    await ended(cluster, batch, 1)
    collecting = await start(cluster.url, "collect", batch, "-o", out)
    await collecting.says("1/2 jobs")
    await eventually(lambda: out.exists() and len(ids_in(out)) == 1, "one response is written")
    collecting.interrupt()
    stopped = await collecting.end()
    assert stopped.code == 130
    assert "more are to come" in stopped.err
    engine.finish()
    assert (await tokenyard(cluster.url, "collect", batch, "-o", out)).code == 0
    assert sorted(map(str, ids_in(out))) == ["r0", "r1"]


async def test_errors_go_where_one_says(cluster: Cluster, out: Path) -> None:
    engine = ManualEngine()
    await cluster.join("w", engine)
    batch = await cluster.submit(1)
    await all_run(engine, 1)
    engine.finish(status_code=400)
    elsewhere = out.parent / "bad.jsonl"
    collected = await tokenyard(cluster.url, "collect", batch, "-o", out, "--errors", elsewhere)
    assert collected.code == 0
    assert ids_in(elsewhere) == ["r0"]
    assert not errors_path_of(out).exists()


async def test_a_folder_that_is_not_there(cluster: Cluster, out: Path) -> None:
    await cluster.register_model()
    batch = await cluster.submit(1)
    collected = await tokenyard(cluster.url, "collect", batch, "-o", out.parent / "no" / "out.jsonl")
    assert collected.code == 2
    assert one_line(collected.err)
    assert "create the folder" in collected.err
    await cluster.client.cancel(batch)


# --- cancel


async def test_cancel(cluster: Cluster, out: Path) -> None:
    engine = ManualEngine(seats=2)
    await cluster.join("w", engine)
    batch = await cluster.submit(10)
    await eventually(lambda: len(engine.running) >= 2, "the seats are taken")
    engine.finish(1)
    await ended(cluster, batch, 1)
    cancelled = await tokenyard(cluster.url, "cancel", batch)
    assert cancelled.code == 0
    assert cancelled.out.startswith(f"batch {batch}: 1 done, 0 failed, ")
    await ended(cluster, batch, 10)
    again = await tokenyard(cluster.url, "cancel", batch)
    assert (again.code, again.out) == (0, f"batch {batch}: 1 done, 0 failed, 9 cancelled\n")
    await tokenyard(cluster.url, "collect", batch, "-o", out)
    assert len(ids_in(out)) == 1
    codes = {json.loads(text)["error"]["code"] for text in errors_path_of(out).read_text().splitlines()}
    assert codes == {"batch_cancelled"}


async def test_a_batch_that_has_ended_cannot_be_cancelled(cluster: Cluster) -> None:
    await cluster.join("w", instant_engine(cluster.model))
    batch = await cluster.submit(1)
    await ended(cluster, batch, 1)
    cancelled = await tokenyard(cluster.url, "cancel", batch)
    assert (cancelled.code, cancelled.out) == (2, "")
    assert one_line(cancelled.err)
    assert (await cluster.client.counts(batch)).state == "open"


# --- names that are not there


@pytest.mark.parametrize("words", [["follow", "nope"], ["collect", "nope", "-o", "out.jsonl"], ["cancel", "nope"]])
async def test_an_unknown_batch(redis_url: str, words: list[str], tmp_path: Path) -> None:
    words = [str(tmp_path / word) if word == "out.jsonl" else word for word in words]
    refused = await tokenyard(redis_url, *words)
    assert (refused.code, refused.out) == (1, "")
    assert one_line(refused.err)
    assert "no batch nope: `tokenyard status` lists" in refused.err
    assert names_in(tmp_path) == []

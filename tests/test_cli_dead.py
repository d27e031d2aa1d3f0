"""`tokenyard dead`, and the options of submit and cancel, against a cluster that runs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cli_process import tokenyard
from cluster_fixtures import Cluster, ManualEngine, cluster_of, eventually, instant_engine

from broker.jobs import job_id
from broker.openai_batch import ID_PREFIX
from broker.store.dead import DeadLetterStore


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(redis_url, pool) as running:
        running.schedule()
        yield running


async def two_dead(cluster: Cluster) -> str:
    """A batch of which r0 and r1 failed for good and r2 did not."""
    engine = ManualEngine()
    worker = await cluster.join("w", engine)
    batch = await cluster.submit(3)
    await eventually(lambda: len(engine.running) == 3, "3 jobs run")
    engine.finish(2, status_code=400)
    await eventually(lambda: len(engine.running) == 1, "2 jobs ended")
    await cluster.finish(batch, engine)
    await worker.stop()
    return batch


async def dead_ids(cluster: Cluster) -> list[str]:
    return await DeadLetterStore(cluster.redis, cluster.settings.pool).ids()


async def test_list_and_show(cluster: Cluster) -> None:
    batch, pool = await two_dead(cluster), cluster.settings.pool
    listed = await tokenyard(cluster.url, "dead", "list", "--pool", pool)
    assert (listed.code, listed.err) == (0, "")
    first = job_id(batch, "r0")
    assert sum("status 400" in line for line in listed.out.splitlines()) == 2
    assert first in listed.out

    shown = await tokenyard(cluster.url, "dead", "show", ID_PREFIX + first, "--pool", pool)
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert lines[0] == f"job {first}, custom_id r0, batch {batch}"
    assert lines[2].startswith("attempt 1 on w, from 2")
    assert 'status 400: {"object": "made up"}' in lines[2]

    machine = await tokenyard(cluster.url, "dead", "list", "--json", "--batch", batch, "--pool", pool)
    letters = [json.loads(line) for line in machine.out.splitlines()]
    assert {letter["custom_id"] for letter in letters} == {"r0", "r1"}
    assert [attempt["worker"] for attempt in letters[0]["attempts"]] == ["w"]


async def test_retry_makes_fresh_jobs_in_a_new_batch(cluster: Cluster, tmp_path: Path) -> None:
    batch, pool = await two_dead(cluster), cluster.settings.pool
    retried = await tokenyard(cluster.url, "dead", "retry", "--batch", batch, "--pool", pool)
    new = retried.out.strip()
    assert (retried.code, len(retried.out.splitlines())) == (0, 1)
    assert f"2 jobs of batch {batch} queued again" in retried.err
    assert await dead_ids(cluster) == []
    await cluster.join("w2", instant_engine(cluster.model))
    results = await cluster.collect(new)
    assert sorted((r.custom_id, r.ok, r.attempt) for r in results) == [("r0", True, 1), ("r1", True, 1)]
    before = await cluster.collect(batch)
    assert sorted((r.custom_id, r.ok) for r in before) == [("r0", False), ("r1", False), ("r2", True)]


async def test_a_request_that_was_too_long_to_keep_is_named(cluster: Cluster) -> None:
    batch, pool = await two_dead(cluster), cluster.settings.pool
    first = job_id(batch, "r0")
    await cluster.redis.execute_command("HDEL", cluster.keys.letter(first), "body")
    retried = await tokenyard(cluster.url, "dead", "retry", first, "--pool", pool)
    assert (retried.code, retried.out) == (1, "")
    assert f"job {first}: its request was too long to be kept" in retried.err
    assert first in await dead_ids(cluster)


async def test_drop(cluster: Cluster) -> None:
    batch, pool = await two_dead(cluster), cluster.settings.pool
    dropped = await tokenyard(cluster.url, "dead", "drop", job_id(batch, "r0"), "--pool", pool)
    assert (dropped.code, dropped.err) == (0, "1 dead letter dropped\n")
    assert await dead_ids(cluster) == [job_id(batch, "r1")]
    assert (await tokenyard(cluster.url, "dead", "drop", "--all", "--pool", pool)).code == 0
    assert await dead_ids(cluster) == []


async def test_jobs_on_the_list_without_a_letter_are_counted_and_can_be_dropped(cluster: Cluster) -> None:
    batch, pool = await two_dead(cluster), cluster.settings.pool
    first, second = job_id(batch, "r0"), job_id(batch, "r1")
    assert (await tokenyard(cluster.url, "dead", "list", "--pool", pool)).err == ""
    await cluster.redis.delete(cluster.keys.letter(first))
    listed = await tokenyard(cluster.url, "dead", "list", "--pool", pool)
    assert (first in listed.out, second in listed.out) == (False, True)
    assert listed.err.startswith("1 job on the list has no letter that can be read")
    assert first in listed.err
    dropped = await tokenyard(cluster.url, "dead", "drop", first, "--pool", pool)
    assert (dropped.code, dropped.err) == (0, "1 dead letter dropped\n")
    await cluster.redis.set(cluster.keys.letter(second), "no letter at all", ex=60)
    await cluster.redis.zadd(cluster.keys.dead, {f"{batch}.{i}": i for i in range(7)})
    machine = await tokenyard(cluster.url, "dead", "list", "--json", "--pool", pool)
    assert machine.out == ""
    assert "8 jobs on the list have no letter that can be read" in machine.err
    assert " and 3 more; `tokenyard dead drop JOB` takes them off the list" in machine.err


@pytest.mark.parametrize("words", [("show", "none.at-all"), ("drop",)])
async def test_what_is_not_there_or_not_said_is_one_line(cluster: Cluster, words: tuple[str, ...]) -> None:
    ended = await tokenyard(cluster.url, "dead", *words, "--pool", cluster.settings.pool)
    assert ended.code in (1, 2)
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1


async def test_some_requests_of_a_batch_are_cancelled(cluster: Cluster) -> None:
    await cluster.register_model()
    batch = await cluster.submit(3)
    cancelled = await tokenyard(cluster.url, "cancel", batch, "r0", "r2")
    assert (cancelled.code, cancelled.err) == (0, "")
    assert cancelled.out.startswith(f"batch {batch}: 2 requests cancelled, 0 done, 0 failed, 2 cancelled")
    again = await tokenyard(cluster.url, "cancel", batch, "r0")
    assert (again.code, again.err.count("\n")) == (2, 1)
    await cluster.client.cancel(batch)


async def test_the_options_of_submit(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.register_model()
    body = {"model": cluster.model, "messages": [{"role": "user", "content": "Hi."}]}
    line = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body})
    source = tmp_path / "in.jsonl"
    source.write_text(line + "\n")
    words = ("submit", source, "--json")
    bounded = await tokenyard(cluster.url, *words, "--timeout", "90s", "--completion-window", "2h", "--batch", "one")
    assert json.loads(bounded.out)["on_disk"] is True
    raw = await cluster.redis.execute_command("HMGET", cluster.keys.batch("one"), "created", "expires")
    assert round(float(raw[1]) - float(raw[0])) == 7200
    job = cluster.keys.job(job_id("one", "a"))
    assert await cluster.redis.execute_command("HGET", job, "timeout_s") == b"90"

    wrong = await tokenyard(cluster.url, *words, "--timeout", "soon")
    assert (wrong.code, wrong.err) == (2, "error: --timeout soon: give a time as 90s, 30m, 2h or 1d\n")
    await cluster.client.cancel("one")

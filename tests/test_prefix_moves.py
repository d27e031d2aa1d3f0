"""The marks of a job's prefix on its way: from the batch file to the scheduler, and back with jobs that return."""

from __future__ import annotations

import json

import pytest
from cluster_fixtures import CHAT
from move_fixtures import TTL_S, Desk

from broker.client import Client
from broker.jobs import WaitingJob
from broker.openai_batch import RequestLine, parse_line
from broker.prefixes import MAX_CHARS, parse_marks, prefix_marks


def body(model: str, text: str) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": text}]}


def request(custom_id: str, model: str, text: str) -> RequestLine:
    line = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body(model, text)}
    parsed = parse_line(json.dumps(line).encode(), line=1, source="f", max_bytes=10**6)
    assert isinstance(parsed, RequestLine)
    return parsed


async def submit(desk: Desk) -> None:
    client = Client(desk.redis, TTL_S)
    model = f"model of {desk.pool}"
    await client.registry.add_pool(desk.pool, [model])
    await client.submit([request("long", model, "word " * 500), request("short", model, "word")], "b")


async def prefixes(desk: Desk) -> dict[int, str]:
    """Marks by whether the job's body is long."""
    return {job.body_bytes > 1000: job.prefix for job in await desk.waiting()}


async def test_the_scheduler_reads_the_marks_that_were_made_at_submission(desk: Desk) -> None:
    await submit(desk)
    expected = prefix_marks(CHAT, body(f"model of {desk.pool}", "word " * 500))
    assert len(expected) == 3
    found = await prefixes(desk)
    assert parse_marks(found[True]) == expected
    assert found[False] == ""
    entries = await desk.redis.xrange(desk.keys.requests("normal"))
    assert [b"prefix" in fields for _, fields in entries] == [True, False]


async def test_jobs_that_return_keep_their_marks(desk: Desk) -> None:
    await submit(desk)
    first = await prefixes(desk)
    worker = await desk.worker()
    await desk.dispatch()
    assert await worker.take(1)  # one has started, the other has not
    assert await desk.scheduler.declare_dead("w", silent_s=0, max_attempts=3) == 2
    returned = await desk.waiting()
    assert {job.level for job in returned} == {"returned"}
    assert {job.body_bytes > 1000: job.prefix for job in returned} == first


@pytest.mark.parametrize("junk", [b"512:zz", b"x" * 5000, "ünï".encode(), b"\x1e 512:0123456789"])
async def test_odd_marks_in_redis_are_none_and_the_job_is_one(desk: Desk, junk: bytes) -> None:
    await submit(desk)
    fields = {"job": "b.1", "batch": "b", "priority": "normal", "body_bytes": "9", "max_tokens": "0", "prefix": junk}
    await desk.redis.xadd(desk.keys.requests("normal"), fields)
    jobs: list[WaitingJob] = [job for job in await desk.waiting() if job.job_id == "b.1"]
    assert len(jobs) == 1
    assert len(jobs[0].prefix) <= MAX_CHARS
    assert parse_marks(jobs[0].prefix) == ()

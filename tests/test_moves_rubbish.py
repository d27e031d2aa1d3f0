"""What anybody may write into Redis by hand, on each server: nothing dies of it, and no job is lost."""

from __future__ import annotations

from typing import Any

import pytest
from move_fixtures import Desk

from broker.jobs import job_id


class TestRubbishInRequestStreams:
    @pytest.mark.parametrize(
        "fields",
        [
            {"what": "is this"},
            {"job": "b.1", "batch": "b", "priority": "normal", "body_bytes": "1"},
            {"job": "b.1", "batch": "b", "priority": "normal", "body_bytes": "many", "max_tokens": "0"},
            {"job": "b.1", "batch": "b", "priority": "normal", "body_bytes": "-1", "max_tokens": "0"},
            {"job": "b.1", "batch": "b", "priority": "normal", "body_bytes": "1", "max_tokens": "9e99"},
            {"job": "b.1", "batch": "b", "priority": "urgent", "body_bytes": "1", "max_tokens": "0"},
            {"job": "b.1", "batch": "b", "priority": "high", "body_bytes": "1", "max_tokens": "0"},
            {"job": b"\xff", "batch": "b", "priority": "normal", "body_bytes": "1", "max_tokens": "0"},
        ],
    )
    async def test_entries_that_are_no_jobs_are_removed_and_named(
        self, desk: Desk, fields: dict[Any, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        entry = (await desk.redis.xadd(desk.keys.requests("normal"), fields)).decode()
        await desk.submit("a")
        assert await desk.waiting_ids() == ["a"]
        assert await desk.redis.xlen(desk.keys.requests("normal")) == 1
        assert (await desk.redis.xpending(desk.keys.requests("normal"), "scheduler"))["pending"] == 1
        assert entry in caplog.text

    async def test_any_number_of_them_hides_no_job(self, desk: Desk) -> None:
        pipe = desk.redis.pipeline(transaction=False)
        for _ in range(30):
            pipe.xadd(desk.keys.requests("normal"), {"what": "is this"})
        await pipe.execute()
        await desk.submit("a", "b")
        await desk.redis.xreadgroup("scheduler", "scheduler", {desk.keys.requests("normal"): ">"})
        assert len(await desk.scheduler.read_pending("normal", 10)) == 2

    async def test_entries_deleted_while_they_were_out_are_forgotten(self, desk: Desk) -> None:
        await desk.submit("a", "b")
        first, _ = await desk.waiting()
        await desk.redis.xdel(desk.keys.requests("normal"), first.entry_id)
        assert await desk.waiting_ids() == ["b"]
        assert (await desk.redis.xpending(desk.keys.requests("normal"), "scheduler"))["pending"] == 1

    async def test_a_sound_entry_of_a_job_that_is_none_is_dropped_at_dispatch(self, desk: Desk) -> None:
        await desk.worker()
        fields = {"job": "b.x", "batch": "b", "priority": "low", "body_bytes": "1", "max_tokens": "0"}
        await desk.redis.xadd(desk.keys.requests("low"), fields)
        assert await desk.dispatch() == (set(), {"b.x"})
        assert await desk.depth() == 0
        assert await desk.waiting() == []


class TestRubbishOfWorkers:
    async def test_names_without_a_worker_go(self, desk: Desk) -> None:
        await desk.redis.zadd(desk.keys.workers, {"ghost": 1, b"\xff\xfe": 2, "has no hash": 3})
        await desk.redis.set(desk.keys.worker("has no hash"), "a string")
        await desk.redis.xadd(desk.keys.device("ghost"), {"what": "is this"})
        beats = await desk.scheduler.heartbeats()
        assert set(beats.values()) == {None}
        for name in beats:
            assert await desk.scheduler.declare_dead(name, silent_s=60, max_attempts=3) == 0
        left = [desk.keys.workers, desk.keys.worker("has no hash"), desk.keys.device("ghost")]
        assert await desk.redis.exists(*left) == 0

    async def test_a_heartbeat_without_a_time_counts_as_none(self, desk: Desk) -> None:
        await desk.worker()
        await desk.submit("a")
        await desk.dispatch()
        await desk.redis.hset(desk.keys.worker("w"), "seen", "yesterday")
        assert await desk.scheduler.heartbeats() == {"w": None}
        assert await desk.scheduler.declare_dead("w", silent_s=60, max_attempts=3) == 1
        assert await desk.waiting_ids() == ["a"]

    async def test_a_device_queue_is_read_past_what_is_no_job(self, desk: Desk) -> None:
        await desk.worker()
        for fields in ({"what": "is this"}, {"job": "b.1", "prompt_tokens": "many", "output_tokens": "1"}):
            await desk.redis.xadd(desk.keys.device("w"), fields)
        await desk.submit("a")
        await desk.dispatch()
        assert [j.job_id for j in await desk.scheduler.in_flight("w")] == [job_id("b", "a")]

    async def test_orders_that_are_not_text_can_be_read(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.redis.xadd(desk.keys.control("w"), {b"\xff": b"\xfe"})
        _, orders = await worker.orders("0")
        assert len(orders) == 1

    async def test_events_that_are_not_text_can_be_read(self, desk: Desk) -> None:
        before = await desk.scheduler.last_event()
        await desk.redis.xadd(desk.keys.events, {b"kind": b"\xfe"})
        assert len(await desk.scheduler.events(before)) == 1

"""Taking jobs back that have not started, and what is kept about a dispatch, on each server."""

from __future__ import annotations

import asyncio

import pytest
from cluster_fixtures import READY
from move_fixtures import Desk, by_id, ended

from broker.errors import LeaseLostError
from broker.events import Completed, EndedTokens, Returned, parse_event
from broker.jobs import BATCH_CANCELLED, Outcome, Priority, job_id
from broker.policies.base import Placement


def ids(*custom_ids: str) -> list[str]:
    return [job_id("b", custom_id) for custom_id in custom_ids]


class TestRecall:
    async def test_what_has_not_started_waits_again_with_its_attempt(self, desk: Desk) -> None:
        slow, quick = await desk.worker("slow"), await desk.worker("quick")
        await desk.submit("a", "b", "c", priority=Priority.HIGH)
        [before, *_] = await desk.waiting()
        await desk.dispatch("slow")
        assert await desk.scheduler.recall({"slow": ids("a", "c")}) == set(ids("a", "c"))
        assert await desk.depth("slow") == 1
        [after, _] = await desk.waiting()
        assert (after.level, after.priority, after.body_bytes, after.max_tokens) == (
            "returned",
            "high",
            before.body_bytes,
            before.max_tokens,
        )
        await desk.dispatch("quick")
        assert {d.custom_id: d.attempt for d in await quick.take(10)} == {"a": 1, "c": 1}
        assert [d.custom_id for d in await slow.take(10)] == ["b"]

    async def test_what_has_started_stays(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.submit(*"abc")
        await desk.dispatch()
        [started] = await worker.take(1)
        assert await desk.scheduler.recall({"w": ids(*"abc")}) == set(ids("b", "c"))
        assert await worker.complete([ended(started)]) == [True]
        assert await worker.take(10) == []
        assert await desk.depth() == 0
        assert sorted(await desk.waiting_ids()) == ["b", "c"]

    async def test_what_has_ended_or_waits_or_is_elsewhere_or_nowhere_stays(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.worker("other")
        await worker.complete([ended(d) for d in await desk.deliver("done", worker=worker)])
        await desk.submit("elsewhere")
        await desk.dispatch("other")
        await desk.submit("waits")
        asked = {"w": [*ids("done", "elsewhere", "waits"), "none"], "nobody": ids("x")}
        assert await desk.scheduler.recall(asked) == set()
        assert (await desk.depth("other"), await desk.waiting_ids()) == (1, ["waits"])
        assert await desk.redis.exists(desk.keys.device("nobody")) == 0

    async def test_a_second_time_it_changes_nothing(self, desk: Desk) -> None:
        await desk.worker()
        await desk.submit("a")
        await desk.dispatch()
        assert await desk.scheduler.recall({"w": ids("a", "a")}) == set(ids("a"))
        assert await desk.scheduler.recall({"w": ids("a")}) == set()
        assert await desk.waiting_ids() == ["a"]

    async def test_it_is_told_to_the_scheduler(self, desk: Desk) -> None:
        await desk.worker()
        await desk.submit("a", "b")
        await desk.dispatch()
        before = await desk.scheduler.last_event()
        await desk.scheduler.recall({"w": ids("a", "b")})
        events = [parse_event(fields) for _, fields in await desk.scheduler.events(before)]
        assert events == [Returned("w", ids("a", "b"))]

    async def test_jobs_of_a_cancelled_batch_end(self, desk: Desk) -> None:
        await desk.worker()
        await desk.submit("a")
        await desk.dispatch()
        await desk.client.cancel("b")
        assert await desk.scheduler.recall({"w": ids("a")}) == set(ids("a"))
        assert [r.error_code for r in await desk.results()] == [BATCH_CANCELLED]
        assert await desk.waiting() == []

    async def test_without_the_lease_nothing_moves(self, desk: Desk) -> None:
        await desk.worker()
        await desk.submit("a")
        await desk.dispatch()
        await desk.scheduler.release_lease()
        with pytest.raises(LeaseLostError):
            await desk.scheduler.recall({"w": ids("a")})
        assert await desk.depth() == 1

    @pytest.mark.parametrize("entry", ["", "no id", "1-1"])
    async def test_a_job_whose_entry_was_forged_stays_where_it_is(self, desk: Desk, entry: str) -> None:
        worker = await desk.worker()
        await desk.submit("a")
        await desk.dispatch()
        await desk.redis.hset(desk.keys.job(*ids("a")), "entry", entry)
        assert await desk.scheduler.recall({"w": ids("a")}) == set()
        assert await worker.complete([ended(d) for d in await worker.take(1)]) == [True]
        assert [r.custom_id for r in await desk.results()] == ["a"]


class TestRecord:
    async def dispatch(self, desk: Desk, predicted_s: float = 12.3456, reason: str = "least load") -> None:
        [job] = await desk.waiting()
        await desk.scheduler.dispatch({"w": [Placement(job, 10, 20, "w", predicted_s, reason)]})

    async def test_a_result_tells_what_was_expected_and_when_it_was(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.submit("a")
        await self.dispatch(desk)
        [delivery] = await worker.take(1)
        assert (delivery.prompt_tokens, delivery.max_tokens) == (10, 7)
        await worker.complete([Outcome(delivery, 200, b"{}", 11, 5, cached_tokens=4)])
        [result] = await desk.results()
        assert (result.predicted_s, result.predicted_output_tokens, result.reason) == (12.346, 20, "least load")
        assert result.cached_tokens == 4
        assert 0 < result.submitted <= result.dispatched <= result.started
        assert result.ended == pytest.approx(await desk.scheduler.clock(), abs=60)

    async def test_so_does_a_failure_without_response(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.submit("a")
        await self.dispatch(desk)
        [delivery] = await worker.take(1)
        await worker.complete([ended(delivery, 0, BATCH_CANCELLED)])
        [result] = await desk.results()
        assert (result.predicted_s, result.predicted_output_tokens, result.reason) == (12.346, 20, "least load")
        assert result.dispatched > 0

    async def test_the_dispatch_that_counted_is_told_of(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.submit("a")
        await self.dispatch(desk, 1.0, "first")
        await worker.hand_back(also_running=True)
        await worker.heartbeat(READY)
        await self.dispatch(desk, 2.0, "second")
        await worker.complete([ended(d) for d in await worker.take(1)])
        assert [(r.predicted_s, r.reason) for r in await desk.results()] == [(2.0, "second")]

    async def test_a_job_that_no_device_ran_has_none(self, desk: Desk) -> None:
        await desk.worker()
        await desk.submit("a")
        await self.dispatch(desk)
        await desk.scheduler.recall({"w": ids("a")})
        await desk.client.cancel("b")
        await desk.scheduler.discard(await desk.waiting())
        [result] = await desk.results()
        assert (result.dispatched, result.predicted_s, result.reason, result.worker) == (0.0, 0.0, "", "")
        assert result.ended > result.submitted

    async def test_cached_tokens_are_told_to_the_scheduler(self, desk: Desk) -> None:
        worker = await desk.worker()
        [delivery] = await desk.deliver("a", worker=worker)
        before = await desk.scheduler.last_event()
        await worker.complete([Outcome(delivery, 200, b"{}", 11, 5, cached_tokens=4)])
        events = [parse_event(fields) for _, fields in await desk.scheduler.events(before)]
        assert events == [Completed("w", {delivery.job_id: EndedTokens(11, 5, 4)})]

    async def test_a_late_outcome_is_no_event(self, desk: Desk) -> None:
        worker = await desk.worker()
        [delivery] = await desk.deliver("a", worker=worker)
        await worker.complete([ended(delivery)])
        before = await desk.scheduler.last_event()
        assert await worker.complete([ended(delivery)]) == [False]
        assert await desk.scheduler.last_event() == before

    @pytest.mark.parametrize("value", ["", "nan", "inf", "-1", "1e300", "1e999", "soon"])
    async def test_a_record_that_was_forged_counts_as_none(self, desk: Desk, value: str) -> None:
        fields = {"job": "b.x", "custom_id": "x", "status_code": 200, "worker": "w", "attempt": 1, "submitted": 1.0}
        forged = dict.fromkeys(("dispatched", "predicted_s", "predicted_output_tokens", "cached_tokens"), value)
        await desk.redis.xadd(desk.keys.results("b"), fields | forged | {"started": 2.0, "reason": b"\xff"})
        [result] = await desk.results()
        assert (result.dispatched, result.predicted_s, result.predicted_output_tokens) == (0.0, 0.0, 0)
        assert (result.cached_tokens, result.reason) == (0, "\ufffd")

    @pytest.mark.parametrize("tokens", ["many", "-5", "", "9" * 40, "1.5"])
    async def test_predicted_lengths_that_were_forged_count_as_none(self, desk: Desk, tokens: str) -> None:
        worker = await desk.worker()
        await desk.submit("a")
        await desk.redis.hset(desk.keys.job(*ids("a")), "max_tokens", tokens)
        await desk.redis.xadd(desk.keys.device("w"), {"job": ids("a")[0], "prompt_tokens": tokens})
        [delivery] = await worker.take(1)
        assert (delivery.prompt_tokens, delivery.max_tokens) == (0, 0)


async def test_every_job_ends_once_where_recalls_and_takes_meet(desk: Desk) -> None:
    """Whichever comes first: a job is either taken or waits again, never both."""
    worker = await desk.worker()
    custom_ids = [str(i) for i in range(100)]
    await desk.submit(*custom_ids)
    await desk.dispatch()
    takes = [worker.take(10) for _ in range(6)]
    recalls = [desk.scheduler.recall({"w": ids(*custom_ids[i::5])}) for i in range(5)]
    mixed = [call for pair in zip(takes, recalls, strict=False) for call in pair] + takes[5:]
    answers = await asyncio.gather(*mixed)
    taken = [d for answer in answers if isinstance(answer, list) for d in answer]
    back = {job for answer in answers if isinstance(answer, set) for job in answer}
    assert {d.job_id for d in taken} | back == set(ids(*custom_ids))
    assert len(taken) + len(back) == 100
    await worker.complete([ended(d) for d in taken])
    await desk.dispatch()
    await worker.complete([ended(d) for d in await worker.take(100)])
    assert sorted(by_id(await desk.results()), key=int) == custom_ids

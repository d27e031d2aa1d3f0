"""The atomic moves of a job on its way, on each server: who may move what, and what is left behind."""

from __future__ import annotations

import pytest
from cluster_fixtures import CHAT, READY
from move_fixtures import BODY, TTL_S, Desk, by_id, ended

from broker.errors import LeaseLostError, UsageError, WorkerGoneError
from broker.jobs import BATCH_CANCELLED, BatchCounts, Outcome, Priority, Submission, job_id
from broker.keys import LEVELS
from broker.policies.base import Placement


class TestSubmit:
    async def test_the_same_custom_id_twice_is_one_job(self, desk: Desk) -> None:
        assert await desk.submit("a", "b") == 2
        assert await desk.submit("b", "c") == 1
        assert await desk.submit("a", "b", "c") == 0
        assert await desk.waiting_ids() == ["a", "b", "c"]
        assert await desk.client.counts("b") == BatchCounts(total=3)

    async def test_doubled_within_one_call_it_is_one_job_too(self, desk: Desk) -> None:
        assert await desk.submit("a", "a") == 1
        assert (await desk.client.counts("b")).total == 1

    async def test_a_job_that_ended_is_not_run_again(self, desk: Desk) -> None:
        worker = await desk.worker()
        await worker.complete([ended(d) for d in await desk.deliver("a", worker=worker)])
        assert await desk.submit("a") == 0
        assert await desk.waiting() == []
        assert (await desk.client.counts("b")).total == 1

    async def test_the_same_custom_id_in_two_batches_is_two_jobs(self, desk: Desk) -> None:
        assert await desk.submit("a", batch="x") == 1
        assert await desk.submit("a", batch="y") == 1
        assert len({job.job_id for job in await desk.waiting()}) == 2

    async def test_the_body_is_written_once_and_not_in_the_streams(self, desk: Desk) -> None:
        await desk.submit("a")
        assert await desk.redis.get(desk.keys.body(job_id("b", "a"))) == BODY
        [(_, fields)] = await desk.redis.xrange(desk.keys.requests("normal"))
        assert set(fields) == {b"job", b"batch", b"priority", b"body_bytes", b"max_tokens"}
        assert (fields[b"body_bytes"], fields[b"max_tokens"]) == (str(len(BODY)).encode(), b"7")

    async def test_it_is_refused_once_the_batch_is_cancelled(self, desk: Desk) -> None:
        await desk.submit("a")
        await desk.client.cancel("b")
        with pytest.raises(UsageError, match="batch b is cancelled"):
            await desk.submit("c")
        assert (await desk.client.counts("b")).total == 1

    async def test_each_priority_has_its_stream(self, desk: Desk) -> None:
        for priority in Priority:
            await desk.submit(priority.value, priority=priority)
        assert await desk.scheduler.waiting() == {"returned": 0, "high": 1, "normal": 1, "low": 1}

    @pytest.mark.parametrize("max_tokens", [0, 10**9, 2**63 - 1])
    async def test_any_max_tokens_comes_out_as_a_number(self, desk: Desk, max_tokens: int) -> None:
        await desk.client.submit("b", [Submission(job_id("b", "a"), "a", CHAT, BODY, max_tokens)], Priority.NORMAL)
        assert [job.max_tokens for job in await desk.waiting()] == [min(max_tokens, 10**9)]

    @pytest.mark.parametrize("custom_id", ["with space", "a:b", "ümlaut", "\x00\n", "💡" * 512, "{x}*"])
    async def test_any_custom_id_comes_back_as_it_was(self, desk: Desk, custom_id: str) -> None:
        worker = await desk.worker()
        await worker.complete([ended(d) for d in await desk.deliver(custom_id, worker=worker)])
        assert [r.custom_id for r in await desk.results()] == [custom_id]


class TestLease:
    async def test_one_holds_it_until_it_is_released(self, desk: Desk) -> None:
        other = desk.scheduler_named("other")
        assert not await other.hold_lease()
        assert await desk.scheduler.hold_lease()
        await other.release_lease()  # not its own: nothing happens
        assert not await other.hold_lease()
        await desk.scheduler.release_lease()
        assert await other.hold_lease()
        assert await other.lease_owner() == "other"

    async def test_each_term_has_a_higher_epoch_and_renewing_keeps_it(self, desk: Desk) -> None:
        first = desk.scheduler.epoch
        assert await desk.scheduler.hold_lease()
        assert desk.scheduler.epoch == first
        await desk.scheduler.release_lease()
        assert await desk.scheduler.hold_lease()
        assert desk.scheduler.epoch == first + 1

    async def test_it_runs_out_by_itself(self, desk: Desk) -> None:
        assert 0 < await desk.redis.pttl(desk.keys.lease) <= 60_000

    async def test_a_stale_scheduler_moves_nothing(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.submit("a", "b", "c")
        jobs = await desk.waiting()
        await desk.redis.delete(desk.keys.lease)
        successor = desk.scheduler_named("successor")
        assert await successor.hold_lease()
        await desk.client.cancel("b")
        await desk.submit("late", batch="other")
        with pytest.raises(LeaseLostError):
            await desk.dispatch("w", jobs)
        with pytest.raises(LeaseLostError):
            await desk.scheduler.discard(jobs)
        with pytest.raises(LeaseLostError):
            await desk.scheduler.read_requests("normal", 10)
        with pytest.raises(LeaseLostError):
            await desk.scheduler.read_pending("normal", 10)
        assert await desk.scheduler.declare_dead("w", silent_s=0, max_attempts=3) == -1
        assert await desk.depth() == 0
        assert await desk.results() == []
        assert await worker.take(1) == []
        assert [job.batch_id for job in await successor.read_requests("normal", 10)] == ["other"]
        assert len(await successor.read_pending("normal", 2)) == 4

    async def test_without_any_lease_nothing_moves_either(self, desk: Desk) -> None:
        await desk.worker()
        await desk.submit("a")
        jobs = await desk.waiting()
        await desk.scheduler.release_lease()
        with pytest.raises(LeaseLostError):
            await desk.dispatch("w", jobs)

    async def test_streams_deleted_under_it_end_its_term(self, desk: Desk) -> None:
        await desk.redis.delete(*(desk.keys.requests(level) for level in LEVELS))
        with pytest.raises(LeaseLostError, match="deleted"):
            await desk.scheduler.read_requests("high", 10)


class TestDispatch:
    async def test_jobs_go_from_the_request_stream_to_the_device_queue(self, desk: Desk) -> None:
        await desk.worker()
        await desk.submit("a", "b")
        assert await desk.dispatch() == (set(), set())
        assert await desk.depth() == 2
        assert sum((await desk.scheduler.waiting()).values()) == 0
        assert await desk.waiting() == []
        assert [(j.prompt_tokens, j.output_tokens) for j in await desk.scheduler.in_flight("w")] == [(10, 20)] * 2

    @pytest.mark.parametrize("state", ["starting", "draining", "paused"])
    async def test_a_worker_that_is_not_ready_gets_none_and_they_stay(self, desk: Desk, state: str) -> None:
        await desk.worker("ready")
        await desk.worker("busy", state=state)
        await desk.submit("a", "b")
        first, second = await desk.waiting()
        to_both = {"ready": [Placement(first, 1, 1, "ready")], "busy": [Placement(second, 1, 1, "busy")]}
        assert await desk.scheduler.dispatch(to_both) == ({"busy"}, set())
        assert (await desk.depth("ready"), await desk.depth("busy")) == (1, 0)
        assert [job.job_id for job in await desk.waiting()] == [second.job_id]

    async def test_a_worker_that_nobody_knows_gets_none(self, desk: Desk) -> None:
        await desk.submit("a")
        assert await desk.dispatch("nobody") == ({"nobody"}, set())
        assert await desk.depth("nobody") == 0
        assert await desk.waiting_ids() == ["a"]

    async def test_jobs_of_a_cancelled_batch_end_instead(self, desk: Desk) -> None:
        await desk.worker()
        await desk.submit("a", "b")
        await desk.submit("c", batch="other")
        await desk.client.cancel("b")
        _, dropped = await desk.dispatch()
        assert dropped == {job_id("b", "a"), job_id("b", "b")}
        assert await desk.depth() == 1
        results = by_id(await desk.results())
        assert {r.error_code for r in results.values()} == {BATCH_CANCELLED}
        counts = await desk.client.counts("b")
        assert (counts.cancelled, counts.complete) == (2, True)

    async def test_the_same_placement_twice_dispatches_once(self, desk: Desk) -> None:
        await desk.worker()
        await desk.submit("a")
        jobs = await desk.waiting()
        await desk.dispatch("w", jobs)
        assert await desk.dispatch("w", jobs) == (set(), {jobs[0].job_id})
        assert await desk.depth() == 1

    async def test_more_jobs_than_lua_unpacks_at_once(self, desk: Desk) -> None:
        await desk.worker()
        await desk.submit(*(str(i) for i in range(2500)))
        jobs = await desk.scheduler.read_requests("normal", 2500)
        await desk.dispatch("w", jobs)
        assert await desk.depth() == 2500
        assert await desk.scheduler.declare_dead("w", silent_s=0, max_attempts=3) == 2500
        assert (await desk.scheduler.waiting())["returned"] == 2500


class TestTake:
    async def test_it_brings_the_body_and_what_the_job_is(self, desk: Desk) -> None:
        worker = await desk.worker()
        [delivery] = await desk.deliver("a", worker=worker)
        assert (delivery.custom_id, delivery.batch_id, delivery.attempt) == ("a", "b", 1)
        assert (delivery.url, delivery.body) == (CHAT, BODY)
        assert float(delivery.started) >= float(delivery.submitted) > 0

    async def test_never_more_than_asked_for_and_none_twice(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.submit(*"abcde")
        await desk.dispatch()
        taken = [await worker.take(2) for _ in range(4)]
        assert ["".join(d.custom_id for d in some) for some in taken] == ["ab", "cd", "e", ""]

    async def test_after_a_lost_answer_the_same_again(self, desk: Desk) -> None:
        worker = await desk.worker()
        taken = await desk.deliver(*"abc", worker=worker)
        again = await worker.take(10, again=True)
        assert [(d.entry_id, d.attempt, d.body) for d in again] == [(d.entry_id, d.attempt, d.body) for d in taken]
        await worker.complete([ended(taken[1])])
        assert [d.custom_id for d in await worker.take(10, again=True)] == ["a", "c"]

    async def test_only_the_worker_that_the_pool_knows(self, desk: Desk) -> None:
        old = await desk.worker(incarnation="old")
        new = await desk.worker(incarnation="new")
        await desk.submit("a")
        await desk.dispatch()
        for again in (False, True):
            with pytest.raises(WorkerGoneError):
                await old.take(1, again=again)
        assert [d.custom_id for d in await new.take(1)] == ["a"]

    async def test_jobs_cancelled_meanwhile_end_instead(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.submit("a")
        await desk.submit("c", batch="other")
        await desk.dispatch()
        await desk.client.cancel("b")
        assert [d.custom_id for d in await worker.take(10)] == ["c"]
        assert await desk.depth() == 1
        assert [r.error_code for r in await desk.results()] == [BATCH_CANCELLED]

    async def test_entries_that_are_no_jobs_are_removed_and_named(
        self, desk: Desk, caplog: pytest.LogCaptureFixture
    ) -> None:
        worker = await desk.worker()
        stream = desk.keys.device("w")
        bad = [
            await desk.redis.xadd(stream, fields)
            for fields in (
                {"what": "is this"},
                {"job": "no such job", "attempt": "x"},
                {b"\xff": b"\xfe", "job": "b.1"},
            )
        ]
        assert [d.custom_id for d in await desk.deliver("a", worker=worker)] == ["a"]
        assert await desk.depth() == 1
        assert all(entry.decode() in caplog.text for entry in bad)

    async def test_an_entry_deleted_while_it_was_out_does_no_harm(self, desk: Desk) -> None:
        worker = await desk.worker()
        first, second = await desk.deliver("a", "b", worker=worker)
        await desk.redis.xdel(desk.keys.device("w"), first.entry_id)
        assert [d.entry_id for d in await worker.take(10, again=True)] == [second.entry_id]


class TestComplete:
    async def test_the_result_is_visible_and_counted_and_nothing_else_is_left(self, desk: Desk) -> None:
        worker = await desk.worker()
        [delivery] = await desk.deliver("a", worker=worker)
        assert await worker.complete([ended(delivery)]) == [True]
        [result] = await desk.results()
        assert result.ok
        assert (result.custom_id, result.worker, result.attempt, result.body) == ("a", "w", 1, b'{"object": "x"}')
        assert (result.prompt_tokens, result.output_tokens) == (10, 5)
        assert result.started >= result.submitted > 0
        assert await desk.client.counts("b") == BatchCounts(total=1, done=1, prompt_tokens=10, output_tokens=5)
        identity = job_id("b", "a")
        assert await desk.redis.exists(desk.keys.body(identity), desk.keys.job(identity)) == 0
        assert await desk.depth() == 0

    async def test_times_to_live_start_when_the_last_job_ends(self, desk: Desk) -> None:
        worker = await desk.worker()
        first, second = await desk.deliver("a", "b", worker=worker)
        kept = [desk.keys.batch("b"), desk.keys.results("b"), desk.keys.ended("b")]
        await worker.complete([ended(first)])
        assert [await desk.redis.ttl(key) for key in kept] == [-1] * 3
        await worker.complete([ended(second)])
        assert all([0 < await desk.redis.ttl(key) <= TTL_S for key in kept])
        await desk.submit("more")
        assert [await desk.redis.ttl(key) for key in kept] == [-1] * 3

    async def test_what_the_engine_refused_counts_as_failed(self, desk: Desk) -> None:
        worker = await desk.worker()
        refused, broken, cancelled = await desk.deliver("a", "b", "c", worker=worker)
        outcomes = [ended(refused, 400), ended(broken, 500), ended(cancelled, 0, BATCH_CANCELLED)]
        assert await worker.complete(outcomes) == [True] * 3
        counts = await desk.client.counts("b")
        assert (counts.done, counts.failed, counts.cancelled) == (0, 2, 1)
        results = by_id(await desk.results())
        assert [results[c].status_code for c in "abc"] == [400, 500, 0]
        assert [results[c].ok for c in "abc"] == [False] * 3
        assert results["a"].body == b'{"object": "x"}'
        assert (results["c"].error_code, results["c"].error_message) == (BATCH_CANCELLED, "why")

    async def test_the_second_time_changes_nothing(self, desk: Desk) -> None:
        worker = await desk.worker()
        [delivery] = await desk.deliver("a", worker=worker)
        assert await worker.complete([ended(delivery), ended(delivery, 500)]) == [True, False]
        assert await worker.complete([ended(delivery, 500)]) == [False]
        assert [r.status_code for r in await desk.results()] == [200]
        assert (await desk.client.counts("b")).ended == 1

    async def test_an_attempt_whose_job_went_to_another_is_late(self, desk: Desk) -> None:
        slow, quick = await desk.worker("slow", "s1"), await desk.worker("quick", "q1")
        [delivery] = await desk.deliver("a", worker=slow)
        await slow.hand_back(also_running=True)
        assert await slow.complete([ended(delivery, 500)]) == [False]
        await desk.dispatch("quick")
        [second] = await quick.take(1)
        assert second.attempt == 2
        assert await slow.complete([ended(delivery, 500)]) == [False]
        assert await quick.complete([ended(second)]) == [True]
        assert await slow.complete([ended(delivery, 500)]) == [False]
        assert [(r.worker, r.attempt, r.status_code) for r in await desk.results()] == [("quick", 2, 200)]

    async def test_an_older_attempt_of_the_same_worker_is_late(self, desk: Desk) -> None:
        worker = await desk.worker()
        [first] = await desk.deliver("a", worker=worker)
        await worker.hand_back(also_running=True)
        await worker.heartbeat(READY)
        await desk.dispatch()
        [second] = await worker.take(1)
        assert await worker.complete([ended(first, 500)]) == [False]
        assert await worker.complete([ended(second)]) == [True]
        assert [(r.attempt, r.status_code) for r in await desk.results()] == [(2, 200)]

    async def test_nobody_completes_for_another(self, desk: Desk) -> None:
        owner, other = await desk.worker("owner"), await desk.worker("other")
        [delivery] = await desk.deliver("a", worker=owner)
        assert await other.complete([ended(delivery, 500)]) == [False]
        assert await desk.results() == []
        assert await owner.complete([ended(delivery)]) == [True]

    async def test_a_job_put_into_a_queue_twice_by_hand_still_ends_once(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.submit("a")
        await desk.dispatch()
        [(_, fields)] = await desk.redis.xrange(desk.keys.device("w"))
        await desk.redis.xadd(desk.keys.device("w"), fields)
        taken = await worker.take(10)
        assert await worker.complete([ended(d) for d in taken]) == [True] + [False] * (len(taken) - 1)
        assert len(await desk.results()) == 1
        assert (await desk.client.counts("b")).done == 1
        assert await desk.depth() == 0

    async def test_late_and_good_ones_in_one_call_are_told_apart(self, desk: Desk) -> None:
        worker = await desk.worker()
        taken = await desk.deliver(*"abcd", worker=worker)
        await worker.complete([ended(taken[0]), ended(taken[2])])
        assert await worker.complete([ended(d) for d in taken]) == [False, True, False, True]
        assert sorted(by_id(await desk.results())) == list("abcd")

    async def test_a_body_that_is_not_text_is_marked_and_kept(self, desk: Desk) -> None:
        worker = await desk.worker()
        [delivery] = await desk.deliver("a", worker=worker)
        assert await worker.complete([Outcome(delivery, 200, b'"\xff"', 1, 1)]) == [True]
        assert [r.body.decode() for r in await desk.results()] == ['"\ufffd"']

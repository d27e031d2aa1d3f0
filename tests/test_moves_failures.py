"""Failures that may pass, dead letters, bounds: the atomic moves behind them, on each server."""

from __future__ import annotations

import pytest
from cluster_fixtures import CHAT
from move_fixtures import (
    BODY,
    TTL_S,
    Desk,
    by_id,
    die,
    ended,
    let_pass,
    letters,
    may_pass,
)

from broker.jobs import BATCH_CANCELLED, Priority, Submission, job_id
from broker.policies.base import Placement
from broker.store.dead import DeadLetterStore
from broker.store.worker import WorkerStore


class TestRetry:
    async def test_a_failure_that_may_pass_is_no_end_and_the_job_runs_again_when_its_delay_is_over(
        self, desk: Desk
    ) -> None:
        worker = await desk.worker()
        [delivery] = await desk.deliver("a", worker=worker)
        assert await worker.complete([may_pass(delivery, retry_s=1000)]) == [True]
        assert not await desk.scheduler.move_due()
        assert (await desk.results(), await desk.waiting(), await desk.scheduler.delayed()) == ([], [], 1)
        assert await desk.submit("a") == 0, "it is still the same job"
        await let_pass(desk)
        assert await desk.scheduler.delayed() == 0
        await desk.dispatch()
        [second] = await worker.take(10)
        assert (second.attempt, second.body) == (2, BODY)
        assert await worker.complete([ended(second)]) == [True]
        assert [(r.ok, r.attempt) for r in await desk.results()] == [(True, 2)]
        counts = await desk.client.counts("b")
        assert (counts.done, counts.prompt_tokens, counts.wasted_prompt_tokens) == (1, 10, 10)
        assert await letters(desk) == {}

    async def test_once_its_attempts_are_used_up_the_last_answer_is_its_result(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.submit("a")
        for status in (500, 503, 502):
            await let_pass(desk)
            await desk.dispatch()
            [delivery] = await worker.take(10)
            assert await worker.complete([may_pass(delivery, status)]) == [True]
        [result] = await desk.results()
        assert (result.status_code, result.attempt, result.error_code) == (502, 3, "")
        assert (await desk.client.counts("b")).failed == 1
        assert await desk.scheduler.delayed() == 0
        letter = (await letters(desk))["a"]
        assert [(a.attempt, a.worker, a.why[:10]) for a in letter.attempts] == [
            (1, "w", "status 500"),
            (2, "w", "status 503"),
            (3, "w", "status 502"),
        ]
        assert all(a.ended >= a.started > 0 for a in letter.attempts)
        assert (letter.status_code, letter.batch, letter.url, letter.has_body) == (502, "b", CHAT, True)

    async def test_what_cannot_pass_is_a_dead_letter_at_once(self, desk: Desk) -> None:
        worker = await desk.worker()
        good, bad = await desk.deliver("good", "bad", worker=worker)
        await worker.complete([ended(good), ended(bad, 400)])
        assert {c: r.status_code for c, r in by_id(await desk.results()).items()} == {"good": 200, "bad": 400}
        letter = (await letters(desk))["bad"]
        assert [a.why for a in letter.attempts] == ['status 400: {"object": "x"}']
        assert list(await letters(desk)) == ["bad"]

    async def test_of_a_cancelled_batch_what_is_delayed_ends_at_the_next_look(self, desk: Desk) -> None:
        worker = await desk.worker()
        [delivery] = await desk.deliver("a", worker=worker)
        await worker.complete([may_pass(delivery, retry_s=1000)])
        await desk.client.cancel("b")
        await desk.scheduler.hasten("b")
        await desk.scheduler.move_due()
        assert [r.error_code for r in await desk.results()] == [BATCH_CANCELLED]
        assert (await desk.client.counts("b")).complete
        assert await letters(desk) == {}

    async def test_in_a_cancelled_batch_nothing_is_tried_again(self, desk: Desk) -> None:
        worker = await desk.worker()
        [delivery] = await desk.deliver("a", worker=worker)
        await desk.client.cancel("b")
        await worker.complete([may_pass(delivery)])
        assert [r.status_code for r in await desk.results()] == [500]

    async def test_only_the_leader_moves_what_is_due(self, desk: Desk) -> None:
        worker = await desk.worker()
        [delivery] = await desk.deliver("a", worker=worker)
        await worker.complete([may_pass(delivery)])
        stale = desk.scheduler_named("stale")
        with pytest.raises(Exception, match="took over"):
            await stale.move_due()
        assert await desk.scheduler.delayed() == 1

    async def test_rubbish_among_what_is_due_does_no_harm(self, desk: Desk) -> None:
        await desk.redis.zadd(desk.keys.delayed, {"no job": 1, b"\xff": 2})
        await desk.redis.zadd(desk.keys.windows, {"no batch": 1})
        await desk.scheduler.move_due()
        assert await desk.redis.exists(desk.keys.delayed, desk.keys.windows) == 0


class TestSuspects:
    async def test_what_a_dead_worker_had_started_waits_as_a_suspect(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.submit("a", "b")
        await desk.dispatch()
        await worker.take(1)
        await die(desk)
        assert {job.job_id: (job.deaths, job.charges) for job in await desk.waiting()} == {
            job_id("b", "a"): (1, 1),
            job_id("b", "b"): (0, 0),
        }

    async def test_a_later_scheduler_knows_the_suspects_that_run(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.deliver("a", worker=worker)
        await die(desk)
        await desk.worker("next")
        await desk.submit("b")
        await desk.dispatch("next")
        found = {job.job_id: (job.deaths, job.charges) for job in await desk.scheduler.in_flight("next")}
        assert found == {job_id("b", "a"): (1, 1), job_id("b", "b"): (0, 0)}

    async def test_who_leaves_by_its_own_will_charges_nobody(self, desk: Desk) -> None:
        for _ in range(5):
            worker = await desk.worker()
            await desk.deliver("a", worker=worker)
            await worker.leave()
        [job] = await desk.waiting()
        assert (job.deaths, job.charges) == (0, 0)
        assert await desk.results() == []

    @pytest.mark.parametrize("how", ["its engine died", "it was started anew"])
    async def test_these_count_as_deaths_too(self, desk: Desk, how: str) -> None:
        worker = await desk.worker()
        await desk.deliver("a", worker=worker)
        if how == "its engine died":
            await worker.hand_back(also_running=True)
        else:
            await desk.worker()
        assert [job.deaths for job in await desk.waiting()] == [1]

    async def test_the_dead_letter_says_who_died_and_when(self, desk: Desk) -> None:
        await desk.submit("a")
        for name in ("w1", "w2", "w3"):
            worker = await desk.worker(name)
            await desk.dispatch(name)
            await worker.take(1)
            await die(desk, name)
        letter = (await letters(desk))["a"]
        assert [(a.attempt, a.worker, a.why) for a in letter.attempts] == [
            (i, f"w{i}", f"worker w{i} died") for i in (1, 2, 3)
        ]
        assert all(0 < a.started <= a.ended for a in letter.attempts)
        assert letter.error_code == "attempts_exhausted"
        [result] = await desk.results()
        assert "3 attempts" in result.error_message

    async def test_rubbish_in_its_hash_does_no_harm(self, desk: Desk) -> None:
        worker = await desk.worker()
        [delivery] = await desk.deliver("a", worker=worker)
        fields = {"charges": "lots", "deaths": "x", "history": "\xff\n{}\n[1", "timeout_s": "soon"}
        await desk.redis.hset(desk.keys.job(delivery.job_id), mapping=fields)
        assert [d.timeout_s for d in await worker.take(10, again=True)] == [0]
        await die(desk)
        [job] = await desk.waiting()
        assert (job.deaths, job.charges) == (1, 1)
        worker = await desk.worker()
        await desk.dispatch()
        await worker.complete([ended(d, 400) for d in await worker.take(10)])
        assert [a.why[:10] for a in (await letters(desk))["a"].attempts] == ["worker w d", "status 400"]


async def test_nothing_is_dispatched_to_a_life_that_the_scheduler_does_not_know(desk: Desk) -> None:
    await desk.worker(incarnation="new")
    await desk.submit("a")
    placed = {"w": [Placement(job, 10, 20, "w") for job in await desk.waiting()]}
    assert await desk.scheduler.dispatch(placed, {"w": "old"}) == ({"w"}, set())
    assert (await desk.depth(), len(await desk.waiting())) == (0, 1)
    assert await desk.scheduler.dispatch(placed, {"w": "new"}) == (set(), set())
    assert await desk.depth() == 1


class TestLetters:
    async def dead(self, desk: Desk, *custom_ids: str, body: bytes = BODY) -> WorkerStore:
        worker = await desk.worker()
        jobs = [Submission(job_id("b", c), c, CHAT, body, 7) for c in custom_ids]
        await desk.client.submit("b", jobs, Priority.HIGH)
        await desk.dispatch()
        await worker.complete([ended(d, 400) for d in await worker.take(100)])
        return worker

    async def test_they_live_as_long_as_results(self, desk: Desk) -> None:
        await self.dead(desk, "a")
        for key in (desk.keys.dead, desk.keys.letter(job_id("b", "a"))):
            assert 0 < await desk.redis.ttl(key) <= TTL_S

    async def test_the_request_is_kept_but_a_long_one(self, desk: Desk) -> None:
        await self.dead(desk, "short")
        await self.dead(desk, "long", body=b'"' + b"x" * 65536 + b'"')
        found = await letters(desk)
        assert (found["short"].has_body, found["long"].has_body) == (True, False)
        store = DeadLetterStore(desk.redis, desk.pool)
        assert await store.body(found["short"].job_id) == BODY
        assert await store.body(found["long"].job_id) is None
        assert found["short"].priority is Priority.HIGH

    async def test_the_oldest_go_where_there_are_too_many(self, desk: Desk) -> None:
        now = await desk.scheduler.clock()
        await desk.redis.zadd(desk.keys.dead, {f"b.{i}": now - 500 + i / 1000 for i in range(10_000)})
        await desk.redis.hset(desk.keys.letter("b.0"), "batch", "b")
        await desk.redis.zadd(desk.keys.dead, {"b.old": now - TTL_S - 1})
        await self.dead(desk, "new")
        assert await desk.redis.zcard(desk.keys.dead) == 10_000
        assert await desk.redis.zscore(desk.keys.dead, "b.0") is None
        assert await desk.redis.zscore(desk.keys.dead, "b.old") is None
        assert await desk.redis.exists(desk.keys.letter("b.0")) == 0
        assert (await DeadLetterStore(desk.redis, desk.pool).ids())[0] == job_id("b", "new")

    async def test_dropped_they_are_gone_and_the_result_stays(self, desk: Desk) -> None:
        await self.dead(desk, "a", "c")
        store = DeadLetterStore(desk.redis, desk.pool)
        assert await store.drop([job_id("b", "a"), "b.none"]) == 1
        assert list(await letters(desk)) == ["c"]
        assert sorted(by_id(await desk.results())) == ["a", "c"]

    async def test_rubbish_is_no_letter(self, desk: Desk) -> None:
        await self.dead(desk, "a")
        await desk.redis.zadd(desk.keys.dead, {"b.wrong": 5, "b.none": 6, b"\xff": 7, "b.text": 8})
        await desk.redis.hset(desk.keys.letter("b.wrong"), mapping={"batch": "b", "died": "never", "priority": "top"})
        await desk.redis.set(desk.keys.letter("b.text"), "x", ex=60)
        assert list(await letters(desk)) == ["a"]
        await desk.redis.delete(desk.keys.dead)
        await desk.redis.set(desk.keys.dead, "x", ex=60)
        store = DeadLetterStore(desk.redis, desk.pool)
        assert (await store.ids(), await store.count()) == ([], 0)

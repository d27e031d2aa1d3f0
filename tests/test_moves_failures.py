"""Failures that may pass, dead letters, bounds: the atomic moves behind them, on each server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from cluster_fixtures import CHAT, READY
from move_fixtures import BODY, TTL_S, Desk, by_id, ended, open_desk
from msgspec import structs

from broker.dead_letters import DeadLetter
from broker.errors import QueueFullError, UsageError
from broker.jobs import BATCH_CANCELLED, BATCH_EXPIRED, Delivery, Outcome, Priority, Submission, job_id
from broker.policies.base import Placement
from broker.store.client import Bounds
from broker.store.dead import DeadLetterStore
from broker.store.worker import WorkerStore


@pytest.fixture
async def desk(any_redis_url: str, pool: str) -> AsyncIterator[Desk]:
    async with open_desk(any_redis_url, pool) as opened:
        yield opened


def may_pass(delivery: Delivery, status_code: int = 500, retry_s: float = 1e-3) -> Outcome:
    """A failure that may pass; the job is due again at once, or as good as never."""
    return structs.replace(ended(delivery, status_code), retry_s=retry_s)


async def let_pass(desk: Desk) -> None:
    """All delays are over."""
    for job in await desk.redis.zrange(desk.keys.delayed, 0, -1):
        await desk.redis.zadd(desk.keys.delayed, {job: 1})
    await desk.scheduler.move_due()


async def letters(desk: Desk) -> dict[str, DeadLetter]:
    """By custom_id."""
    store = DeadLetterStore(desk.redis, desk.pool)
    found = await store.letters(await store.ids())
    return {letter.custom_id: letter for letter in found}


async def held_bytes(desk: Desk) -> int:
    return int(await desk.redis.get(desk.keys.held_bytes) or 0)


async def submit(desk: Desk, *custom_ids: str, batch: str = "b", **bounds: Any) -> int:
    jobs = [Submission(job_id(batch, c), c, CHAT, BODY, 7) for c in custom_ids]
    return await desk.client.submit(batch, jobs, Priority.NORMAL, Bounds(**bounds))


async def die(desk: Desk, worker: str = "w") -> None:
    assert await desk.scheduler.declare_dead(worker, silent_s=0, max_attempts=3) >= 0


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


class TestBacklog:
    async def test_no_more_jobs_than_may_wait(self, desk: Desk) -> None:
        assert await submit(desk, "a", "b", max_jobs=3) == 2
        with pytest.raises(QueueFullError, match="full"):
            await submit(desk, "c", "d", max_jobs=3)
        assert (await desk.client.counts("b")).total == 2, "all or none"
        assert await submit(desk, "c", max_jobs=3) == 1

    async def test_what_waits_for_another_attempt_counts(self, desk: Desk) -> None:
        worker = await desk.worker()
        [delivery] = await desk.deliver("a", worker=worker)
        await worker.complete([may_pass(delivery, retry_s=1000)])
        with pytest.raises(QueueFullError):
            await submit(desk, "b", max_jobs=1)

    async def test_what_is_there_already_needs_no_room(self, desk: Desk) -> None:
        await submit(desk, "a", "b")
        assert await submit(desk, "b", "a", max_jobs=1, max_bytes=1) == 0

    async def test_into_an_empty_backlog_some_always_go(self, desk: Desk) -> None:
        assert await submit(desk, "a", "b", max_jobs=1, max_bytes=1) == 2

    async def test_no_more_bytes_than_may_be_held_running_jobs_included(self, desk: Desk) -> None:
        worker = await desk.worker()
        [running] = await desk.deliver("a", worker=worker)
        await submit(desk, "b")
        assert await held_bytes(desk) == 2 * len(BODY)
        with pytest.raises(QueueFullError):
            await submit(desk, "c", max_bytes=2 * len(BODY))
        await worker.complete([ended(running)])
        assert await submit(desk, "c", max_bytes=2 * len(BODY)) == 1

    async def test_bytes_are_let_go_however_a_job_ends(self, desk: Desk) -> None:
        worker = await desk.worker()
        good, bad, *_ = await desk.deliver(*"abcd", worker=worker)
        await submit(desk, "w1", "w2", batch="waits")
        await worker.complete([ended(good), ended(bad, 400)])
        await desk.client.cancel_jobs([job_id("b", "c")])
        await desk.client.cancel("b")
        await die(desk)
        await desk.client.cancel("waits")
        await desk.scheduler.discard(await desk.waiting())
        assert await held_bytes(desk) == 0

    async def test_a_forged_count_is_put_right(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.redis.set(desk.keys.held_bytes, "many")
        [delivery] = await desk.deliver("a", worker=worker)
        assert await held_bytes(desk) == len(BODY)
        await desk.redis.set(desk.keys.held_bytes, 1)
        await worker.complete([ended(delivery)])
        assert await held_bytes(desk) == 0


class TestCompletionWindow:
    async def over(self, desk: Desk, batch: str = "b") -> None:
        """The window is over now."""
        await desk.redis.zadd(desk.keys.windows, {batch: 1})
        await desk.scheduler.move_due()

    async def test_what_waits_expires_and_says_so(self, desk: Desk) -> None:
        await submit(desk, "a", "b", completion_window_s=1000)
        await submit(desk, "late", completion_window_s=5000)
        created = float(await desk.redis.hget(desk.keys.batch("b"), "created"))
        assert abs(await desk.redis.zscore(desk.keys.windows, "b") - created - 1000) < 1, "its first job set it"
        await desk.scheduler.move_due()
        assert await desk.results() == []
        jobs = await desk.waiting()
        await self.over(desk)
        await desk.scheduler.discard(jobs)
        results = await desk.results()
        assert [r.error_code for r in results] == [BATCH_EXPIRED] * 3
        assert "completion window" in results[0].error_message
        counts = await desk.client.counts("b")
        assert (counts.state, counts.failed, counts.complete) == ("expired", 3, True)
        assert await letters(desk) == {}
        with pytest.raises(UsageError, match="completion window"):
            await submit(desk, "later")

    async def test_workers_are_told_and_what_comes_back_expires(self, desk: Desk) -> None:
        worker = await desk.worker()
        await submit(desk, "a", "b", completion_window_s=1000)
        await desk.dispatch()
        running, handed = await worker.take(2)
        await self.over(desk)
        _, orders = await worker.orders("0")
        assert orders == [{"order": "expire", "batch": "b"}]
        await worker.complete([Outcome(running, 0, b"", error_code=BATCH_EXPIRED, error_message="late")])
        await worker.leave()
        assert handed.custom_id == "b"
        assert [r.error_code for r in await desk.results()] == [BATCH_EXPIRED] * 2
        assert await letters(desk) == {}

    async def test_a_batch_that_is_complete_or_cancelled_stays_as_it_is(self, desk: Desk) -> None:
        worker = await desk.worker()
        await submit(desk, "a", completion_window_s=1000)
        await desk.dispatch()
        await worker.complete([ended(d) for d in await worker.take(10)])
        await desk.client.seal("b")
        await submit(desk, "a", batch="other", completion_window_s=1000)
        await desk.client.cancel("other")
        for batch, state in (("b", "open"), ("other", "cancelled")):
            await self.over(desk, batch)
            assert (await desk.client.counts(batch)).state == state
        assert await desk.redis.exists(desk.keys.windows) == 0


class TestCancelJobs:
    async def test_wherever_it_is_it_ends_at_once(self, desk: Desk) -> None:
        worker = await desk.worker()
        running, delayed = await desk.deliver("running", "delayed", worker=worker)
        await worker.complete([may_pass(delayed, retry_s=1000)])
        await desk.submit("bound")
        await desk.dispatch()
        await desk.submit("waits", "stays")
        names = ("running", "delayed", "bound", "waits")
        assert await desk.client.cancel_jobs([job_id("b", name) for name in (*names, "none")]) == 4
        results = by_id(await desk.results())
        assert {c: r.error_code for c, r in results.items()} == dict.fromkeys(names, BATCH_CANCELLED)
        assert (await desk.client.counts("b")).cancelled == 4
        assert (await desk.depth(), await desk.scheduler.delayed()) == (0, 0)
        _, orders = await worker.orders("0")
        assert orders == [{"order": "cancel_job", "job": running.job_id, "entry": running.entry_id}]
        assert await worker.complete([ended(running)]) == [True], "what it had computed in vain"
        assert (await desk.client.counts("b")).wasted_prompt_tokens == 20
        await desk.dispatch()
        assert [d.custom_id for d in await worker.take(10)] == ["stays"]
        assert await desk.client.cancel_jobs([job_id("b", "running")]) == 0

    async def test_both_sides_of_a_job_that_runs_twice(self, desk: Desk) -> None:
        workers = [await desk.worker("w"), await desk.worker("v")]
        await desk.submit("a")
        [job] = await desk.waiting()
        await desk.scheduler.dispatch({"w": [Placement(job, 10, 20, "w")]})
        await desk.scheduler.copy([(job.job_id, "v", 10, 20, 1.0)])
        for worker in workers:
            await worker.take(1)
        assert await desk.client.cancel_jobs([job.job_id]) == 1
        for worker in workers:
            _, orders = await worker.orders("0")
            assert [order["order"] for order in orders] == ["cancel_job"]
            await worker.heartbeat(READY)
        assert (await desk.depth("w"), await desk.depth("v")) == (0, 0)

    async def test_a_timeout_reaches_the_worker(self, desk: Desk) -> None:
        worker = await desk.worker()
        await submit(desk, "a", timeout_s=1.5)
        await submit(desk, "b")
        await desk.dispatch()
        assert [d.timeout_s for d in await worker.take(10)] == [1.5, 0]

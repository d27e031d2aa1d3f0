"""Jobs that run twice, on each server: who may get a copy, which result wins, and what goes on where one side goes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from cluster_fixtures import READY
from move_fixtures import TTL_S, Desk, ended, open_desk

from broker.errors import LeaseLostError, WorkerGoneError
from broker.events import Completed, Dropped, EndedTokens, Event, Returned, WorkerChanged, parse_event
from broker.jobs import ABORTED, BATCH_CANCELLED, BatchCounts, Delivery, Outcome, job_id
from broker.policies.base import Placement
from broker.store.worker import WorkerStore

JOB = job_id("b", "a")


@pytest.fixture
async def desk(any_redis_url: str, pool: str) -> AsyncIterator[Desk]:
    async with open_desk(any_redis_url, pool) as opened:
        yield opened


class Race:
    """One job, ``a`` of batch ``b``: on worker ``slow``, with a copy on ``quick``."""

    def __init__(self, desk: Desk, slow: WorkerStore, quick: WorkerStore) -> None:
        self.desk = desk
        self.slow = slow
        self.quick = quick
        self.position = ""

    async def start(self) -> tuple[Delivery, Delivery]:
        """Take both sides."""
        [original], [copy] = await self.slow.take(9), await self.quick.take(9)
        assert original.job_id == copy.job_id == JOB
        await self.mark()
        return original, copy

    async def mark(self) -> None:
        """``events`` tells what comes after this."""
        self.position = await self.desk.scheduler.last_event()

    async def events(self) -> list[Event | None]:
        found = [parse_event(fields) for _, fields in await self.desk.scheduler.events(self.position)]
        return [event for event in found if not isinstance(event, WorkerChanged)]

    async def counts(self) -> BatchCounts:
        return await self.desk.client.counts("b")

    async def fields(self, *names: str) -> list[str | None]:
        values = await self.desk.redis.hmget(self.desk.keys.job(JOB), names)
        return [value.decode() if value is not None else None for value in values]

    async def is_over(self, *ends: tuple[str, int]) -> None:
        """The job has just this result (worker, status), and nothing else is left of it."""
        assert [(r.worker, r.status_code) for r in await self.desk.results()] == list(ends)
        keys = self.desk.keys
        devices = [keys.device("slow"), keys.device("quick")]
        assert await self.desk.redis.exists(keys.job(JOB), keys.body(JOB)) == 0
        assert [await self.desk.redis.xlen(device) for device in devices] == [0, 0]
        assert await self.desk.waiting() == []
        assert (await self.counts()).ended == 1


@pytest.fixture
async def race(desk: Desk) -> Race:
    slow, quick = await desk.worker("slow", "s1"), await desk.worker("quick", "q1")
    await desk.submit("a")
    [job] = await desk.waiting()
    await desk.scheduler.dispatch({"slow": [Placement(job, 10, 20, "slow", 30.0, "first")]})
    assert await desk.scheduler.copy([(JOB, "quick", 11, 21, 3.0)]) == {JOB}
    return Race(desk, slow, quick)


def aborted(delivery: Delivery, prompt_tokens: int = 8, output_tokens: int = 3) -> Outcome:
    return Outcome(delivery, 0, b"", prompt_tokens, output_tokens, ABORTED)


class TestCopy:
    async def test_it_is_an_entry_of_another_device_queue(self, race: Race) -> None:
        [copy] = await race.quick.take(9)
        assert (copy.job_id, copy.attempt, copy.prompt_tokens) == (JOB, 1, 11)
        assert await race.fields("state", "worker", "copy", "copy_entry") == [
            "dispatched",
            "slow",
            "quick",
            copy.entry_id,
        ]
        assert (await race.counts()).copies == 1

    async def test_a_new_scheduler_finds_both(self, race: Race) -> None:
        for name, lengths in {"slow": (10, 20), "quick": (11, 21)}.items():
            [found] = await race.desk.scheduler.in_flight(name)
            assert (found.job_id, (found.prompt_tokens, found.output_tokens)) == (JOB, lengths)

    async def test_a_job_gets_one_at_a_time_and_not_where_it_is(self, race: Race) -> None:
        await race.desk.worker("third")
        for worker in ("third", "slow", "quick"):
            assert await race.desk.scheduler.copy([(JOB, worker, 1, 1, 1.0)]) == set()
        assert (await race.counts()).copies == 1

    async def test_only_what_is_dispatched_gets_one(self, desk: Desk) -> None:
        await desk.worker("there")
        worker = await desk.worker()
        await worker.complete([ended(d) for d in await desk.deliver("done", worker=worker)])
        await desk.submit("waits")
        wanted = [(job_id("b", c), "there", 1, 1, 1.0) for c in ("done", "waits", "never was")]
        assert await desk.scheduler.copy(wanted) == set()
        assert await desk.depth("there") == 0

    @pytest.mark.parametrize("state", ["starting", "draining", "paused", None])
    async def test_only_a_ready_worker_gets_one(self, desk: Desk, state: str | None) -> None:
        await desk.worker()
        if state:
            await desk.worker("other", state=state)
        await desk.submit("a")
        await desk.dispatch()
        assert await desk.scheduler.copy([(JOB, "other", 1, 1, 1.0)]) == set()
        assert await desk.redis.hexists(desk.keys.job(JOB), "copy") == 0
        assert await desk.depth("other") == 0

    async def test_no_job_of_a_cancelled_batch_gets_one(self, desk: Desk) -> None:
        await desk.worker()
        await desk.worker("other")
        await desk.submit("a")
        await desk.dispatch()
        await desk.client.cancel("b")
        assert await desk.scheduler.copy([(JOB, "other", 1, 1, 1.0)]) == set()

    async def test_without_the_lease_there_is_none(self, desk: Desk) -> None:
        await desk.worker()
        await desk.worker("other")
        await desk.submit("a")
        await desk.dispatch()
        await desk.scheduler.release_lease()
        with pytest.raises(LeaseLostError):
            await desk.scheduler.copy([(JOB, "other", 1, 1, 1.0)])
        assert await desk.depth("other") == 0


class TestFirstResultWins:
    async def test_the_copy_wins(self, race: Race) -> None:
        original, copy = await race.start()
        assert await race.quick.complete([ended(copy)]) == [True]
        await race.is_over(("quick", 200))
        [result] = await race.desk.results()
        assert (result.predicted_s, result.predicted_output_tokens, result.reason) == (3.0, 21, "copy")
        assert await race.events() == [Completed("quick", {JOB: EndedTokens(10, 5, 0)}), Dropped("slow", [JOB])]
        _, orders = await race.slow.orders("0")
        assert orders == [{"order": "cancel_job", "job": JOB, "entry": original.entry_id}]
        counts = await race.counts()
        assert (counts.copies, counts.copies_won, counts.prompt_tokens, counts.output_tokens) == (1, 1, 10, 5)

    async def test_the_original_wins(self, race: Race) -> None:
        original, copy = await race.start()
        assert await race.slow.complete([ended(original)]) == [True]
        await race.is_over(("slow", 200))
        [result] = await race.desk.results()
        assert (result.predicted_s, result.predicted_output_tokens, result.reason) == (30.0, 20, "first")
        assert await race.events() == [Completed("slow", {JOB: EndedTokens(10, 5, 0)}), Dropped("quick", [JOB])]
        _, orders = await race.quick.orders("0")
        assert orders == [{"order": "cancel_job", "job": JOB, "entry": copy.entry_id}]
        assert (await race.counts()).copies_won == 0

    @pytest.mark.parametrize("copy_wins", [False, True])
    async def test_what_the_loser_had_computed_counts_as_wasted_once(self, race: Race, copy_wins: bool) -> None:
        original, copy = await race.start()
        winner, loser, won, lost = race.slow, race.quick, original, copy
        if copy_wins:
            winner, loser, won, lost = loser, winner, lost, won
        await winner.complete([ended(won)])
        assert 0 < await race.desk.redis.ttl(race.desk.keys.losers(loser.worker)) <= TTL_S
        finished = await race.desk.redis.hget(race.desk.keys.batch("b"), "finished")
        assert await loser.complete([aborted(lost)]) == [True]
        assert await loser.complete([aborted(lost)]) == [False]
        counts = await race.counts()
        assert (counts.wasted_prompt_tokens, counts.wasted_output_tokens) == (8, 3)
        assert (counts.done, counts.output_tokens) == (1, 5)
        assert await race.desk.redis.exists(race.desk.keys.losers(loser.worker)) == 0
        assert await race.desk.redis.hget(race.desk.keys.batch("b"), "finished") == finished
        await race.is_over((winner.worker, 200))

    async def test_a_second_result_counts_as_wasted_in_full(self, race: Race) -> None:
        original, copy = await race.start()
        await race.quick.complete([ended(copy)])
        assert await race.slow.complete([ended(original, 500)]) == [True]
        counts = await race.counts()
        assert (counts.wasted_prompt_tokens, counts.wasted_output_tokens) == (10, 5)
        await race.is_over(("quick", 200))

    async def test_a_winner_that_is_sent_again_is_not_wasted(self, race: Race) -> None:
        _, copy = await race.start()
        assert await race.quick.complete([ended(copy)]) == [True]
        assert await race.quick.complete([ended(copy)]) == [False]
        assert (await race.counts()).wasted_output_tokens == 0

    async def test_a_loser_that_never_started_just_goes(self, race: Race, caplog: pytest.LogCaptureFixture) -> None:
        [original] = await race.slow.take(1)
        await race.slow.complete([ended(original)])
        assert await race.quick.take(9) == []
        assert await race.quick.take(9, again=True) == []
        assert caplog.text == ""
        await race.is_over(("slow", 200))
        assert await race.desk.redis.exists(race.desk.keys.control("quick"), race.desk.keys.losers("quick")) == 0

    async def test_waste_of_a_batch_that_was_forgotten_brings_nothing_back(self, race: Race) -> None:
        original, copy = await race.start()
        await race.quick.complete([ended(copy)])
        await race.desk.client.forget("b")
        assert await race.slow.complete([aborted(original)]) == [True]
        assert await race.desk.redis.exists(race.desk.keys.batch("b")) == 0


class TestFailures:
    @pytest.mark.parametrize("original_fails", [False, True])
    async def test_an_engine_error_does_not_win_while_the_other_side_runs(
        self, race: Race, original_fails: bool
    ) -> None:
        original, copy = await race.start()
        failing, other, failed, rest = race.quick, race.slow, copy, original
        if original_fails:
            failing, other, failed, rest = other, failing, rest, failed
        assert await failing.complete([ended(failed, 500)]) == [True]
        assert await race.desk.results() == []
        assert await race.events() == [Dropped(failing.worker, [JOB])]
        assert await race.fields("worker", "entry", "copy") == [other.worker, rest.entry_id, None]
        assert await failing.complete([ended(failed)]) == [False]
        assert await other.complete([ended(rest)]) == [True]
        await race.is_over((other.worker, 200))
        counts = await race.counts()
        assert (counts.wasted_prompt_tokens, counts.wasted_output_tokens) == (10, 5)

    async def test_where_both_sides_fail_the_second_failure_is_the_result(self, race: Race) -> None:
        original, copy = await race.start()
        await race.slow.complete([ended(original, 503)])
        await race.quick.complete([ended(copy, 500)])
        await race.is_over(("quick", 500))

    async def test_a_request_that_is_wrong_is_final(self, race: Race) -> None:
        _, copy = await race.start()
        await race.quick.complete([ended(copy, 400)])
        await race.is_over(("quick", 400))

    async def test_after_a_failure_the_job_may_get_another_copy(self, race: Race) -> None:
        original, copy = await race.start()
        await race.slow.complete([ended(original, 500)])
        assert await race.desk.scheduler.copy([(JOB, "slow", 1, 1, 1.0)]) == {JOB}
        [again] = await race.slow.take(9)
        assert (again.attempt, again.entry_id == original.entry_id) == (1, False)
        await race.slow.complete([ended(again)])
        assert await race.quick.complete([aborted(copy)]) == [True]
        await race.is_over(("slow", 200))
        counts = await race.counts()
        assert (counts.copies, counts.copies_won) == (2, 1)

    async def test_a_batch_cancelled_while_both_run_ends_once(self, race: Race) -> None:
        original, copy = await race.start()
        await race.desk.client.cancel("b")
        assert await race.slow.complete([ended(original, 0, BATCH_CANCELLED)]) == [True]
        assert await race.quick.complete([Outcome(copy, 0, b"", error_code=BATCH_CANCELLED)]) == [True]
        await race.is_over(("slow", 0))
        counts = await race.counts()
        assert (counts.cancelled, counts.copies_won, counts.complete) == (1, 0, True)

    async def test_a_batch_cancelled_while_one_waits_ends_with_the_other(self, race: Race) -> None:
        [original] = await race.slow.take(1)
        await race.desk.client.cancel("b")
        assert await race.quick.take(9) == []
        assert await race.desk.results() == []
        await race.slow.complete([ended(original, 0, BATCH_CANCELLED)])
        await race.is_over(("slow", 0))

    async def test_a_batch_cancelled_while_none_runs_ends_with_the_second_take(self, race: Race) -> None:
        await race.desk.client.cancel("b")
        assert (await race.slow.take(9), await race.quick.take(9)) == ([], [])
        await race.is_over(("", 0))

    async def test_an_abort_that_nobody_ordered_loses_no_job(self, race: Race) -> None:
        original, copy = await race.start()
        assert await race.slow.complete([aborted(original)]) == [False]
        assert await race.fields("worker", "copy") == ["quick", None]
        assert await race.quick.complete([aborted(copy)]) == [False]
        assert [job.job_id for job in await race.desk.waiting()] == [JOB]
        assert await race.desk.depth("slow") == await race.desk.depth("quick") == 0


async def die(race: Race, worker: WorkerStore) -> None:
    await race.desk.scheduler.declare_dead(worker.worker, silent_s=0, max_attempts=1)


async def leave(_race: Race, worker: WorkerStore) -> None:
    await worker.leave()


async def hand_back(_race: Race, worker: WorkerStore) -> None:
    assert await worker.hand_back(also_running=True) == 0


async def take_over(race: Race, worker: WorkerStore) -> None:
    await race.desk.worker(worker.worker, "a successor")


Going = Callable[[Race, WorkerStore], Awaitable[None]]
WAYS_TO_GO: list[Going] = [die, leave, hand_back, take_over]


class TestOneSideGoes:
    @pytest.mark.parametrize("started", ["none", "slow", "quick", "both"])
    @pytest.mark.parametrize("goes", WAYS_TO_GO)
    async def test_the_original_goes_and_the_copy_is_the_job(self, race: Race, goes: Going, started: str) -> None:
        if started in ("slow", "both"):
            await race.slow.take(1)
        held = await race.quick.take(1) if started in ("quick", "both") else []
        await race.mark()
        await goes(race, race.slow)
        assert await race.events() == [Dropped("slow", [JOB])]
        assert await race.desk.waiting() == []
        assert await race.fields("state", "worker", "attempt", "copy", "copy_entry") == [
            "dispatched",
            "quick",
            "1",
            None,
            None,
        ]
        [delivery] = held or await race.quick.take(1)
        assert await race.quick.complete([ended(delivery)]) == [True]
        await race.is_over(("quick", 200))
        [result] = await race.desk.results()
        assert (result.attempt, result.predicted_s, result.reason) == (1, 3.0, "copy")

    @pytest.mark.parametrize("started", [False, True])
    @pytest.mark.parametrize("goes", WAYS_TO_GO)
    async def test_the_copy_goes_and_the_original_goes_on(self, race: Race, goes: Going, started: bool) -> None:
        [original] = await race.slow.take(1)
        if started:
            await race.quick.take(1)
        await race.mark()
        await goes(race, race.quick)
        assert await race.events() == [Dropped("quick", [JOB])]
        assert await race.fields("worker", "attempt", "copy", "copy_entry") == ["slow", "1", None, None]
        assert await race.slow.complete([ended(original)]) == [True]
        await race.is_over(("slow", 200))

    @pytest.mark.parametrize("first", ["slow", "quick"])
    async def test_both_die_and_it_waits_again_once(self, race: Race, first: str) -> None:
        await race.start()
        for name in sorted(("slow", "quick"), key=lambda name: name != first):
            await race.desk.scheduler.declare_dead(name, silent_s=0, max_attempts=3)
        [job] = await race.desk.waiting()
        last = "quick" if first == "slow" else "slow"
        assert await race.events() == [Dropped(first, [JOB]), Returned(last, [JOB])]
        worker = await race.desk.worker("third")
        await race.desk.dispatch("third", [job])
        [delivery] = await worker.take(9)
        assert delivery.attempt == 2
        await worker.complete([ended(delivery)])
        await race.is_over(("third", 200))

    async def test_where_attempts_are_used_up_the_second_death_ends_it(self, race: Race) -> None:
        await race.start()
        for name in ("slow", "quick"):
            assert await race.desk.results() == []
            await race.desk.scheduler.declare_dead(name, silent_s=0, max_attempts=1)
        await race.is_over(("quick", 0))
        assert [r.error_code for r in await race.desk.results()] == ["attempts_exhausted"]

    async def test_a_draining_worker_gives_up_its_unstarted_side_alone(self, race: Race) -> None:
        [original] = await race.slow.take(1)
        assert await race.quick.hand_back(also_running=False) == 0
        assert await race.slow.hand_back(also_running=False) == 0
        await race.slow.complete([ended(original)])
        await race.is_over(("slow", 200))

    @pytest.mark.parametrize(("recalled", "stays"), [("slow", "quick"), ("quick", "slow")])
    async def test_an_unstarted_side_that_is_taken_back_just_goes(self, race: Race, recalled: str, stays: str) -> None:
        await race.mark()
        assert await race.desk.scheduler.recall({recalled: [JOB]}) == set()
        assert await race.events() == [Dropped(recalled, [JOB])]
        assert await race.fields("worker", "copy") == [stays, None]
        assert await race.desk.depth(recalled) == 0
        assert await race.desk.scheduler.recall({stays: [JOB]}) == {JOB}
        assert [job.job_id for job in await race.desk.waiting()] == [JOB]

    async def test_a_side_that_was_declared_dead_moves_nothing_any_more(self, race: Race) -> None:
        original, copy = await race.start()
        await race.desk.scheduler.declare_dead("slow", silent_s=0, max_attempts=3)
        with pytest.raises(WorkerGoneError):
            await race.slow.complete([ended(original)])
        await race.quick.complete([ended(copy)])
        await race.is_over(("quick", 200))

    @pytest.mark.parametrize("goes", WAYS_TO_GO)
    async def test_a_loser_that_goes_takes_its_report_along(self, race: Race, goes: Going) -> None:
        _, copy = await race.start()
        await race.quick.complete([ended(copy)])
        await goes(race, race.slow)
        assert await race.desk.redis.exists(race.desk.keys.losers("slow")) == 0
        await race.is_over(("quick", 200))

    async def test_after_it_went_back_and_ran_again_here_the_old_order_hits_nothing(self, race: Race) -> None:
        """The order names the entry: a job that comes here a second time is another delivery."""
        await race.start()
        await race.quick.hand_back(also_running=True)
        await race.quick.heartbeat(READY)
        assert await race.desk.scheduler.copy([(JOB, "quick", 1, 1, 1.0)]) == {JOB}
        [again] = await race.quick.take(9)
        await race.quick.complete([ended(again)])
        assert (await race.quick.orders("0"))[1] == []
        await race.is_over(("quick", 200))


class TestForged:
    @pytest.mark.parametrize("field", ["worker", "entry", "copy", "copy_entry"])
    @pytest.mark.parametrize("value", ["", "no such", "9-9"])
    async def test_a_side_written_by_hand_keeps_the_result_from_nobody(
        self, race: Race, field: str, value: str
    ) -> None:
        original, copy = await race.start()
        await race.desk.redis.hset(race.desk.keys.job(JOB), field, value)
        flags = [*await race.quick.complete([ended(copy)]), *await race.slow.complete([ended(original)])]
        assert flags[0]
        assert [r.worker for r in await race.desk.results()] == ["quick"]
        assert (await race.counts()).ended == 1
        assert await race.desk.depth("slow") == await race.desk.depth("quick") == 0

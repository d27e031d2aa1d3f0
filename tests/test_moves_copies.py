"""Jobs that run twice, on each server: who may get a copy, which result wins, and what goes on where one side goes."""

from __future__ import annotations

import pytest
from move_fixtures import TTL_S, Desk, ended
from race_fixtures import JOB, Race, aborted

from broker.errors import LeaseLostError
from broker.events import Completed, Dropped, EndedTokens
from broker.jobs import BATCH_CANCELLED, Outcome, job_id


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

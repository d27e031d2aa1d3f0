"""Jobs that run twice, on each server: what goes on where one side goes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from cluster_fixtures import READY
from move_fixtures import ended
from race_fixtures import JOB, Race

from broker.errors import WorkerGoneError
from broker.events import Dropped, Returned
from broker.store.worker import WorkerStore


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

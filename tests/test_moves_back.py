"""The atomic moves that bring jobs back or end them early, and all moves mixed, on each server."""

from __future__ import annotations

import asyncio
import random

import pytest
from cluster_fixtures import READY
from move_fixtures import TTL_S, Desk, by_id, ended

from broker.errors import UsageError, WorkerGoneError
from broker.jobs import BATCH_CANCELLED, Delivery, Priority
from broker.store.worker import WorkerStore


class TestReturn:
    async def test_all_jobs_of_a_dead_worker_go_back_and_the_started_ones_count_an_attempt(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.submit("a", "b", "c")
        await desk.dispatch()
        [started] = await worker.take(1)
        assert await desk.scheduler.declare_dead("w", silent_s=0, max_attempts=3) == 3
        successor = await desk.worker("next")
        await desk.dispatch("next")
        assert {d.custom_id: d.attempt for d in await successor.take(10)} == {"a": 2, "b": 1, "c": 1}
        assert started.custom_id == "a"

    async def test_nothing_is_left_of_a_dead_worker(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.deliver("a", worker=worker)
        await desk.client.cancel("b")
        await desk.scheduler.declare_dead("w", silent_s=0, max_attempts=3)
        left = [desk.keys.worker("w"), desk.keys.device("w"), desk.keys.control("w"), desk.keys.workers]
        assert await desk.redis.exists(*left) == 0
        assert [r.error_code for r in await desk.results()] == [BATCH_CANCELLED]

    async def test_a_worker_that_has_left_is_not_declared_dead(self, desk: Desk) -> None:
        worker = await desk.worker()
        await worker.leave()
        assert await desk.scheduler.declare_dead("w", silent_s=0, max_attempts=3) == -2

    async def test_a_worker_that_speaks_is_not_declared_dead(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.deliver("a", worker=worker)
        assert await desk.scheduler.declare_dead("w", silent_s=60, max_attempts=3) == -1
        assert await desk.depth() == 1

    async def test_a_zombie_is_told_that_it_is_gone_whatever_it_does(self, desk: Desk) -> None:
        zombie = await desk.worker("w", "old")
        [delivery] = await desk.deliver("a", worker=zombie)
        await desk.scheduler.declare_dead("w", silent_s=0, max_attempts=3)
        for life in range(2):  # gone, and with another under its name
            for attempt in (
                zombie.heartbeat(READY),
                zombie.take(1),
                zombie.take(1, again=True),
                zombie.complete([ended(delivery)]),
                zombie.hand_back(also_running=True),
            ):
                with pytest.raises(WorkerGoneError):
                    await attempt
            await zombie.leave()
            if life == 0:
                await desk.worker("w", "new")
        assert "w" in await desk.scheduler.heartbeats()
        assert await desk.results() == []
        assert await desk.waiting_ids() == ["a"]

    async def test_a_job_whose_workers_always_die_is_given_up_with_one_result(self, desk: Desk) -> None:
        await desk.submit("a")
        for attempt in (1, 2, 3):
            for starts in (False, True):
                worker = await desk.worker("w")
                await desk.dispatch()
                if starts:
                    assert [d.attempt for d in await worker.take(1)] == [attempt]
                assert await desk.results() == []
                await desk.scheduler.declare_dead("w", silent_s=0, max_attempts=3)
        [result] = await desk.results()
        assert (result.custom_id, result.error_code, result.attempt) == ("a", "attempts_exhausted", 3)
        assert "3 attempts" in result.error_message
        counts = await desk.client.counts("b")
        assert (counts.failed, counts.ended) == (1, 1)
        assert await desk.waiting() == []

    async def test_a_draining_worker_hands_back_what_has_not_started(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.submit("a", "b", "c")
        await desk.dispatch()
        [running] = await worker.take(1)
        assert await worker.hand_back(also_running=False) == 2
        assert await desk.waiting_ids() == ["b", "c"]
        assert await worker.complete([ended(running)]) == [True]

    @pytest.mark.parametrize("also_running", [False, True])
    async def test_who_has_handed_back_gets_no_more_until_it_says_so(self, desk: Desk, also_running: bool) -> None:
        worker = await desk.worker()
        await desk.submit("a")
        await worker.hand_back(also_running=also_running)
        assert await desk.dispatch() == ({"w"}, set())
        await worker.heartbeat(READY)
        assert await desk.dispatch() == (set(), set())

    async def test_a_worker_whose_engine_died_hands_back_everything(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.submit("a", "b")
        await desk.dispatch()
        await worker.take(1)
        assert await worker.hand_back(also_running=True) == 2
        assert await worker.take(10, again=True) == []
        await worker.heartbeat(READY)
        await desk.dispatch()
        assert {d.custom_id: d.attempt for d in await worker.take(10)} == {"a": 2, "b": 1}

    async def test_cancelled_jobs_end_when_they_come_back(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.submit("a", "b")
        await desk.dispatch()
        await worker.take(1)
        await desk.client.cancel("b")
        await worker.leave()
        assert {r.custom_id: r.error_code for r in await desk.results()} == dict.fromkeys("ab", BATCH_CANCELLED)
        assert await desk.waiting() == []

    async def test_what_comes_back_keeps_its_priority_and_its_size(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.submit("a", priority=Priority.HIGH)
        [before] = await desk.waiting()
        await desk.dispatch()
        await worker.leave()
        [after] = await desk.waiting()
        assert (after.level, after.priority) == ("returned", "high")
        assert (after.job_id, after.body_bytes, after.max_tokens) == (before.job_id, before.body_bytes, 7)

    async def test_a_queue_full_of_rubbish_keeps_no_job_from_going_back(self, desk: Desk) -> None:
        worker = await desk.worker()
        pipe = desk.redis.pipeline(transaction=False)
        for i in range(1200):
            pipe.xadd(desk.keys.device("w"), {"job": f"none.{i}"})
        await pipe.execute()
        await desk.submit("a")
        await desk.dispatch()
        await worker.leave()
        assert await desk.waiting_ids() == ["a"]


class TestRegister:
    async def test_under_the_same_name_the_predecessors_jobs_go_back(self, desk: Desk) -> None:
        old = await desk.worker("w", "old")
        await desk.submit("a", "b")
        await desk.dispatch()
        await old.take(1)
        new = await desk.worker("w", "new")
        assert await new.take(10) == []
        assert sorted(await desk.waiting_ids()) == ["a", "b"]
        await desk.dispatch()
        assert {d.custom_id: d.attempt for d in await new.take(10)} == {"a": 2, "b": 1}

    async def test_a_second_living_worker_of_the_name_is_refused(self, desk: Desk) -> None:
        first = await desk.worker("w", "first")
        await desk.deliver("a", worker=first)
        second = desk.worker_unregistered("w")
        with pytest.raises(UsageError, match=r"another worker of this pool is named 'w'.*--name"):
            await second.register("second", READY, takeover=False)
        await first.heartbeat(READY)
        assert await desk.depth() == 1

    async def test_once_the_first_is_gone_it_may(self, desk: Desk) -> None:
        first = await desk.worker("w", "first")
        await first.leave()
        second = desk.worker_unregistered("w")
        await second.register("second", READY, takeover=False)
        await second.heartbeat(READY)

    async def test_the_heartbeat_ends_by_itself_and_beating_renews_it(self, desk: Desk) -> None:
        worker = await desk.worker()
        key = desk.keys.worker("w")
        await desk.redis.pexpire(key, 1000)
        await worker.heartbeat(READY | {"running": "2"})
        assert await desk.redis.pttl(key) > 1000
        beat = (await desk.scheduler.heartbeats())["w"]
        assert beat is not None
        assert (beat.running, beat.incarnation) == (2, "i1")
        assert abs(beat.seen - await desk.scheduler.clock()) < 60


class TestCancelAndSeal:
    async def test_a_batch_nobody_submitted_cannot_be_cancelled(self, desk: Desk) -> None:
        assert not await desk.client.cancel("none")
        assert await desk.redis.exists(desk.keys.batch("none")) == 0

    async def test_workers_get_the_order_for_a_minute(self, desk: Desk) -> None:
        worker = await desk.worker()
        await desk.submit("a")
        assert await desk.client.cancel("b")
        position, orders = await worker.orders("0")
        assert orders == [{"order": "cancel", "batch": "b"}]
        assert position != "0"
        assert 0 < await desk.redis.ttl(desk.keys.control("w")) <= 60

    async def test_waiting_jobs_end_without_any_worker(self, desk: Desk) -> None:
        await desk.submit("a", "b")
        jobs = await desk.waiting()
        await desk.client.cancel("b")
        assert await desk.scheduler.cancelled(["b", "none"]) == {"b"}
        await desk.scheduler.discard(jobs)
        counts = await desk.client.counts("b")
        assert (counts.cancelled, counts.state, counts.complete) == (2, "cancelled", True)
        assert {r.error_code for r in by_id(await desk.results()).values()} == {BATCH_CANCELLED}
        assert await desk.waiting() == []

    async def test_jobs_of_a_batch_that_is_not_cancelled_are_not_discarded(self, desk: Desk) -> None:
        await desk.submit("a")
        await desk.scheduler.discard(await desk.waiting())
        assert await desk.waiting_ids() == ["a"]
        assert await desk.results() == []

    async def test_a_batch_is_complete_once_it_is_sealed_and_all_have_ended(self, desk: Desk) -> None:
        worker = await desk.worker()
        [delivery] = await desk.deliver("a", worker=worker)
        await desk.client.seal("b")
        assert not (await desk.client.counts("b")).complete
        await worker.complete([ended(delivery)])
        assert (await desk.client.counts("b")).complete

    async def test_an_empty_batch_is_complete_and_goes_away(self, desk: Desk) -> None:
        await desk.client.seal("empty")
        assert (await desk.client.counts("empty")).complete
        assert 0 < await desk.redis.ttl(desk.keys.batch("empty")) <= TTL_S

    async def test_what_is_forgotten_leaves_nothing(self, desk: Desk) -> None:
        worker = await desk.worker()
        await worker.complete([ended(d) for d in await desk.deliver("a", worker=worker)])
        await desk.client.forget("b")
        assert [key async for key in desk.redis.scan_iter(match=f"{desk.keys.prefix}*b*:b*")] == []


class Players:
    """Three workers, and one random move of one of them at a time."""

    def __init__(self, desk: Desk, seed: int) -> None:
        self.desk = desk
        self.rng = random.Random(seed)
        self.workers: dict[str, WorkerStore] = {}
        self.held: dict[str, list[Delivery]] = {"w0": [], "w1": [], "w2": []}

    async def join(self, name: str) -> None:
        self.workers[name] = await self.desk.worker(name, f"i{self.rng.random()}", max_attempts=1000)

    async def dispatch(self, name: str) -> None:
        waiting = await self.desk.waiting()
        await self.desk.dispatch(name, self.rng.sample(waiting, min(5, len(waiting))))

    async def take(self, name: str) -> None:
        self.held[name] += await self.workers[name].take(self.rng.randint(1, 4), again=self.rng.random() < 0.2)

    async def complete(self, name: str) -> None:
        """Some of all it ever took: what it has no more, too."""
        if held := self.held[name]:
            some = self.rng.sample(held, self.rng.randint(1, len(held)))
            await self.workers[name].complete([ended(d) for d in some])

    async def hand_back(self, name: str) -> None:
        await self.workers[name].hand_back(also_running=self.rng.random() < 0.3)
        await self.workers[name].heartbeat(READY)

    async def die(self, name: str) -> None:
        await self.desk.scheduler.declare_dead(name, silent_s=0, max_attempts=1000)

    async def move(self) -> None:
        moves = [self.dispatch] * 6 + [self.take] * 6 + [self.complete] * 4 + [self.hand_back, self.die, self.join]
        name = self.rng.choice(list(self.held))
        try:
            await self.rng.choice(moves)(name)
        except WorkerGoneError:
            await self.join(name)


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_in_whatever_order_every_job_ends_once(desk: Desk, seed: int) -> None:
    players = Players(desk, seed)
    custom_ids = [str(i) for i in range(60)]
    await desk.submit(*custom_ids)
    for name in players.held:
        await players.join(name)
    for _ in range(150):
        await players.move()
    assert await desk.results() != []
    for name in players.held:
        await players.join(name)
    await desk.dispatch("w0")
    last = players.workers["w0"]
    await last.complete([ended(d) for d in await last.take(100)])
    assert sorted(by_id(await desk.results()), key=int) == custom_ids
    counts = await desk.client.counts("b")
    assert (counts.total, counts.done) == (60, 60)


async def test_moves_at_the_same_time_from_many_connections_lose_nothing(desk: Desk) -> None:
    """Two schedulers' worth of duplicates: each placement is sent twice at once."""
    workers = [await desk.worker(f"w{i}") for i in range(4)]
    await desk.submit(*(str(i) for i in range(40)))
    jobs = await desk.waiting()
    shares = {worker.worker: jobs[i::4] for i, worker in enumerate(workers)}
    calls = [desk.dispatch(name, share) for name, share in shares.items() for _ in range(2)]
    await asyncio.gather(*calls)
    taken = await asyncio.gather(*(worker.take(100) for worker in workers for _ in range(2)))
    outcomes = [(workers[i // 2], [ended(d) for d in some]) for i, some in enumerate(taken) if some]
    flags = await asyncio.gather(*(worker.complete(some) for worker, some in outcomes for _ in range(2)))
    assert sum(sum(some) for some in flags) == 40
    assert len(by_id(await desk.results())) == 40

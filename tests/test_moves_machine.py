"""All moves in any order, copies and recalls among them: every job ends in one result, and nothing is left."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from cluster_fixtures import READY
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from move_fixtures import TTL_S, Desk
from test_rubbish import documented_to_live_for_ever

from broker.connection import connect
from broker.errors import UsageError, WorkerGoneError
from broker.jobs import ABORTED, Delivery, Outcome, job_id
from broker.keys import LEVELS
from broker.policies.base import Placement
from broker.store.worker import WorkerStore

WORKERS: tuple[str, ...] = ("w0", "w1", "w2")
BATCHES: tuple[str, ...] = ("b0", "b1")

workers = st.sampled_from(WORKERS)
batches = st.sampled_from(BATCHES)
chosen_ones = st.lists(st.integers(0, 15), min_size=1, max_size=4)

T = TypeVar("T")


def pick(things: Sequence[T], chosen: list[int]) -> list[T]:
    """Those of the things that were chosen, each once."""
    return [things[i] for i in sorted({i % len(things) for i in chosen})] if things else []


class Moves(RuleBasedStateMachine):
    """Three workers, two batches and a scheduler that comes and goes; ``url`` is set by the test."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.desk = Desk(self.run(self._connect()), f"machine-{uuid.uuid4().hex[:12]}")
        self.redis = self.desk.redis
        self.keys = self.desk.keys
        self.workers: dict[str, WorkerStore] = {}
        self.held: dict[str, list[Delivery]] = {name: [] for name in WORKERS}
        self.orders_read = dict.fromkeys(WORKERS, "0")
        self.submitted: dict[str, set[str]] = {batch: set() for batch in BATCHES}
        self.cancelled: set[str] = set()
        self.tokens_counted = dict.fromkeys(BATCHES, 0)
        self.counted: set[tuple[str, str, str]] = set()
        self.number = 0
        self.run(self._open())

    def run(self, move: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(move)

    async def _connect(self) -> Any:
        return connect(self.url)

    async def _open(self) -> None:
        assert await self.desk.scheduler.hold_lease()
        await self.desk.scheduler.prepare()
        for name in WORKERS:
            await self._join(name)

    async def _join(self, name: str) -> None:
        self.number += 1
        self.workers[name] = await self.desk.worker(name, f"i{self.number}", max_attempts=1000)
        self.held[name] = []
        self.orders_read[name] = "0"

    @property
    def jobs(self) -> list[str]:
        """Ids of all jobs that ever were, oldest first in each batch."""
        return [job_id(batch, c) for batch in BATCHES for c in sorted(self.submitted[batch], key=int)]

    async def _by(self, name: str, move: Coroutine[Any, Any, Any]) -> Any:
        """A move of that worker; None where the pool gave it up: then it joins anew."""
        try:
            return await move
        except WorkerGoneError:
            await self._join(name)

    @initialize()
    def begin(self) -> None:
        """Some jobs run, some have a copy: most runs would take long to come that far by chance."""
        self.submit("b0", 4)
        self.submit("b1", 4)
        self.dispatch("w0", 8)
        self._take("w0", 5, again=False)
        self.copy("w1", list(range(8)))

    # Clients

    @rule(batch=batches, count=st.integers(1, 4))
    def submit(self, batch: str, count: int) -> None:
        new = [str(len(self.submitted[batch]) + i) for i in range(count)]
        try:
            self.run(self.desk.submit(*new, batch=batch))
        except UsageError:
            assert batch in self.cancelled
        else:
            self.submitted[batch].update(new)

    @rule(batch=batches)
    @precondition(lambda self: self.number > 25)  # late, or most runs would be over cancelled jobs
    def cancel(self, batch: str) -> None:
        if self.run(self.desk.client.cancel(batch)):
            counts = self.run(self.desk.client.counts(batch))
            if counts.state == "cancelled":
                self.cancelled.add(batch)

    # Scheduler

    @rule(name=workers, count=st.integers(1, 8))
    def dispatch(self, name: str, count: int) -> None:
        jobs = self.run(self.desk.waiting())[:count]
        self.run(self.desk.scheduler.dispatch({name: [Placement(job, 10, 20, name, 1.0, "x") for job in jobs]}))

    @rule(name=workers, chosen=chosen_ones)
    def copy(self, name: str, chosen: list[int]) -> None:
        jobs = pick(self.run(self._bound(WORKERS)) or self.jobs, chosen)
        self.run(self.desk.scheduler.copy([(job, name, 11, 21, 2.0) for job in jobs]))

    @rule(name=workers, chosen=chosen_ones)
    def recall(self, name: str, chosen: list[int]) -> None:
        jobs = pick(self.run(self._bound([name])) or self.jobs, chosen)
        self.run(self.desk.scheduler.recall({name: jobs}))

    async def _bound(self, names: Sequence[str]) -> list[str]:
        """Jobs in the device queues of these workers."""
        return [job.job_id for name in names for job in await self.desk.scheduler.in_flight(name)]

    @rule()
    def time_passes(self) -> None:
        self.run(self._time_passes())

    async def _time_passes(self) -> None:
        """The delay of whatever failed is over."""
        for job in await self.redis.zrange(self.keys.delayed, 0, -1):
            await self.redis.zadd(self.keys.delayed, {job: 1})
        await self.desk.scheduler.move_due()

    @rule(chosen=chosen_ones)
    @precondition(lambda self: self.number > 15)
    def cancel_jobs(self, chosen: list[int]) -> None:
        self.run(self.desk.client.cancel_jobs(pick(self.jobs, chosen)))

    @rule(name=workers, how=st.sampled_from(["dies", "leaves", "drains", "engine dies", "scheduler changes"]))
    def upset(self, name: str, how: str) -> None:
        """What happens rarely: one rule, so that the others come more often."""
        self.run(self._upset(name, how))

    async def _upset(self, name: str, how: str) -> None:
        worker = self.workers[name]
        match how:
            case "dies":
                await self.desk.scheduler.declare_dead(name, silent_s=0, max_attempts=1000)
            case "leaves":
                await worker.leave()
            case "scheduler changes":
                await self.desk.scheduler.release_lease()
                assert await self.desk.scheduler.hold_lease()
            case _:
                if await self._by(name, worker.hand_back(also_running=how == "engine dies")) is not None:
                    await worker.heartbeat(READY)

    # Workers

    @rule(names=st.sets(workers, min_size=1), count=st.integers(1, 3), again=st.booleans())
    def take(self, names: set[str], count: int, again: bool) -> None:
        for name in sorted(names):
            self._take(name, count, again=again)

    def _take(self, name: str, count: int, *, again: bool) -> None:
        taken: list[Delivery] = self.run(self._by(name, self.workers[name].take(count, again=again))) or []
        known = {d.entry_id for d in self.held[name]}
        assert len({d.job_id for d in taken}) == len(taken)
        self.held[name] += [d for d in taken if d.entry_id not in known]

    @rule(chosen=chosen_ones, status=st.sampled_from([200, 400, 500, 503]))
    def complete(self, chosen: list[int], status: int) -> None:
        """Some of all they ever took in their lives: what was reported before or is another's, too."""
        held = [(name, delivery) for name in WORKERS for delivery in self.held[name]]
        some = pick(held, chosen)
        for name in WORKERS:
            again = 1000.0 if status == 503 else 0.0  # this one may pass
            outcomes = [Outcome(d, status, b"{}", *self._tokens(), retry_s=again) for n, d in some if n == name]
            self.run(self._report(name, outcomes))

    @rule(name=workers)
    def obey(self, name: str) -> None:
        self.run(self._obey(name))

    async def _obey(self, name: str) -> None:
        """Abort what the orders say that came since."""
        entries = await self.redis.xrange(self.keys.control(name), f"({self.orders_read[name]}")
        for entry, fields in entries:
            self.orders_read[name] = entry.decode()
            if fields[b"order"] == b"cancel_job":
                hit = [d for d in self.held[name] if d.entry_id == fields[b"entry"].decode()]
                outcomes = [Outcome(d, 0, b"", *self._tokens(), ABORTED) for d in hit]
                assert all(d.job_id == fields[b"job"].decode() for d in hit)
                await self._report(name, outcomes)

    def _tokens(self) -> tuple[int, int]:
        self.number += 1
        return self.number, 2 * self.number

    async def _report(self, name: str, outcomes: Sequence[Outcome]) -> None:
        flags = await self._by(name, self.workers[name].complete(outcomes)) if outcomes else []
        for outcome, counted in zip(outcomes, flags or [], strict=False):
            if counted:
                attempt = (name, self.workers[name].incarnation, outcome.delivery.entry_id)
                assert attempt not in self.counted, "one attempt counts once, as a result or as work in vain"
                self.counted.add(attempt)
                self.tokens_counted[outcome.delivery.batch_id] += outcome.prompt_tokens

    # What holds at any time

    @invariant()
    def every_job_is_in_its_place(self) -> None:
        self.run(self._check_places())

    async def _check_places(self) -> None:
        waiting: list[str] = []
        for level in LEVELS:
            waiting += [f[b"job"].decode() for _, f in await self.redis.xrange(self.keys.requests(level))]
        bound: dict[str, set[tuple[str, str]]] = {}
        for name in WORKERS:
            for entry, fields in await self.redis.xrange(self.keys.device(name)):
                bound.setdefault(fields[b"job"].decode(), set()).add((name, entry.decode()))
        ended = {r.job_id for batch in BATCHES for r in await self.desk.results(batch)}
        assert sorted(waiting) == sorted(set(waiting))
        delayed = {job.decode() for job in await self.redis.zrange(self.keys.delayed, 0, -1)}
        for job in self.jobs:
            raw = await self.redis.hgetall(self.keys.job(job))
            fields = {name.decode(): value.decode() for name, value in raw.items()}
            sides = {(fields[w], fields[e]) for w, e in (("worker", "entry"), ("copy", "copy_entry")) if fields.get(w)}
            assert bound.get(job, set()) == sides, job
            # (What was cancelled by itself leaves its entry there; nobody takes it.)
            assert job in ended or (job in waiting) == (fields["state"] == "queued"), job
            assert (job in delayed) == (fields.get("state") == "delayed"), job
            assert (job in ended) == (not fields), job
            assert bool(sides) == (fields.get("state") == "dispatched"), job

    @invariant()
    def the_counters_add_up(self) -> None:
        self.run(self._check_counters())

    async def _check_counters(self) -> None:
        for batch in BATCHES:
            if not self.submitted[batch]:
                continue
            results = await self.desk.results(batch)
            counts = await self.desk.client.counts(batch)
            assert len({r.custom_id for r in results}) == len(results) == counts.ended
            assert counts.total == len(self.submitted[batch])
            assert counts.prompt_tokens == sum(r.prompt_tokens for r in results)
            assert counts.output_tokens == sum(r.output_tokens for r in results)
            assert counts.copies >= counts.copies_won <= sum(r.reason == "copy" for r in results)
            assert counts.prompt_tokens + counts.wasted_prompt_tokens == self.tokens_counted[batch]
            assert counts.wasted_output_tokens == 2 * counts.wasted_prompt_tokens

    # The end

    def teardown(self) -> None:
        self.run(self._finish())
        self.runner.close()

    async def _finish(self) -> None:
        for name in WORKERS:
            await self._by(name, self.workers[name].heartbeat(READY))
        while await self._live():
            await self._time_passes()
            await self.desk.dispatch("w0")
            for name in WORKERS:
                taken = await self._by(name, self.workers[name].take(100)) or []
                deliveries = {d.entry_id: d for d in [*self.held[name], *taken]}
                await self._report(name, [Outcome(d, 200, b"{}", *self._tokens()) for d in deliveries.values()])
        await self.desk.scheduler.discard(await self.desk.waiting())  # entries of jobs that were cancelled
        await self._check_counters()
        for batch in BATCHES:
            assert {r.custom_id for r in await self.desk.results(batch)} == self.submitted[batch]
            await self.desk.client.seal(batch)
        for name in WORKERS:
            await self.workers[name].leave()
        await self.desk.scheduler.release_lease()
        await self._check_nothing_is_left()
        await self.redis.aclose()

    async def _live(self) -> bool:
        return any([await self.redis.exists(self.keys.job(job)) for job in self.jobs])

    async def _check_nothing_is_left(self) -> None:
        found = [key.decode() async for key in self.redis.scan_iter(match=f"{self.keys.prefix}*", count=1000)]
        for_ever = documented_to_live_for_ever(self.keys.prefix)
        kept = [key for key in found if not for_ever.fullmatch(key)]
        assert all([0 < await self.redis.ttl(key) <= TTL_S for key in kept]), kept
        assert sum((await self.desk.scheduler.waiting()).values()) == 0
        assert int(await self.redis.get(self.keys.held_bytes) or 0) == 0


def test_whatever_happens_in_whatever_order_every_job_ends_once(redis_url: str) -> None:
    class Bound(Moves):
        url = redis_url

    run_state_machine_as_test(
        Bound,
        settings=settings(
            max_examples=30, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )

"""Whatever happens in whatever order: each job is in one place, and no count is off."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from placing import PROFILE, device, ids, job, placements, placer_of, slower

from broker.placement import Placer
from broker.policies import POLICIES


class Books(RuleBasedStateMachine):
    """Whatever happens in whatever order: no job lost or twice, no device over its room, no token miscounted."""

    def __init__(self) -> None:
        super().__init__()
        self.placer: Placer = placer_of()
        self.made = 0
        self.ended = 0
        self.now = 0.0
        self.copied: dict[str, str] = {}

    @initialize(policy=st.sampled_from(sorted(POLICIES)))
    def start(self, policy: str) -> None:
        shapes = [(1, 1.0), (2, 0.3), (3, 5.0)]
        self.placer = placer_of(
            *(device(f"d{i}", slower(PROFILE, slow, seats=n, kv_tokens=2000)) for i, (n, slow) in enumerate(shapes)),
            policy=policy,
        )

    @rule(count=st.integers(1, 10), body_bytes=st.integers(1, 4000), level=st.sampled_from(["high", "low", "returned"]))
    def arrive(self, count: int, body_bytes: int, level: str) -> None:
        for _ in range(count):
            self.placer.add(job(self.made, level, body_bytes=body_bytes))
            self.made += 1

    @rule(undo=st.booleans(), passed=st.floats(0, 2))
    def decide(self, undo: bool, passed: float) -> None:
        self.now += passed
        groups = self.placer.decide(self.now)
        for name, placed in groups.items():
            known = self.placer.cluster.devices[name]
            assert len(known.in_flight) <= known.heartbeat.seats + known.depth(0.02)
            assert all(p.device == name for p in placed)
        if undo:
            self.placer.take_back(placements(groups))

    @rule(data=st.data(), prompt=st.integers(0, 100), output=st.integers(0, 3000))
    def end(self, data: st.DataObject, prompt: int, output: int) -> None:
        one = self.placer.cluster.devices[data.draw(st.sampled_from(["d0", "d1", "d2"]))]
        if one.in_flight:
            job_id = data.draw(st.sampled_from(sorted(one.in_flight)))
            self.placer.completed(one.name, {job_id: (prompt, output)}, self.now)
            self.ended += 1
            self.drop(job_id)

    def drop(self, job_id: str) -> None:
        """The other side of a job that ran twice is dropped."""
        if self.copied.pop(job_id, None):
            for other in self.placer.cluster.devices.values():
                self.placer.forget(other.name, [job_id])

    @rule(name=st.sampled_from(["d0", "d1", "d2"]), state=st.sampled_from(["ready", "draining"]))
    def beat(self, name: str, state: str) -> None:
        known = self.placer.cluster.devices[name]
        running = min(len(known.in_flight), known.heartbeat.seats)
        done = {"steps_total": known.heartbeat.steps_total + 5 * bool(running), "running": running}
        update = {"state": state, "seen": known.heartbeat.seen + 1} | done
        self.placer.cluster.refresh(name, known.heartbeat.model_copy(update=update), self.now)

    @rule(passed=st.floats(0, 2))
    def finish(self, passed: float) -> None:
        self.now += passed
        decided = self.placer.finish_up(self.now)
        for name, jobs in decided.recalls.items():
            self.placer.forget(name, jobs)
            for job_id in jobs:
                self.placer.add(job(int(job_id[2:]), "returned"))
        for copy in decided.copies:
            assert copy.job.job_id not in self.copied
            self.copied[copy.job.job_id] = copy.device

    @invariant()
    def every_job_is_in_one_place(self) -> None:
        places = ids(self.placer.window)
        for one in self.placer.cluster.devices.values():
            places += [job_id for job_id in one.in_flight if self.copied.get(job_id) != one.name]
        assert len(places) == len(set(places)) == self.made - self.ended

    @invariant()
    def tokens_in_flight_are_the_sum(self) -> None:
        for one in self.placer.cluster.devices.values():
            assert one.tokens_in_flight == sum(bound.tokens for bound in one.in_flight.values())

    @invariant()
    def an_empty_device_has_nothing_to_do(self) -> None:
        for one in self.placer.cluster.devices.values():
            if not one.in_flight:
                assert sum(one.backlog.left(one.calendar.step)) == pytest.approx(0, abs=1e-3)
                assert one.calendar.steps_left == 0.0


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

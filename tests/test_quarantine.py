"""Suspects in quarantine: killers are found within their attempts, and nobody pays for them."""

from __future__ import annotations

import random
from math import isqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from broker.jobs import WaitingJob
from broker.quarantine import DeviceState, Quarantine

MAX_ATTEMPTS = 3


def job(name: str, deaths: int = 1, charges: int = 0) -> WaitingJob:
    return WaitingJob(name, "returned", "1-0", "b", "normal", 10, 5, deaths=deaths, charges=charges or deaths)


def quarantine_of(*jobs: WaitingJob, max_attempts: int = MAX_ATTEMPTS) -> Quarantine:
    quarantine = Quarantine(max_attempts)
    for some in jobs:
        quarantine.add(some)
    return quarantine


def decide(quarantine: Quarantine, *devices: DeviceState, holds: str = "", fits: bool = True) -> dict[str, list[str]]:
    """What is placed by device; ``holds``: the only device that can hold the jobs."""
    found: dict[str, list[str]] = {}
    for placed, device in quarantine.decide(devices, lambda _, name: holds in ("", name), lambda *_: fits):
        found.setdefault(device, []).append(placed.job_id)
    return found


class TestRules:
    def test_a_device_gets_no_more_than_the_root_of_all_suspects(self) -> None:
        quarantine = quarantine_of(*(job(str(i)) for i in range(20)))
        placed = decide(quarantine, DeviceState("a"), DeviceState("b", 9))
        assert {device: len(jobs) for device, jobs in placed.items()} == {"a": 4, "b": 4}
        assert len(quarantine.waiting) == 12
        assert decide(quarantine, DeviceState("a", 4, 4), DeviceState("b", 13, 4)) == {}

    def test_the_last_chance_is_taken_alone_on_an_empty_device(self) -> None:
        quarantine = quarantine_of(job("x", deaths=2))
        assert decide(quarantine, DeviceState("a", 3), DeviceState("b")) == {"b": ["x"]}
        assert quarantine.reserved == {"b"}
        assert decide(quarantine, DeviceState("a", 3), DeviceState("b", 1, 1, alone=True)) == {}
        assert quarantine.reserved == {"b"}
        assert decide(quarantine, DeviceState("a", 3), DeviceState("b")) == {}
        assert not quarantine.reserved
        assert not quarantine.active

    def test_without_an_empty_device_the_emptiest_is_emptied(self) -> None:
        quarantine = quarantine_of(job("x", deaths=2))
        assert decide(quarantine, DeviceState("a", 3), DeviceState("b", 2)) == {}
        assert quarantine.reserved == {"b"}
        assert decide(quarantine, DeviceState("a", 0), DeviceState("b", 1)) == {}, "it stays with its choice"
        assert decide(quarantine, DeviceState("a", 5), DeviceState("b", 0)) == {"b": ["x"]}

    def test_half_of_the_devices_go_on_with_other_work(self) -> None:
        quarantine = quarantine_of(*(job(str(i), deaths=2) for i in range(9)))
        devices = [DeviceState(name) for name in "abcd"]
        assert sum(map(len, decide(quarantine, *devices).values())) == 2
        assert len(quarantine.reserved) == 2

    def test_a_charge_without_a_death_makes_no_suspect(self) -> None:
        assert not Quarantine(3).must_be_alone(job("x", deaths=0, charges=2))
        assert Quarantine(3).must_be_alone(job("x", deaths=1, charges=2))

    def test_a_device_that_cannot_hold_the_job_is_no_choice(self) -> None:
        for deaths, placed in ((1, {"b": ["x"]}), (2, {})):
            quarantine = quarantine_of(job("x", deaths))
            assert decide(quarantine, DeviceState("a"), DeviceState("b", 1), holds="b") == placed
        quarantine = quarantine_of(job("x", 2))
        assert decide(quarantine, DeviceState("a"), holds="none") == {"a": ["x"]}

    def test_where_there_is_no_room_they_wait(self) -> None:
        quarantine = quarantine_of(job("x"))
        assert decide(quarantine, DeviceState("a", 9), fits=False) == {}
        assert list(quarantine.waiting) == ["x"]
        assert decide(quarantine) == {}

    def test_a_batch_is_found_in_it(self) -> None:
        quarantine = quarantine_of(job("x"), job("y"))
        assert [j.job_id for j in quarantine.of_batch("b")] == ["x", "y"]
        quarantine.remove("x")
        assert [j.job_id for j in quarantine.of_batch("b")] == ["y"]
        assert quarantine.of_batch("other") == []


class Model:
    """Workers that die of killers, and the rules by which their jobs are charged (as ``leave`` in lib.lua has them)."""

    def __init__(self, jobs: int, killers: set[str], devices: int, seats: int, max_attempts: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.killers, self.seats = killers, seats
        self.quarantine = Quarantine(max_attempts)
        self.fresh = [job(str(i), deaths=0) for i in range(jobs)]
        self.running: dict[str, list[WaitingJob]] = {f"d{i}": [] for i in range(devices)}
        self.runs: dict[str, int] = {}
        self.deaths_alone: set[str] = set()
        self.done: set[str] = set()
        self.dead: set[str] = set()

    def step(self) -> None:
        states = [
            self.quarantine.state_of(name, len(jobs), [j for j in jobs if j.deaths])
            for name, jobs in self.running.items()
        ]
        for some, name in self.quarantine.decide(states, lambda *_: True, self._fits):
            self.running[name].append(some)
        for name, jobs in self.running.items():
            while self.fresh and len(jobs) < self.seats and name not in self.quarantine.reserved:
                jobs.append(self.fresh.pop(0))
            if any(self.quarantine.must_be_alone(j) for j in jobs):
                assert len(jobs) == 1, "its last chance is its own"
        self._time_passes()

    def _fits(self, _: WaitingJob, name: str) -> bool:
        return len(self.running[name]) < self.seats

    def _time_passes(self) -> None:
        """On some device something happens: it dies if it has a killer, or else ends jobs."""
        name = self.rng.choice([name for name, jobs in self.running.items() if jobs] or ["d0"])
        jobs = self.running[name]
        if any(j.job_id in self.killers for j in jobs):
            self.running[name] = []
            for j in jobs:
                self._charge(j, alone=len(jobs) == 1)
        else:
            for j in jobs[: self.rng.randint(1, self.seats)]:
                jobs.remove(j)
                self.done.add(j.job_id)

    def _charge(self, j: WaitingJob, *, alone: bool) -> None:
        self.runs[j.job_id] = self.runs.get(j.job_id, 0) + 1
        j = structs.replace(j, deaths=j.deaths + 1, charges=j.deaths + 1)
        if j.charges >= self.quarantine.max_attempts:
            assert alone, "nobody is given up for what another did"
            self.dead.add(j.job_id)
        else:
            self.quarantine.add(j)


@settings(max_examples=200, deadline=None)
@given(
    jobs=st.integers(1, 60),
    killers=st.sets(st.integers(0, 59), max_size=4),
    devices=st.integers(1, 5),
    seats=st.integers(1, 30),
    max_attempts=st.integers(2, 4),
    seed=st.integers(),
)
def test_killers_are_given_up_within_their_attempts_and_all_others_are_done(
    jobs: int, killers: set[int], devices: int, seats: int, max_attempts: int, seed: int
) -> None:
    bad = {str(i) for i in killers if i < jobs}
    model = Model(jobs, bad, devices, seats, max_attempts, seed)
    for _ in range(3000):
        if len(model.done) + len(model.dead) == jobs:
            break
        model.step()
    assert model.dead == bad
    assert len(model.done) == jobs - len(bad)
    assert all(model.runs[killer] == max_attempts for killer in bad)


@pytest.mark.parametrize("good", [20, 255])
def test_one_killer_costs_three_workers_and_no_more(good: int) -> None:
    model = Model(good + 1, {"0"}, devices=1, seats=good + 1, max_attempts=3, seed=1)
    deaths = 0
    while len(model.done) + len(model.dead) <= good:
        before = sum(model.runs.values())
        model.step()
        deaths += sum(model.runs.values()) > before
    assert (model.dead, deaths) == ({"0"}, 3)
    assert sum(runs == 2 for runs in model.runs.values()) <= isqrt(good + 1)

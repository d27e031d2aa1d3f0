"""Jobs that may have killed a worker, as the scheduler places them; the rules themselves are in test_quarantine.py."""

from __future__ import annotations

import random

from cluster_fixtures import heartbeat

from broker.endgame import EndGame
from broker.jobs import WaitingJob
from broker.placement import Placer
from broker.policies import make_policy


def suspect(name: str, deaths: int) -> WaitingJob:
    return WaitingJob(name, "returned", "1-0", "b", "normal", 400, 20, deaths=deaths, charges=deaths)


def placer_of_two() -> Placer:
    placer = Placer(make_policy("least_outstanding"), random.Random(0), 0.02)
    for name in ("a", "b"):
        placer.cluster.refresh(name, heartbeat(seats=4))
    return placer


def test_who_must_be_alone_gets_a_device_and_keeps_it_until_its_end() -> None:
    placer = placer_of_two()
    placer.add(suspect("x", 2))
    for i in range(20):
        placer.add(WaitingJob(f"fresh{i}", "normal", f"{i + 1}-0", "b", "normal", 400, 20))
    groups = placer.decide(0.0)
    [(alone, [placement])] = [(n, group) for n, group in groups.items() if group[0].job.job_id == "x"]
    [(other, fresh)] = [(n, group) for n, group in groups.items() if n != alone]
    assert (placement.reason, len(fresh)) == ("quarantine", 5)
    placer.completed(other, {p.job.job_id: (10, 5) for p in fresh}, 1.0)
    assert set(placer.decide(1.0)) == {other}
    placer.completed(alone, {"x": (10, 5)}, 2.0)
    assert alone in placer.decide(2.0)


def test_what_could_not_be_dispatched_is_a_suspect_still() -> None:
    placer = placer_of_two()
    placer.add(suspect("x", 1))
    [[placement]] = placer.decide(0.0).values()
    placer.take_back([placement])
    assert [job.job_id for job in placer.waiting()] == ["x"]
    assert [job.job_id for job in placer.of_batch("b")] == ["x"]
    placer.remove(placement.job)
    assert list(placer.waiting()) == []


def test_the_end_of_the_work_is_left_alone_while_suspects_run() -> None:
    placer = placer_of_two()
    placer.add(suspect("x", 1))
    placer.decide(0.0)
    assert placer.quarantine.active
    assert placer.finish_up(1.0) == EndGame()

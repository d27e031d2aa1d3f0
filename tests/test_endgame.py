"""The end of the work: what is taken back, what runs a second time, and when neither happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placing import PROFILE, beat, busy, device, job, placements, placer_of, slower

from broker.cluster import Cluster, Device, InFlight
from broker.endgame import EndGame, end_game
from broker.throughput import Profile

NOTHING = EndGame()

job_sizes = st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 1000)), max_size=40)
shapes = st.lists(st.tuples(st.sampled_from([0.3, 1.0, 5.0, 50.0]), st.integers(1, 20), job_sizes), max_size=5)


def end(*devices: Device, copied: Sequence[str] = ()) -> EndGame:
    return end_game(Cluster({one.name: one for one in devices}), copied, 0.02)


def copies(decided: EndGame) -> list[tuple[str, str, str]]:
    return [(copy.job.job_id, copy.source, copy.device) for copy in decided.copies]


class TestRecall:
    def test_what_lies_behind_the_seats_of_a_slow_device_is_taken_back_for_an_idle_one(self) -> None:
        slow = busy(device("slow", slower(PROFILE, 20)), [(100, 200)] * 11)
        decided = end(slow, device("idle", PROFILE))
        assert decided.recalls == {"slow": ["busy.slow9", "busy.slow10"]}  # 8 seats, and one is about to start

    def test_not_where_the_seats_are_enough(self) -> None:
        slow = busy(device("slow", slower(PROFILE, 20)), [(100, 200)] * 9)
        assert end(slow, device("idle", PROFILE)).recalls == {}

    def test_not_for_a_device_that_would_take_longer(self) -> None:
        behind = busy(device("a", PROFILE), [(100, 200)] * 11)
        assert end(behind, device("idle", slower(PROFILE, 20))).recalls == {}

    def test_not_for_a_device_that_cannot_hold_it(self) -> None:
        slow = busy(device("slow", slower(PROFILE, 20)), [(3000, 200)] * 11)
        assert end(slow, device("idle", replace(PROFILE, kv_tokens=2000))).recalls == {}

    def test_what_is_taken_back_has_the_room_before_copies(self) -> None:
        slow, idle = busy(device("slow", slower(PROFILE, 20)), [(100, 200)] * 11), device("idle", PROFILE)
        decided = end(slow, idle)
        assert len(decided.recalls["slow"]) == 2
        assert decided.copies == []
        for job_id in decided.recalls["slow"]:
            slow.unbind(job_id)
        assert end(slow, idle).copies


class TestCopies:
    def test_a_straggler_is_run_again_where_it_ends_much_sooner(self) -> None:
        slow = busy(device("slow", slower(PROFILE, 20)), [(100, 500)])
        decided = end(slow, device("idle", PROFILE))
        assert copies(decided) == [("busy.slow0", "slow", "idle")]
        assert decided.copies[0].predicted_s == pytest.approx(PROFILE.alone_seconds(100, 500), rel=0.1)

    def test_the_longest_goes_first_and_to_the_fastest(self) -> None:
        slow = busy(device("slow", slower(PROFILE, 20)), [(100, 300), (100, 900), (100, 600)])
        decided = end(slow, device("idle", PROFILE), device("better", slower(PROFILE, 0.5)))
        assert copies(decided)[0] == ("busy.slow1", "slow", "better")

    def test_not_where_it_gains_little(self) -> None:
        assert end(busy(device("a", PROFILE), [(100, 500)]), device("idle", PROFILE)) == NOTHING

    def test_not_on_a_device_whose_own_last_job_it_would_make_the_last_of_all(self) -> None:
        slow = busy(device("slow", slower(PROFILE, 20)), [(18_000, 500)])
        assert copies(end(slow, device("free", PROFILE)))
        seconds = slow.seconds_a_step * 500
        steps = int(seconds / PROFILE.decode_step_seconds(1, 2000))
        behind = busy(device("behind", replace(PROFILE, kv_tokens=100_000)), [(100, steps)])
        assert end(slow, behind) == NOTHING

    def test_not_where_the_batch_it_is_in_thins_out_before_it(self) -> None:
        crowd = replace(PROFILE, decode_d=0.001, decode_e=0.02)
        idle = device("idle", slower(crowd, 2))
        for steps, moves in ((10, False), (400, True)):
            among_others = busy(device("a", crowd), [(100, 500), *[(100, steps)] * 7])
            assert (("busy.a0", "a", "idle") in copies(end(among_others, idle))) == moves

    def test_not_for_a_job_that_is_nearly_done(self) -> None:
        slow = busy(device("slow", slower(PROFILE, 20)), [(100, 500)])
        slow.calendar.advance(495.0)
        assert end(slow, device("idle", PROFILE)) == NOTHING

    def test_a_job_that_outlasts_its_prediction_is_not_taken_for_done(self) -> None:
        slow = busy(device("slow", slower(PROFILE, 50)), [(100, 500)])
        slow.calendar.advance(600.0)
        assert copies(end(slow, device("idle", PROFILE))) == [("busy.slow0", "slow", "idle")]

    def test_one_that_is_only_a_few_steps_late_is_about_to_end(self) -> None:
        slow = busy(device("slow", slower(PROFILE, 50)), [(100, 500)])
        slow.calendar.advance(520.0)
        assert end(slow, device("idle", PROFILE)) == NOTHING

    def test_the_longer_it_has_outlasted_it_the_longer_it_will(self) -> None:
        slow = busy(device("slow", slower(PROFILE, 5)), [(100, 10)])
        slow.calendar.advance(11.0)
        assert end(slow, device("idle", PROFILE)) == NOTHING
        slow.calendar.advance(600.0)
        decided = end(slow, device("idle", PROFILE))
        assert copies(decided) == [("busy.slow0", "slow", "idle")]
        assert decided.copies[0].predicted_s > PROFILE.alone_seconds(100, 600)  # from its start to where it is, and on

    def test_but_no_longer_than_it_may(self) -> None:
        slow = device("slow", slower(PROFILE, 5))
        slow.bind(InFlight("busy.slow0", 100, 10, step=slow.calendar.step, max_tokens=602))
        slow.calendar.advance(600.0)
        assert end(slow, device("idle", PROFILE)) == NOTHING

    def test_a_busy_device_that_has_room_does_it_beside_its_own(self) -> None:
        slow = busy(device("slow", slower(PROFILE, 20)), [(100, 500)])
        assert copies(end(slow, busy(device("b", PROFILE), [(100, 100)] * 4))) == [("busy.slow0", "slow", "b")]

    def test_not_to_a_busy_device_without_memory_for_it(self) -> None:
        slow = busy(device("slow", slower(PROFILE, 20)), [(100, 500)])
        scarce = replace(PROFILE, kv_tokens=700)
        assert copies(end(slow, busy(device("b", scarce), [(100, 100)] * 1))) == [("busy.slow0", "slow", "b")]
        assert end(slow, busy(device("b", scarce), [(100, 100)] * 3)).copies == []

    def test_not_to_a_device_that_has_no_seat_free(self) -> None:
        slow = busy(device("slow", slower(PROFILE, 20)), [(100, 500)])
        assert end(slow, busy(device("b", PROFILE), [(100, 100)] * 8)).copies == []

    def test_not_to_a_device_that_cannot_hold_it(self) -> None:
        slow = busy(device("slow", slower(PROFILE, 20)), [(100, 500)])
        assert end(slow, device("idle", replace(PROFILE, kv_tokens=500))) == NOTHING

    def test_not_twice(self) -> None:
        slow = busy(device("slow", slower(PROFILE, 20)), [(100, 500)])
        assert end(slow, device("idle", PROFILE), copied=["busy.slow0"]) == NOTHING

    @pytest.mark.parametrize("state", ["starting", "draining", "paused"])
    def test_not_to_a_device_that_takes_none(self, state: str) -> None:
        slow = busy(device("slow", slower(PROFILE, 20)), [(100, 500)])
        assert end(slow, device("idle", PROFILE, state=state)) == NOTHING

    def test_a_device_that_was_idle_until_a_moment_ago_is_not_taken_for_slow(self) -> None:
        """Its few steps of the last second say when it began, not how fast it is."""
        placer = placer_of(policy="throughput")
        cluster = placer.cluster
        for second in range(3):
            for name in ("a", "b"):
                cluster.refresh(name, beat(PROFILE, seen=float(second), steps_total=100), float(second))
        placer.add(job(0, body_bytes=400))
        placed = placements(placer.decide(2.9))
        assert len(placed) == 1
        running = beat(PROFILE, seen=3.0, steps_total=110, output_tokens_total=10, running=1)
        cluster.refresh(placed[0].device, running, 3.0)
        assert placer.finish_up(3.1) == NOTHING


@settings(max_examples=150, deadline=None)
@given(shapes=shapes, data=st.data())
def test_whatever_there_is_moves_make_sense(
    shapes: list[tuple[float, int, list[tuple[int, int]]]], data: st.DataObject
) -> None:
    devices = {
        f"d{i}": busy(device(f"d{i}", slower(replace(PROFILE, seats=seats), slow)), sizes)
        for i, (slow, seats, sizes) in enumerate(shapes)
    }
    everything = [job_id for one in devices.values() for job_id in one.in_flight]
    copied = data.draw(st.sets(st.sampled_from(everything))) if everything else set[str]()
    decided = end(*devices.values(), copied=list(copied))
    for name, jobs in decided.recalls.items():
        youngest = list(devices[name].in_flight)[devices[name].heartbeat.seats :]
        assert set(jobs) <= set(youngest)
    moved = [copy.job.job_id for copy in decided.copies]
    assert len(moved) == len(set(moved))
    assert not copied & set(moved)
    assert not (decided.recalls and moved)
    for copy in decided.copies:
        source, target = devices[copy.source], devices[copy.device]
        assert copy.job.job_id in source.in_flight
        assert source is not target
        profile = kind_profile(target)
        assert copy.job.prompt_tokens + copy.job.output_tokens <= profile.kv_tokens
        assert len(target.in_flight) < target.heartbeat.seats
        assert copy.predicted_s < source.seconds_a_step * copy.job.output_tokens


def kind_profile(one: Device) -> Profile:
    assert one.kind is not None
    return one.kind.profile


class TestPlacer:
    def straggling(self, policy: str = "throughput") -> tuple[Device, Device]:
        return device("idle", PROFILE), busy(device("slow", slower(PROFILE, 20)), [(100, 500)])

    def test_nothing_moves_while_jobs_wait_or_more_may_come_that_we_do_not_see(self) -> None:
        placer = placer_of(*self.straggling(), policy="throughput")
        placer.add(job(0))
        assert placer.finish_up(1.0) == NOTHING
        placer.window.remove(job(0))
        placer.whole = False
        assert placer.finish_up(1.0) == NOTHING
        placer.whole = True
        assert placer.finish_up(1.0).copies

    @pytest.mark.parametrize("policy", ["round_robin", "capacity", "least_outstanding", "power_of_two"])
    def test_the_policies_to_compare_with_leave_the_end_as_it_comes(self, policy: str) -> None:
        assert placer_of(*self.straggling(), policy=policy).finish_up(1.0) == NOTHING

    def test_a_copy_counts_on_its_device_and_is_not_made_again(self) -> None:
        idle, slow = self.straggling()
        placer = placer_of(idle, slow, policy="throughput")
        (copy,) = placer.finish_up(1.0).copies
        assert list(idle.in_flight) == list(slow.in_flight) == ["busy.slow0"]
        assert idle.in_flight["busy.slow0"].predicted_s == copy.predicted_s
        assert placer.finish_up(2.0) == NOTHING

    def test_whichever_side_ends_first_the_other_is_forgotten_once_it_is_dropped(self) -> None:
        for winner, loser in (("idle", "slow"), ("slow", "idle")):
            idle, slow = self.straggling()
            placer = placer_of(idle, slow, policy="throughput")
            placer.finish_up(1.0)
            placer.completed(winner, {"busy.slow0": (100, 500)}, 2.0)
            placer.forget(loser, ["busy.slow0"])
            assert [len(one.in_flight) + one.tokens_in_flight for one in (idle, slow)] == [0, 0]
            assert placer.finish_up(3.0) == NOTHING

    def test_recalled_jobs_go_to_the_idle_device_when_they_are_back(self) -> None:
        idle, slow = device("idle", PROFILE), busy(device("slow", slower(PROFILE, 20)), [(100, 200)] * 11)
        placer = placer_of(idle, slow, policy="throughput")
        recalls = placer.finish_up(1.0).recalls["slow"]
        placer.forget("slow", recalls)
        for i, _ in enumerate(recalls):
            placer.add(job(i, "returned"))
        groups = placer.decide(1.1)
        assert {name: len(placed) for name, placed in groups.items()} == {"idle": len(recalls)}

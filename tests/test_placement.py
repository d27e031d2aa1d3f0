"""The scheduler's mind: decisions and their undoing, and which devices it looks at."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placing import PROFILE, FixedLengths, beat, busy, device, ids, job, placements, placer_of, slower

from broker import placement
from broker.admission import jobs_a_look, offer_of, renew_offer
from broker.cluster import Device
from broker.jobs import Priority
from broker.keys import LEVELS
from broker.placement import MAX_PLACEMENTS
from broker.policies import POLICIES
from broker.policies.base import Candidate, Offer


def by_number(candidate: Candidate) -> int:
    return int(candidate.job.job_id[2:])


class TestDecide:
    @pytest.mark.parametrize("policy", sorted(POLICIES))
    @settings(max_examples=50, deadline=None)
    @given(
        levels=st.lists(st.sampled_from(LEVELS), max_size=40),
        seats=st.lists(st.integers(1, 6), min_size=1, max_size=4),
        data=st.data(),
    )
    def test_undoing_all_decisions_leaves_everything_as_it_was(
        self, policy: str, levels: list[str], seats: list[int], data: st.DataObject
    ) -> None:
        devices = [device(f"d{i}", PROFILE, seats=n, seen=1.0) for i, n in enumerate(seats)]
        placer = placer_of(*devices, policy=policy)
        for i, level in enumerate(levels):
            placer.add(job(i, level, data.draw(st.sampled_from(list(Priority))) if level == "returned" else ""))
        before = list(placer.window)
        free = [one.calendar.free(1000.0).tolist() for one in devices]
        groups = placer.decide(0.0)
        assert len(placer.window) == len(before) - len(placements(groups))
        placer.take_back(placements(groups))
        if policy == "throughput":  # it takes them by length class: what comes back is in front of what stayed
            before.sort(key=by_number)
            assert sorted(placer.window, key=by_number) == before
        else:
            assert list(placer.window) == before
        assert [(len(d.in_flight), d.tokens_in_flight) for d in devices] == [(0, 0)] * len(seats)
        assert [one.calendar.free(1000.0).tolist() for one in devices] == free

    def test_what_is_taken_back_from_one_device_goes_to_another(self) -> None:
        placer = placer_of(device("a", seats=2), device("b", seats=2))
        for i in range(4):
            placer.add(job(i))
        groups = placer.decide(0.0)
        assert set(groups) == {"a", "b"}
        placer.close("a")
        placer.take_back(groups["a"])
        again = placer.decide(0.0)
        assert set(again) == {"b"}
        there = [p.job.job_id for p in groups["b"] + again["b"]] + ids(placer.window)
        assert sorted(there) == [f"b.{i}" for i in range(4)]

    @pytest.mark.parametrize("policy", sorted(POLICIES))
    def test_a_decided_job_counts_at_once_so_that_the_next_round_does_not_overfill(self, policy: str) -> None:
        placer = placer_of(device("a", seats=2), policy=policy)
        for i in range(9):
            placer.add(job(i))
        assert len(placements(placer.decide(0.0))) == 3
        assert placer.decide(0.0) == {}

    @pytest.mark.parametrize("policy", sorted(POLICIES))
    @pytest.mark.parametrize("state", ["starting", "draining", "paused"])
    def test_only_ready_devices_get_jobs(self, policy: str, state: str) -> None:
        placer = placer_of(device("a", state=state), device("b", seats=0), policy=policy)
        placer.add(job(0))
        assert placer.decide(0.0) == {}

    @pytest.mark.parametrize("policy", sorted(POLICIES))
    def test_one_decision_moves_a_bounded_number_of_jobs(self, policy: str) -> None:
        placer = placer_of(device("a", seats=10**6, kv_tokens_total=10**9, kv_tokens_free=10**9), policy=policy)
        for i in range(MAX_PLACEMENTS + 1):
            placer.add(job(i, body_bytes=1))
        assert len(placements(placer.decide(0.0))) == MAX_PLACEMENTS

    def test_a_closed_device_takes_jobs_again_once_its_heartbeat_says_so(self) -> None:
        placer = placer_of(device("a"))
        placer.close("a")
        placer.add(job(0))
        assert placer.decide(0.0) == {}
        placer.cluster.refresh("a", beat(seen=1.0))
        assert set(placer.decide(0.0)) == {"a"}

    def test_a_device_that_left_gets_nothing(self) -> None:
        placer = placer_of(device("a"), device("b"))
        for i in range(2):
            placer.add(job(i))
        assert len(placements(placer.decide(0.0))) == 2
        placer.cluster.keep_only(["b"])
        for i in range(2, 30):
            placer.add(job(i))
        assert set(placer.decide(0.0)) == {"b"}

    def test_news_of_devices_that_left_change_nothing(self) -> None:
        placer = placer_of()
        placer.close("gone")
        placer.forget("gone", ["b.0"])
        placer.completed("gone", {"b.0": (1, 1)}, 0.0)
        assert placer.cluster.devices == {}

    def test_the_placer_learns_from_jobs_that_end(self) -> None:
        placer = placer_of(device("a"))
        placer.add(job(0, body_bytes=100))
        placer.decide(0.0)
        placer.completed("a", {"b.0": (50, 8), "unknown": (1, 10**6)}, 1.0)
        placer.add(job(1, body_bytes=100))
        (learned,) = placer.window
        assert learned.prompt_tokens > 25
        assert learned.output_tokens < 200
        assert placer.cluster.devices["a"].in_flight == {}

    def test_a_prediction_is_kept_with_the_job(self) -> None:
        placer = placer_of(device("a"), policy="throughput")
        placer.lengths = FixedLengths({}, (100, 50))
        placer.add(job(0, body_bytes=77, max_tokens=99))
        (placed,) = placements(placer.decide(5.0))
        bound = placer.cluster.devices["a"].in_flight["b.0"]
        assert (bound.prompt_tokens, bound.output_tokens, bound.body_bytes, bound.max_tokens) == (100, 50, 77, 99)
        assert (bound.dispatched, bound.predicted_s) == (5.0, placed.predicted_s)
        assert placed.predicted_s == pytest.approx(PROFILE.alone_seconds(100, 50), rel=0.1)


class TestManyDevices:
    """With a thousand devices a round looks only at those that changed."""

    @pytest.fixture
    def looked_at(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        seen: list[str] = []

        def counted(offer: Offer, device: Device, round_trip_s: float, now: float, one_in: int) -> None:
            seen.append(device.name)
            renew_offer(offer, device, round_trip_s, now, one_in)

        monkeypatch.setattr(placement, "renew_offer", counted)
        return seen

    @pytest.mark.parametrize("policy", ["throughput", "least_outstanding"])
    def test_a_round_touches_only_devices_that_changed(self, policy: str, looked_at: list[str]) -> None:
        placer = placer_of(*(device(f"d{i:04}") for i in range(1000)), policy=policy)
        placer.lengths = FixedLengths({})
        placer.whole = False
        for i in range(12_000):
            placer.add(job(i))
        groups: dict[str, int] = {}
        while found := placer.decide(0.0):
            groups |= {name: len(placed) for name, placed in found.items()}
        assert len(groups) == 1000
        assert len(placer.window) == 12_000 - 9 * 1000
        looked_at.clear()
        assert placer.decide(1.0) == {}
        assert looked_at == []
        for name in ("d0003", "d0500"):
            ended = list(placer.cluster.devices[name].in_flight)[:2]
            placer.completed(name, dict.fromkeys(ended, (10, 20)), 2.0)
        assert {name: len(placed) for name, placed in placer.decide(2.0).items()} == {"d0003": 2, "d0500": 2}
        assert sorted(looked_at) == ["d0003", "d0500"]
        placer.cluster.refresh("d0700", beat(seen=3.0), 3.0)
        looked_at.clear()
        placer.decide(3.0)
        assert looked_at == ["d0700"]

    @pytest.mark.parametrize(
        ("devices", "many_wait", "looks"), [(9, True, [3, 2, 2, 2]), (1000, True, [9]), (9, False, [1] * 9)]
    )
    def test_a_large_batch_is_looked_at_when_some_of_it_has_ended(
        self, devices: int, many_wait: bool, looks: list[int]
    ) -> None:
        one_in = jobs_a_look(devices, many_wait=many_wait)
        one = busy(device("a", slower(PROFILE, 1.0, seats=256, kv_tokens=10**6)), [(10, 20)] * 64)
        ended, seen = 0, list[int]()
        renew_offer(offer := offer_of(one, 0.02), one, 0.02, 0.0, one_in)
        one.changed.clear()
        for job_id in list(one.in_flight)[:9]:
            one.unbind(job_id)
            ended += 1
            if one.changed:
                seen.append(ended)
                ended = 0
                renew_offer(offer, one, 0.02, 0.0, one_in)
                one.changed.clear()
        assert seen == looks

    def test_a_heartbeat_that_tells_nothing_new_is_no_reason_to_look_at_a_large_batch(self) -> None:
        one = busy(device("a", slower(PROFILE, 1.0, seats=256, kv_tokens=10**6)), [(10, 20)] * 64)
        renew_offer(offer_of(one, 0.02), one, 0.02, 10.0, 32)
        told = one.heartbeat

        def changed(at: float, **fields: object) -> bool:
            one.changed.clear()
            one.refresh(told.model_copy(update={"seen": at, **fields}), at)
            return bool(one.changed)

        assert [changed(11.0), changed(12.0, state="draining"), changed(13.0), changed(13.5)] == [
            False,
            True,
            True,
            False,
        ]
        assert changed(14.0)  # it was not looked at for long
        renew_offer(offer_of(one, 0.02), one, 0.02, 14.0)
        assert changed(15.0)

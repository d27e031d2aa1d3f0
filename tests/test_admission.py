"""Late binding: how much a device is offered."""

from __future__ import annotations

import pytest
from cluster_fixtures import heartbeat
from hypothesis import given
from hypothesis import strategies as st

from broker.admission import offer_of
from broker.cluster import Device, InFlight


class TestLateBinding:
    @given(seats=st.integers(1, 300), in_flight=st.integers(0, 700), jobs_per_s=st.floats(0, 1e5))
    def test_a_device_is_offered_its_seats_and_what_hides_the_round_trip(
        self, seats: int, in_flight: int, jobs_per_s: float
    ) -> None:
        one = Device("a", heartbeat(seats=seats, kv_tokens_total=10**9), jobs_per_s=jobs_per_s)
        for i in range(in_flight):
            one.bind(InFlight(f"b.{i}", 1, 1))
        offer = offer_of(one, round_trip_s=0.02)
        assert offer.slots_left == seats + one.depth(0.02) - in_flight
        assert 1 <= one.depth(0.02) <= seats

    def test_a_slow_device_holds_one_job_more_than_it_has_seats(self) -> None:
        assert offer_of(Device("a", heartbeat(seats=8), jobs_per_s=0.5), 0.02).slots_left == 9

    def test_the_faster_jobs_end_the_deeper_its_queue(self) -> None:
        depths = [Device("a", heartbeat(seats=256), jobs_per_s=rate).depth(0.02) for rate in (0, 100, 1000, 10**6)]
        assert depths == [1, 5, 41, 256]

    def test_memory_bounds_it_by_the_peak_to_come(self) -> None:
        one = Device("a", heartbeat(seats=4, kv_tokens_total=1000))
        one.bind(InFlight("b.0", 300, 400))
        assert offer_of(one, 0.02).kv_left() == pytest.approx(980 - 700, abs=32)

    def test_memory_that_the_engine_holds_beyond_what_we_count_is_not_given_away(self) -> None:
        one = Device("a", heartbeat(seats=4, kv_tokens_total=1000))
        one.refresh(heartbeat(seats=4, kv_tokens_total=1000, kv_tokens_free=400))
        assert offer_of(one, 0.02).kv_left() == pytest.approx(980 - 600, abs=32)

    @pytest.mark.parametrize("full", [{"running": 8, "kv_tokens_free": 900}, {"running": 2, "kv_tokens_free": 299}])
    def test_an_engine_that_holds_requests_back_gets_no_more(self, full: dict[str, int]) -> None:
        def slots(waiting: int) -> int:
            one = Device("a", heartbeat(seats=8, waiting=waiting, kv_tokens_total=1000, **full))
            one.bind(InFlight("b.0", 100, 50))
            return offer_of(one, 0.02).slots_left

        assert (slots(2), slots(3)) == (8, 0)

    def test_an_engine_that_is_at_the_prompts_of_those_that_wait_gets_more(self) -> None:
        one = Device("a", heartbeat(seats=8, running=2, waiting=6, kv_tokens_total=1000, kv_tokens_free=900))
        one.bind(InFlight("b.0", 100, 50))
        assert offer_of(one, 0.02).slots_left == 8

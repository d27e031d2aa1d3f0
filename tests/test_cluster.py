"""Heartbeats, events and the device view: anything may be written to Redis, and nothing of it may raise."""

from __future__ import annotations

from typing import Any

import pytest
from cluster_fixtures import HEARTBEAT, heartbeat
from hypothesis import given
from hypothesis import strategies as st

from broker.cluster import Cluster, Device, InFlight
from broker.events import BatchCancelled, Completed, Dropped, EndedTokens, Returned, WorkerChanged, parse_event
from broker.heartbeat import look_interval_s, parse_heartbeat
from broker.profiles import profile_text
from broker.throughput import Profile
from workers.engines.base import Capacity, Load
from workers.heartbeat import Identity, heartbeat_fields
from workers.rates import RateWindow


def as_stored(fields: dict[str, Any]) -> dict[bytes, bytes]:
    return {name.encode(): str(value).encode() for name, value in fields.items()}


class TestHeartbeat:
    def test_what_a_worker_writes_is_what_the_scheduler_reads(self) -> None:
        fields = heartbeat_fields(
            Identity("vllm", "m", "host", 17),
            "draining",
            Capacity("NVIDIA H100", "m", 5000, 8, 4096, "vllm 1"),
            Load(
                running=3,
                waiting=2,
                kv_tokens_used=700,
                prompt_tokens_total=9,
                output_tokens_total=8,
                free_memory_bytes=6,
                age_s=0.25,
            ),
            (12.34, 5.0),
            21,
        )
        beat = parse_heartbeat("w", as_stored(fields | {"incarnation": "i", "seen": "17.5"}))
        assert beat is not None
        assert (beat.state, beat.device, beat.seats, beat.running, beat.waiting) == ("draining", "NVIDIA H100", 8, 3, 2)
        assert (beat.kv_tokens_total, beat.kv_tokens_free, beat.free_memory_bytes) == (5000, 4300, 6)
        assert (beat.prompt_tokens_per_s, beat.output_tokens_per_s, beat.jobs_total, beat.seen) == (12.3, 5.0, 21, 17.5)
        assert beat.measured == 17.25

    @pytest.mark.parametrize(
        ("workers", "beat_s", "expected"),
        [(1, 0.5, 0.25), (64, 0.5, 0.25), (128, 0.5, 0.5), (1000, 0.5, 1), (9, 0.1, 0.05)],
    )
    def test_a_small_pool_is_looked_at_twice_as_often_as_its_heartbeats_come(
        self, workers: int, beat_s: float, expected: float
    ) -> None:
        assert look_interval_s(workers, beat_s) == pytest.approx(expected)

    def test_an_engine_that_holds_more_than_it_said_has_nothing_free(self) -> None:
        capacity = Capacity("d", "m", 100, 1, 100, "1")
        fields = heartbeat_fields(Identity("e", "m", "h", 1), "ready", capacity, Load(0, 0, 150, 0, 0, 0), (0, 0), 0)
        assert fields["kv_tokens_free"] == "0"

    @pytest.mark.parametrize("missing", sorted(HEARTBEAT))
    def test_one_with_a_field_missing_is_none(self, missing: str) -> None:
        assert parse_heartbeat("w", as_stored({k: v for k, v in HEARTBEAT.items() if k != missing})) is None

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("state", "asleep"),
            ("seats", "many"),
            ("seats", "-1"),
            ("seats", "1.5"),
            ("seats", "9" * 5000),
            ("output_tokens_per_s", "nan"),
            ("output_tokens_per_s", "inf"),
            ("seen", "-inf"),
            ("incarnation", ""),
            ("device", "d" * 257),
        ],
    )
    def test_one_with_a_wrong_value_is_none(self, field: str, value: str) -> None:
        assert parse_heartbeat("w", as_stored(HEARTBEAT | {field: value})) is None

    @pytest.mark.parametrize("name", ["n" * 129, "line\nbreak", "\udcff"])
    def test_one_under_a_name_that_cannot_be_shown_is_none(self, name: str) -> None:
        assert parse_heartbeat("w", as_stored(HEARTBEAT)) is not None
        assert parse_heartbeat(name, as_stored(HEARTBEAT)) is None

    @pytest.mark.parametrize("field", [b"\xff\xfe", b"", b"other"])
    def test_a_field_that_it_does_not_have_changes_nothing(self, field: bytes) -> None:
        """No heartbeat to come would remove it."""
        sound = as_stored(HEARTBEAT)
        assert parse_heartbeat("w", sound | {field: b"\xff"}) == parse_heartbeat("w", sound) is not None

    @given(name=st.text(), raw=st.dictionaries(st.binary(), st.binary(), max_size=5))
    def test_no_bytes_raise(self, name: str, raw: dict[bytes, bytes]) -> None:
        assert parse_heartbeat(name, raw) is None

    @given(field=st.sampled_from(sorted([*HEARTBEAT, "seen", "pid", "host"])), value=st.binary(max_size=30))
    def test_no_value_raises(self, field: str, value: bytes) -> None:
        beat = parse_heartbeat("w", as_stored(HEARTBEAT) | {field.encode(): value})
        assert beat is None or beat.seats >= 0


event_fields = st.fixed_dictionaries(
    {"kind": st.sampled_from(["completed", "returned", "dropped", "worker", "cancelled", "other"])},
    optional={name: st.text(max_size=30) for name in ("worker", "jobs", "batch", "other")},
)
numbers = st.integers(-(10**30), 10**30) | st.text("0123456789-_.e:", max_size=10)


class TestEvents:
    def test_each_kind(self) -> None:
        jobs = "b.1:10:20:4 b:2.x:0:0:0"
        completed = parse_event({"kind": "completed", "worker": "w", "jobs": jobs})
        assert completed == Completed("w", {"b.1": EndedTokens(10, 20, 4), "b:2.x": EndedTokens(0, 0, 0)})
        assert parse_event({"kind": "returned", "worker": "w", "jobs": "b.1 b.2"}) == Returned("w", ["b.1", "b.2"])
        assert parse_event({"kind": "dropped", "worker": "w", "jobs": "b.1 b.2"}) == Dropped("w", ["b.1", "b.2"])
        assert parse_event({"kind": "worker", "worker": "w"}) == WorkerChanged("w")
        assert parse_event({"kind": "cancelled", "batch": "b"}) == BatchCancelled("b")

    @pytest.mark.parametrize(
        "jobs",
        ["b.1", "b.1:1:1", "b.1:x:1:1", "b.1:-1:1:1", "b.1:1:-1:1", "b.1:1:1:-1", f"b.1:1:{10**10}:0", "b.1:1e3:1:1"],
    )
    def test_jobs_without_sound_numbers_are_no_event(self, jobs: str) -> None:
        assert parse_event({"kind": "completed", "worker": "w", "jobs": jobs}) is None

    @given(st.dictionaries(st.text(), st.text(), max_size=4) | event_fields)
    def test_no_text_raises(self, fields: dict[str, str]) -> None:
        parse_event(fields)

    @given(jobs=st.lists(st.tuples(st.text(max_size=5), numbers, numbers, numbers), max_size=4))
    def test_what_passes_is_a_number_of_tokens(self, jobs: list[tuple[str, Any, Any, Any]]) -> None:
        text = " ".join(f"{job}:{prompt}:{output}:{cached}" for job, prompt, output, cached in jobs)
        event = parse_event({"kind": "completed", "worker": "w", "jobs": text})
        if isinstance(event, Completed):
            assert all(0 <= tokens <= 10**9 for lengths in event.jobs.values() for tokens in lengths)


class TestDevice:
    def test_binding_and_unbinding_twice_count_once(self) -> None:
        device = Device("a", heartbeat())
        for _ in range(2):
            device.bind(InFlight("b.1", 10, 20))
        assert device.tokens_in_flight == 20  # half of the output on average
        assert device.unbind("b.1") == InFlight("b.1", 10, 20)
        assert device.unbind("b.1") is None
        assert device.tokens_in_flight == 0

    def test_a_job_that_ended_since_the_heartbeat_holds_nothing(self) -> None:
        device = Device("a", heartbeat(kv_tokens_total=1000, kv_tokens_free=1000, seen=1.0))
        device.refresh(device.heartbeat, 11.0)
        for name in ("b.1", "b.2"):
            device.bind(InFlight(name, 100, 20, step=1.0))
        device.unbind("b.1", 100.0, 400, 12.5)
        beat = heartbeat(kv_tokens_total=1000, kv_tokens_free=300, seen=2.0)
        device.refresh(beat, 12.0)  # it was written before the job ended, and counts its 400 tokens
        assert device.calendar.now + device.calendar.excess == pytest.approx(300.0)
        device.refresh(beat.model_copy(update={"seen": 3.0}), 13.0)
        assert device.calendar.now + device.calendar.excess == pytest.approx(700.0)

    def test_a_heartbeat_that_is_read_twice_says_nothing_new(self) -> None:
        device = Device("a", heartbeat(kv_tokens_total=1000, kv_tokens_free=300, seen=1.0))
        device.refresh(device.heartbeat, 11.0)
        device.kv_share.blocked = True
        device.refresh(device.heartbeat.model_copy(), 11.5)
        assert device.kv_share.blocked
        device.refresh(device.heartbeat.model_copy(update={"seen": 2.0}), 12.0)
        assert not device.kv_share.blocked

    def test_an_engine_is_as_its_heartbeat_says_when_it_was_looked_at(self) -> None:
        """A server elsewhere is asked now and then: what is told of it is older than the heartbeat that tells it."""
        device = Device("a", heartbeat(running=4))
        for second in range(1, 4):
            beat = heartbeat(running=4, steps_total=100 * second, load_age_s=0.4, seen=second + 0.4)
            device.refresh(beat, second)
            again = beat.model_copy(update={"load_age_s": 0.89, "seen": second + 0.9})  # a little late on its way
            device.kv_share.blocked = True
            device.refresh(again, second + 0.01)
            assert device.kv_share.blocked
        device.pass_time(3.5)
        assert device.calendar.step == pytest.approx(350, abs=2)

    def test_what_is_read_back_from_a_queue_starts_now_and_its_numbers_are_checked(self) -> None:
        """A scheduler that takes over finds jobs of which it knows no more than what anyone can write to a stream."""
        device = Device("a", heartbeat(steps_total=5000, seen=1.0))
        device.refresh(device.heartbeat, 1.0)
        device.bind(InFlight("b.1", 1000, 500))
        assert device.calendar.now == pytest.approx(1000, abs=32)
        assert device.backlog.left(device.calendar.step).steps == pytest.approx(499)
        for i, lengths in enumerate([(10**400, 1), (1, 10**400), (-5, -7)]):
            device.bind(InFlight(f"c.{i}", *lengths))
        assert device.calendar.free(0.0).max() <= 0
        for job_id in list(device.in_flight):
            device.unbind(job_id)
        assert device.calendar.free(0.0).tolist() == pytest.approx([0.0] * 192, abs=1e-3)
        assert device.tokens_in_flight == 0

    def test_the_steps_of_its_engine_go_on_between_two_heartbeats_for_a_while(self) -> None:
        device = Device("a", heartbeat(running=4))
        for second in range(1, 4):
            device.refresh(heartbeat(running=4, steps_total=100 * second, seen=float(second)), float(second))
        steps: list[float] = []
        for now in (3.5, 4.0, 60.0):
            device.pass_time(now)
            steps.append(device.calendar.step)
        assert steps == [350.0, 400.0, 500.0]

    def test_an_engine_that_counts_no_steps_is_followed_by_its_tokens(self) -> None:
        device = Device("a", heartbeat(running=4))
        for second in range(1, 4):
            device.refresh(heartbeat(running=4, output_tokens_total=400 * second, seen=float(second)), float(second))
        assert device.calendar.step == 300.0

    def test_its_pace_is_what_was_seen_where_it_was_busy_all_the_time_else_what_the_profile_says(self) -> None:
        told = profile_text(Profile(0.01, 0, 0, 0.02, 0, 0, kv_tokens=1, seats=1))
        fields: dict[str, Any] = {"profile": told, "running": 4}
        device = Device("a", heartbeat(**fields, seen=1.0, steps_total=50))
        device.refresh(device.heartbeat, 1.0)
        device.bind(InFlight("b.1", 10, 20, dispatched=1.5, step=50.0))
        device.refresh(heartbeat(**fields, seen=2.0, steps_total=55), 2.0)
        assert device.seconds_a_step == pytest.approx(0.02)
        device.refresh(heartbeat(**fields, seen=3.0, steps_total=80), 3.0)
        assert device.seconds_a_step == pytest.approx(0.04)

    @pytest.mark.parametrize(
        ("fields", "kv_tokens"), [({}, 100_000), ({"seats": 0}, None), ({"kv_tokens_total": 0}, None)]
    )
    def test_a_device_without_a_profile_is_taken_for_a_typical_one(
        self, fields: dict[str, Any], kv_tokens: int | None
    ) -> None:
        device = Device("a", heartbeat(**fields))
        device.refresh(device.heartbeat)
        assert (device.kind.profile.kv_tokens if device.kind else None) == kv_tokens

    @pytest.mark.parametrize("field", ["kv_tokens_total", "seats", "max_batched_tokens"])
    def test_a_device_that_is_built_anew_is_another_kind(self, field: str) -> None:
        cluster = Cluster()
        cluster.refresh("a", heartbeat())
        before = cluster.devices["a"].kind
        cluster.refresh("a", heartbeat(seen=1.0, **{field: 17_000}))
        assert cluster.devices["a"].kind != before

    def test_a_busy_device_that_slows_down_loses_its_speed_step_by_step(self) -> None:
        device = Device("a", heartbeat(running=4, output_tokens_per_s=900.0, seen=1.0))
        device.refresh(device.heartbeat)
        assert device.speed == 900.0
        speeds = []
        for second in range(2, 12):
            device.refresh(heartbeat(running=4, output_tokens_per_s=300.0, seen=float(second)))
            speeds.append(device.speed)
        assert speeds == sorted(speeds, reverse=True)
        assert speeds[0] > 500
        assert speeds[-1] == pytest.approx(300, rel=0.01)

    def test_an_idle_device_keeps_the_speed_that_it_showed(self) -> None:
        device = Device("a", heartbeat(running=4, output_tokens_per_s=900.0))
        device.refresh(device.heartbeat)
        device.refresh(heartbeat(running=1, output_tokens_per_s=10.0, seen=5.0))
        assert device.speed == 900.0

    def test_a_device_is_busy_also_by_its_memory(self) -> None:
        device = Device("a", heartbeat(running=4, output_tokens_per_s=900.0))
        device.refresh(device.heartbeat)
        device.refresh(heartbeat(running=1, kv_tokens_free=10_000, output_tokens_per_s=10.0, seen=60.0))
        assert device.speed == 10.0

    def test_the_rate_of_ended_jobs_is_an_average_over_seconds(self) -> None:
        device = Device("a", heartbeat())
        for tick in range(1, 200):
            device.count_completed(1, tick * 0.1)
        assert device.jobs_per_s == pytest.approx(10, rel=0.05)


class TestCluster:
    def test_a_new_device_and_a_new_incarnation_are_told_apart_from_a_newer_heartbeat(self) -> None:
        cluster = Cluster()
        assert cluster.refresh("a", heartbeat())
        cluster.devices["a"].bind(InFlight("b.1", 1, 1))
        assert not cluster.refresh("a", heartbeat(seen=1.0))
        assert cluster.devices["a"].tokens_in_flight == 1
        assert cluster.refresh("a", heartbeat(incarnation="other"))
        assert cluster.devices["a"].tokens_in_flight == 0

    def test_devices_that_left_are_forgotten(self) -> None:
        cluster = Cluster()
        for name in "abc":
            cluster.refresh(name, heartbeat())
        cluster.changed.clear()
        cluster.keep_only(["b"])
        assert list(cluster.devices) == ["b"]
        assert cluster.changed == {"a", "c"}

    def test_it_names_the_devices_that_are_not_as_they_were(self) -> None:
        cluster = Cluster()
        for name in "abc":
            cluster.refresh(name, heartbeat())
        assert cluster.changed == {"a", "b", "c"}
        cluster.changed.clear()
        cluster.devices["b"].bind(InFlight("b.1", 1, 1))
        assert cluster.changed == {"b"}
        cluster.changed.clear()
        cluster.devices["b"].unbind("b.2")
        assert cluster.changed == set()
        cluster.devices["b"].unbind("b.1")
        cluster.refresh("c", heartbeat(seen=1.0))
        assert cluster.changed == {"b", "c"}


class TestRates:
    def test_growth_a_second_over_the_window(self) -> None:
        window = RateWindow(length_s=4)
        rates = [window.add(second, second * 10, second * 100) for second in range(10)]
        assert rates[0] == (0.0, 0.0)
        assert rates[1:] == [(10.0, 100.0)] * 9

    def test_what_is_older_than_the_window_does_not_count(self) -> None:
        window = RateWindow(length_s=4)
        window.add(0.0, 0, 1000)
        assert [window.add(float(second), 0, 1000)[1] for second in range(1, 7)] == [0.0] * 6

    def test_an_engine_that_was_started_again_begins_anew(self) -> None:
        window = RateWindow()
        window.add(0.0, 500, 500)
        window.add(1.0, 600, 600)
        assert window.add(2.0, 0, 0) == (0.0, 0.0)
        assert window.add(3.0, 10, 20) == (10.0, 20.0)

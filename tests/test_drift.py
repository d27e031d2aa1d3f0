"""How much slower a device is than its profile says: seen within seconds, and nothing else is mistaken for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placing import PROFILE, beat

from broker.admission import offer_of
from broker.cluster import Cluster, Device, InFlight
from broker.heartbeat import Heartbeat
from broker.throughput import Profile

CONTEXT = 300  # tokens that each request holds
WIDE = replace(PROFILE, kv_tokens=1_000_000, seats=256)

profiles = st.builds(
    Profile,
    prefill_a=st.just(0.01),
    prefill_b=st.floats(1e-6, 1e-3),
    prefill_c=st.floats(0, 1e-8),
    decode_d=st.floats(0.002, 0.4),
    decode_e=st.floats(0, 1e-4),
    decode_f=st.floats(0, 1e-7),
    kv_tokens=st.just(1_000_000),
    seats=st.just(256),
)


@dataclass
class Engine:
    """Heartbeats of an engine that only decodes: ``running`` requests of the same size, all the time."""

    profile: Profile = WIDE
    running: int = 20
    counts_steps: bool = True
    now: float = 0.0
    steps: float = 0.0

    def beats(self, seconds: int, slowdown: Callable[[], float]) -> Iterator[Heartbeat]:
        """One a second; in each the device is that much slower than its profile."""
        step_s = self.profile.decode_step_seconds(self.running, self.running * CONTEXT)
        for _ in range(seconds):
            self.now += 1.0
            self.steps += 1.0 / (step_s * slowdown()) if self.running else 0.0
            yield self.beat()

    def beat(self, **fields: Any) -> Heartbeat:
        done = int(self.steps)
        state: dict[str, Any] = {
            "seen": self.now,
            "running": self.running,
            "kv_tokens_free": self.profile.kv_tokens - self.running * CONTEXT,
            "output_tokens_total": done * self.running,
            "steps_total": done if self.counts_steps else 0,
        }
        return beat(self.profile, **(state | fields))


def known(cluster: Cluster, beats: Iterator[Heartbeat]) -> list[float]:
    """The slowdown that the device is taken to have, heartbeat after heartbeat."""
    found: list[float] = []
    for one in beats:
        cluster.refresh("a", one, one.seen)
        found.append(slowdown(cluster.devices["a"]))
    return found


def slowdown(device: Device) -> float:
    assert device.kind is not None
    return device.kind.slowdown


@settings(deadline=None)
@given(
    profile=profiles,
    running=st.integers(3, 256),
    counts_steps=st.booleans(),
    before=st.integers(1, 30),
    factor=st.sampled_from([3.0, 5.0]),
)
def test_a_device_that_slows_down_is_known_to_within_ten_seconds_and_so_is_its_recovery(
    profile: Profile, running: int, counts_steps: bool, before: int, factor: float
) -> None:
    engine, cluster = Engine(profile, running, counts_steps), Cluster()
    assert set(known(cluster, engine.beats(before, lambda: 1.0))) == {1.0}
    slowed = known(cluster, engine.beats(10, lambda: factor))
    assert factor / 1.9 <= slowed[-1] <= factor * 1.9
    recovered = known(cluster, engine.beats(10, lambda: 1.0))
    assert 1 / 1.51 <= recovered[-1] <= 1.51


@given(seed=st.integers(0, 10_000), running=st.integers(3, 256), level=st.sampled_from([1.0, 3.0]))
def test_noise_of_a_fifth_changes_no_plan(seed: int, running: int, level: float) -> None:
    rng = random.Random(seed)
    engine, cluster = Engine(running=running), Cluster()
    known(cluster, engine.beats(12, lambda: level))
    settled = slowdown(cluster.devices["a"])
    assert set(known(cluster, engine.beats(60, lambda: level * rng.uniform(0.8, 1.2)))) == {settled}


def test_noise_shows_in_what_was_seen_lately() -> None:
    engine, cluster = Engine(), Cluster()
    known(cluster, engine.beats(10, lambda: 1.2))
    drift = cluster.devices["a"].drift
    assert (drift.factor, drift.calm) == (pytest.approx(1.2, rel=0.05), 1.0)


@pytest.mark.parametrize("running", [0, 1])
def test_a_device_with_nothing_to_do_is_not_slow(running: int) -> None:
    engine, cluster = Engine(), Cluster()
    known(cluster, engine.beats(5, lambda: 1.0))
    engine.running = running
    assert set(known(cluster, engine.beats(30, lambda: 1000.0))) == {1.0}


def test_a_device_whose_batch_comes_and_goes_is_not_slow() -> None:
    engine, cluster = Engine(), Cluster()
    beats = []
    for _ in range(20):
        for running, busy in ((20, 1.0), (0, 100.0)):
            engine.running = running
            beats += engine.beats(1, lambda busy=busy: busy)
    assert set(known(cluster, iter(beats))) == {1.0}


def test_one_bad_second_is_no_drift() -> None:
    """A pause of a second (a stalled host, a late heartbeat) is averaged with what is around it."""
    engine, cluster = Engine(), Cluster()
    known(cluster, engine.beats(10, lambda: 1.0))
    assert set(known(cluster, engine.beats(1, lambda: 2.0))) == {1.0}
    assert set(known(cluster, engine.beats(10, lambda: 1.0))) == {1.0}


def test_the_same_heartbeat_again_teaches_nothing() -> None:
    engine, cluster = Engine(), Cluster()
    known(cluster, engine.beats(5, lambda: 3.0))
    before = replace(cluster.devices["a"].drift)
    known(cluster, iter([engine.beat()] * 50))
    assert cluster.devices["a"].drift == before


def test_prompts_count_as_work() -> None:
    """A device that prefills makes fewer steps: that is not slow."""
    engine, cluster = Engine(), Cluster()
    tokens = 0
    for one in engine.beats(20, lambda: 2.0):  # half of its time goes into steps
        tokens += round(0.5 / WIDE.prefill_b / 1.006)  # and half into prompts (with their attention)
        one = one.model_copy(update={"prompt_tokens_total": tokens})
        cluster.refresh("a", one, one.seen)
    assert cluster.devices["a"].drift.factor == pytest.approx(1.0, rel=0.05)


def test_another_profile_is_another_device() -> None:
    engine, cluster = Engine(), Cluster()
    known(cluster, engine.beats(10, lambda: 3.0))
    assert slowdown(cluster.devices["a"]) > 2
    engine.profile = replace(WIDE, decode_d=0.03)
    cluster.refresh("a", engine.beat(seen=engine.now + 1), 0.0)
    assert slowdown(cluster.devices["a"]) == 1.0


@given(
    beats=st.lists(
        st.fixed_dictionaries(
            {
                "seen": st.floats(0, 1e9),
                "running": st.integers(0, 10**7),
                "steps_total": st.integers(0, 10**12),
                "prompt_tokens_total": st.integers(0, 10**15),
                "output_tokens_total": st.integers(0, 10**15),
                "kv_tokens_free": st.integers(0, 10**12),
                "kv_tokens_total": st.integers(0, 10**12),
                "seats": st.integers(0, 10**6),
            }
        ),
        max_size=8,
    )
)
def test_whatever_heartbeats_say_all_figures_stay_numbers(beats: list[dict[str, Any]]) -> None:
    cluster = Cluster()
    for now, fields in enumerate(beats, 1):
        cluster.refresh("a", beat(PROFILE, **fields), float(now))
        device = cluster.devices["a"]
        device.pass_time(now + 0.5)
        device.bind(InFlight(f"b.{now}", 10, 20, step=device.calendar.step))
        assert isfinite(offer_of(device, 0.02).kv_left())
        assert isfinite(device.calendar.steps_left + sum(device.backlog.left(device.calendar.step)))
        assert 0 <= device.seconds_a_step < 1e12
        assert 1e-5 <= device.drift.calm <= 1e5
        assert device.kind is None or 1e-5 <= device.kind.slowdown <= 1e5


def test_a_long_prompt_in_progress_is_no_slowness() -> None:
    """Its tokens are counted when all of them are computed: until then the device seems to do little."""
    profile = replace(WIDE, prefill_b=1e-3)
    cluster, engine = Cluster(), Engine(profile)
    for heard in engine.beats(20, lambda: 1.0):
        cluster.refresh("a", heard, heard.seen)
    one = cluster.devices["a"]
    one.bind(InFlight("long", 4000, 10, step=one.calendar.step + 5))
    for prompt_tokens in (0, 0, 0, 4000):  # four seconds of prefill, in steps of which each serves the others, too
        engine.now += 1.0
        engine.steps += 0.5
        heard = engine.beat(prompt_tokens_total=prompt_tokens)
        cluster.refresh("a", heard, heard.seen)
        assert one.kind is not None
        assert one.kind.slowdown == 1.0

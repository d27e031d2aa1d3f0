"""Profiles put right by what heartbeats show."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placing import PROFILE
from test_drift import Engine, profiles

from broker.profiles import ProfileRecord, ProfileValues
from broker.throughput import Profile
from planner.live_profiles import LiveSpeeds, refit

RECORD = ProfileRecord(
    device="d", model="m", engine="vllm", version="1", measured=date(2026, 1, 1), profile=ProfileValues.of(PROFILE)
)


def seen(profile: Profile, slowdown: float) -> dict[tuple[str, str], float]:
    speeds = LiveSpeeds()
    for beat in Engine(profile).beats(60, lambda: slowdown):
        speeds.observe({"a": beat.model_copy(update={"device": "d", "model": "m"}), "gone": None})
    return speeds.slowdowns()


@settings(max_examples=30)
@given(profiles, st.floats(0.3, 3.5))
def test_a_device_that_is_slower_than_its_profile_has_its_profile_put_right(profile: Profile, slowdown: float) -> None:
    record = RECORD.model_copy(update={"values": ProfileValues.of(profile)})
    [refitted] = refit([record], seen(profile, slowdown))
    p, q = profile, refitted.profile
    at = (20, 6000)
    expected = p.decode_step_seconds(*at) * slowdown
    assert q.decode_step_seconds(*at) == pytest.approx(expected, rel=0.15)
    assert (q.kv_tokens, q.seats) == (p.kv_tokens, p.seats)


def test_what_is_told_twice_of_an_engine_counts_once() -> None:
    speeds = LiveSpeeds()
    for beat in Engine().beats(60, lambda: 2.0):
        late = {"seen": beat.seen + 0.5, "load_age_s": 0.495}  # the same look at the engine, a little late on its way
        for told in (beat, beat.model_copy(update=late)):
            speeds.observe({"a": told})
    assert list(speeds.slowdowns().values()) == [pytest.approx(2.0, rel=0.1)]


def test_others_stay_as_they_were_measured() -> None:
    other = RECORD.model_copy(update={"device": "e"})
    assert refit([other], {("d", "m"): 2.0}) == [other]
    assert refit([RECORD], {("d", "m"): 1.05}) == [RECORD]


def test_no_more_than_can_be() -> None:
    [refitted] = refit([RECORD], {("d", "m"): 1e5})
    assert refitted.profile.decode_d == pytest.approx(4 * RECORD.profile.decode_d)


def test_an_idle_pool_says_nothing() -> None:
    speeds = LiveSpeeds()
    for beat in Engine(running=0).beats(20, lambda: 1.0):
        speeds.observe({"a": beat})
    assert speeds.slowdowns() == {}

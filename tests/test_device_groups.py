"""Devices of a kind in groups: some for the longest jobs, where not all have the steps for them anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from placing import PROFILE, ROUND_TRIP_S, busy, device, slower

from broker.admission import offer_of
from broker.length_class import LengthClass
from broker.policies.base import Offer
from broker.policies.device_groups import device_groups
from broker.policies.in_time import plan_in_time
from broker.throughput import Profile

ROOMY = replace(PROFILE, kv_tokens=100_000, seats=100)
SHORT = LengthClass.of(100, 50, 4000)


def offer(name: str, profile: Profile = ROOMY, jobs: Sequence[tuple[int, int]] = ()) -> Offer:
    return offer_of(busy(device(name, profile), jobs), ROUND_TRIP_S)


def test_nobody_is_told_apart_where_all_have_the_steps_for_all_jobs() -> None:
    [group] = device_groups([SHORT], [offer(name) for name in "abcd"])
    assert (group.kind.count, sorted(group.devices)) == (4, list("abcd"))


def test_one_of_four_is_for_jobs_that_outlast_the_rest() -> None:
    long, others = device_groups([SHORT, LengthClass.of(100, 2000, 1)], [offer(name) for name in "abcd"])
    assert (long.kind.count, others.kind.count) == (1, 3)


def test_it_is_the_one_that_has_long_jobs_already() -> None:
    offers = [offer(name, jobs=[(100, 3000)] if name == "c" else []) for name in "abcd"]
    long, others = device_groups([SHORT], offers)
    assert long.devices == ["c"]
    assert long.kind.backlog_steps > 2000
    assert others.kind.backlog_steps == 0


@given(st.lists(st.integers(0, 2), max_size=12), st.integers(2, 5000))
def test_every_device_is_in_one_group_of_its_kind(kinds: list[int], steps: int) -> None:
    profiles = [slower(ROOMY, 1.0 + kind) for kind in range(3)]
    offers = [offer(f"d{i}", profiles[kind]) for i, kind in enumerate(kinds)]
    groups = device_groups([SHORT, LengthClass.of(10, steps, 2)], offers)
    assert sorted(name for group in groups for name in group.devices) == sorted(one.device for one in offers)
    for group in groups:
        assert group.kind.count == len(group.devices)
        assert len({kinds[int(name[1:])] for name in group.devices}) == 1


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 2000), st.integers(1, 200)), min_size=1, max_size=6),
    st.lists(st.integers(0, 2), min_size=1, max_size=6),
)
def test_a_plan_counts_the_steps_of_the_longest_job_that_each_device_takes(
    jobs: list[tuple[int, int, int]], kinds: list[int]
) -> None:
    profiles = [slower(ROOMY, 1.0 + 3 * kind) for kind in range(3)]
    classes = [LengthClass.of(*sizes) for sizes in jobs]
    groups = device_groups(classes, [offer(f"d{i}", profiles[kind]) for i, kind in enumerate(kinds)])
    fleet = [group.kind for group in groups]
    plan, late = plan_in_time(classes, fleet)
    steps = np.array([c.work.steps for c in classes])
    assert np.allclose(plan.jobs.sum(axis=1), [c.jobs for c in classes])
    assert not plan.jobs[late].any()
    for k, kind in enumerate(fleet):
        longest = steps[plan.jobs[:, k] > 1e-6].max(initial=0.0)
        assert plan.steps[k] >= longest * kind.count * 0.99
        assert kind.profile.decode_d * longest <= plan.seconds * 1.01

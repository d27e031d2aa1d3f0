"""What an engine reaches of the linear program's bound: by the model of continuous batching."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.batching import ContinuousBatch, EventKind
from broker.length_class import LengthClass
from broker.throughput import DeviceKind, Profile
from planner.cluster_plan import throughput
from planner.reach import as_reached

TIMES = Profile(0.02, 3e-4, 2e-8, 0.02, 3e-4, 2.5e-6, kv_tokens=20_000, seats=32)
MIX = [LengthClass.of(100, 40, 3), LengthClass.of(60, 80)]


def kind(**changes: float) -> DeviceKind:
    return DeviceKind(replace(TIMES, **changes), max_batched_tokens=4096)


def share(of: DeviceKind, mix: list[LengthClass], block_tokens: int = 16) -> float:
    return of.slowdown / as_reached([of], mix, block_tokens)[0].slowdown


def simulated(of: DeviceKind, prompt: int, output: int, together: int, jobs: int = 600) -> float:
    """Jobs a second of an engine that is given so many alike requests at once."""
    batch = ContinuousBatch(of.profile, max_batched_tokens=of.max_batched_tokens)
    for number in range(together):
        batch.add(number, prompt, 1 + number * output // together, 0.0)
    ends: list[float] = []
    begun = together
    while len(ends) < jobs:
        at = batch.next_event_at()
        assert at is not None
        for event in batch.advance(at):
            if event.kind is EventKind.FINISHED:
                ends.append(at)
                batch.add(begun, prompt, output, at)
                begun += 1
    half = jobs // 2
    return (len(ends) - half) / (ends[-1] - ends[half - 1])


def test_with_seats_and_memory_to_spare_it_is_all() -> None:
    assert share(kind(), MIX) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("kv_tokens", [640, 1280, 2560])
def test_where_memory_is_scarce_it_is_what_the_engine_then_does(kv_tokens: int) -> None:
    of, mix = kind(kv_tokens=kv_tokens), [LengthClass.of(100, 40)]
    together = max(1, int(kv_tokens / (100 + 38 / 2)))
    reached = throughput(mix, as_reached([of], mix)).jobs_per_s
    assert reached == pytest.approx(simulated(of, 100, 40, together + 1), rel=0.08)
    assert reached < 0.97 * throughput(mix, [of]).jobs_per_s


def test_steps_that_read_and_take_longer_are_in_it() -> None:
    """The program knows nothing of a fixed time of prompts above that of other steps."""
    of, mix = kind(prefill_a=0.04), [LengthClass.of(100, 40)]
    assert throughput(mix, [of]).jobs_per_s == pytest.approx(throughput(mix, [kind()]).jobs_per_s)
    reached = throughput(mix, as_reached([of], mix)).jobs_per_s
    assert reached == pytest.approx(simulated(of, 100, 40, 34), rel=0.02)
    assert share(of, mix) < 0.8


def test_large_blocks_hold_less() -> None:
    scarce = kind(kv_tokens=1600)
    assert share(scarce, MIX, 64) < share(scarce, MIX, 16) - 0.02


def test_what_is_known_of_an_engine_stays() -> None:
    before = DeviceKind(replace(TIMES, kv_tokens=900), 3, 2.0, 2048, 700)
    (after,) = as_reached([before], MIX)
    assert replace(after, slowdown=2.0) == before
    assert after.slowdown == pytest.approx(2.0 / share(replace(before, count=1, slowdown=1.0), MIX))


@given(
    st.lists(st.tuples(st.integers(1, 600), st.integers(1, 200), st.floats(0.1, 10)), max_size=4),
    st.integers(1, 40),
    st.integers(1, 3000),
    st.sampled_from([16, 32]),
)
@settings(max_examples=60, deadline=None)
def test_it_is_a_share_whatever_comes(
    lengths: list[tuple[int, int, float]], seats: int, kv_tokens: int, block_tokens: int
) -> None:
    mix = [LengthClass.of(prompt, output, jobs) for prompt, output, jobs in lengths]
    assert 0 < share(kind(seats=seats, kv_tokens=kv_tokens), mix, block_tokens) <= 1

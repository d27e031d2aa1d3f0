"""The step-time model fitted to measured times, and measured times made of an engine's steps."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import astuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.batching import ContinuousBatch
from broker.engine_steps import EngineStep
from broker.throughput import Profile
from planner.fit import Point, Terms, fit_profile, relative_error
from planner.measured_steps import EngineLimits, Lengths, Load, Observation, points_of, terms_of

KV, SEATS = 100_000, 64
LIMITS = EngineLimits(KV, SEATS, 8192, 2048)


def _coefficient(least: float, most: float) -> st.SearchStrategy[float]:
    return st.floats(least, most)


profiles = st.builds(
    Profile,
    _coefficient(1e-3, 0.1),
    _coefficient(1e-5, 1e-3),
    _coefficient(1e-9, 1e-8),
    _coefficient(1e-3, 0.1),
    _coefficient(1e-5, 1e-3),
    _coefficient(1e-8, 4e-7),
    kv_tokens=st.just(KV),
    seats=st.just(SEATS),
)


def grid() -> Iterator[tuple[Terms, str]]:
    """What a thorough measurement covers."""
    for prompt in (32, 128, 512, 2048, 8192):
        yield Terms(prefills=1, prompt=prompt, squares=prompt**2), "prefill"
    for running in (1, 4, 16, 64):
        for held in (40, 400, 1500):
            yield Terms(decodes=1, running=running, context=running * held), "decode"
            yield Terms(mixed=1, prompt=256, squares=256**2, running=running, context=running * held), "mixed"


def points(profile: Profile, noise: float = 0.0, seed: int = 0) -> list[Point]:
    rng = random.Random(seed)
    return [Point(kind, terms, terms.seconds(profile) * rng.gauss(1, noise)) for terms, kind in grid()]  # type: ignore[arg-type]


@settings(deadline=None)
@given(profiles)
def test_exact_times_give_the_coefficients_back(profile: Profile) -> None:
    fit = fit_profile(points(profile), kv_tokens=KV, seats=SEATS)
    assert astuple(fit.profile) == pytest.approx(astuple(profile), rel=1e-4)
    assert fit.errors.points == len(list(grid()))
    for error in (fit.errors.prefill, fit.errors.decode, fit.errors.mixed):
        assert error is not None
        assert error.worst < 1e-4


@settings(deadline=None)
@given(profiles, st.integers(0, 2**32))
def test_noisy_times_give_a_profile_that_predicts_the_true_ones(profile: Profile, seed: int) -> None:
    noisy = [point for repeat in range(3) for point in points(profile, 0.03, seed + repeat)]
    fitted = fit_profile(noisy, kv_tokens=KV, seats=SEATS).profile
    assert max(abs(relative_error(point, fitted)) for point in points(profile)) < 0.15


@settings(deadline=None)
@given(profiles, st.lists(st.tuples(st.integers(1, 64), st.floats(0.5, 2)), min_size=1, max_size=6))
def test_a_token_costs_at_most_so_much_more_for_its_context(profile: Profile, found: list[tuple[int, float]]) -> None:
    """However few short prompts were measured, and however badly."""
    terms = [(Terms(prefills=1, prompt=n, squares=n * n), factor) for n, factor in found]
    points = [Point("prefill", t, t.seconds(profile) * factor) for t, factor in terms]
    fit = fit_profile(points, kv_tokens=KV, seats=SEATS).profile
    assert fit.prefill_c <= fit.prefill_b * 1e-3 * (1 + 1e-9)


@given(profiles, st.lists(st.tuples(st.integers(1, 8), st.integers(1, 60), st.floats(0.5, 2)), min_size=1, max_size=6))
def test_context_costs_at_most_so_much_of_a_step(profile: Profile, found: list[tuple[int, int, float]]) -> None:
    """However few short steps were measured, and however badly."""
    terms = [(Terms(decodes=1, running=n, context=n * held), factor) for n, held, factor in found]
    points = [Point("decode", t, t.seconds(profile) * factor) for t, factor in terms]
    fit = fit_profile(points, kv_tokens=KV, seats=SEATS).profile
    assert fit.decode_f <= fit.decode_d * 4e-4 * (1 + 1e-9)


@settings(deadline=None)
@given(profiles, st.integers(0, 2**32), st.floats(2, 20))
def test_a_few_disturbed_times_change_little(profile: Profile, seed: int, factor: float) -> None:
    clean = points(profile, 0.01, seed)
    rng = random.Random(seed)
    places = [rng.choice([i for i, p in enumerate(clean) if p.kind == kind]) for kind in ("decode", "mixed")]
    disturbed = [p._replace(seconds=p.seconds * factor) if i in places else p for i, p in enumerate(clean)]
    fit = fit_profile(disturbed, kv_tokens=KV, seats=SEATS)
    assert max(abs(relative_error(point, fit.profile)) for point in points(profile)) < 0.2
    assert fit.errors.left_out >= 2


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 60_000), st.floats(1e-6, 10)), min_size=1, max_size=12))
def test_whatever_was_measured_no_coefficient_is_negative(found: list[tuple[int, int, float]]) -> None:
    measured = [Point("decode", Terms(decodes=1, running=b, context=c), s) for b, c, s in found]
    fit = fit_profile(measured, kv_tokens=KV, seats=SEATS)
    assert min(astuple(fit.profile)) >= 0
    assert fit.profile.prefill_a == fit.profile.prefill_b == 0


def test_a_repeated_point_counts_by_its_median() -> None:
    terms = Terms(decodes=1)
    times = [1.0, 1.0, 1.0, 9.0, 9.0]
    fit = fit_profile([Point("decode", terms, s) for s in times], kv_tokens=KV, seats=SEATS)
    assert fit.profile.decode_d == pytest.approx(1.0)


def test_nothing_measured_is_said() -> None:
    with pytest.raises(ValueError, match="nothing to fit"):
        fit_profile([Point("decode", Terms(decodes=1), 0.0)], kv_tokens=KV, seats=SEATS)


@settings(deadline=None)
@given(profiles, st.integers(1, 64), st.integers(1, 700), st.integers(1, 30))
def test_the_terms_of_a_load_give_its_time(profile: Profile, count: int, prompt: int, output: int) -> None:
    load = Load((Lengths(prompt, output),) * count, count)
    batch = ContinuousBatch(profile, max_batched_tokens=LIMITS.max_batched_tokens)
    for number in range(count):
        batch.add(number, prompt, output, 0.0)
    end = max(event.at for event in batch.advance(float("inf")))
    assert terms_of(load, LIMITS).seconds(profile) == pytest.approx(end)


def engine_steps(profile: Profile, load: Load, budget: int, host_s: float) -> list[EngineStep]:
    """The steps of an engine that serves first come first served, a waiting request for each that ends."""
    at = 100.0
    queue = [[request.prompt, request.output, request.prompt] for request in load.requests]  # to prefill, to come, held
    open_slots = load.concurrency
    running: list[list[int]] = []
    steps: list[EngineStep] = []
    while queue or running:
        while queue and open_slots:
            running.append(queue.pop(0))
            open_slots -= 1
        decoding = [r for r in running if not r[0]]
        seconds, left = 0.0, budget - len(decoding)
        chunks = 0
        for request in running:
            if request[0] and left:
                chunk, behind = min(left, request[0]), request[2] - request[0]
                seconds += profile.prefill_b * chunk + profile.prefill_c * chunk * (2 * behind + chunk)
                request[0] -= chunk
                left -= chunk
                chunks += chunk
                if not request[0]:
                    request[1] -= 1
        seconds += profile.decode_e * len(decoding) + profile.decode_f * sum(r[2] for r in decoding)
        fixed = [profile.prefill_a] * bool(chunks) + [profile.decode_d] * bool(decoding)
        seconds += max(fixed)
        for request in decoding:
            request[1] -= 1
            request[2] += 1
        open_slots += sum(not r[0] and not r[1] for r in running)
        running = [r for r in running if r[0] or r[1]]
        at += seconds + host_s
        steps.append(EngineStep(at, seconds, chunks, len(decoding)))
    return steps


LOADS = [
    Load((Lengths(32, 1),), 1),
    Load((Lengths(512, 1),), 1),
    Load((Lengths(2000, 1),), 1),
    Load((Lengths(32, 24),) * 4, 4),
    Load((Lengths(300, 24),) * 16, 16),
    Load((Lengths(64, 40),) * 64, 64),
    Load((Lengths(1500, 20),) * 8, 8),
    Load(tuple(Lengths(128, output) for output in [*range(2, 34, 2), *[24] * 16]), 16),
]


@settings(deadline=None)
@given(profiles, st.sampled_from([0.0, 0.002]))
def test_steps_and_requests_give_the_profile_of_the_engine(profile: Profile, host_s: float) -> None:
    observed = [
        Observation(load, 0.0, tuple(engine_steps(profile, load, LIMITS.max_batched_tokens, host_s))) for load in LOADS
    ]
    fit = fit_profile(points_of(observed, LIMITS), kv_tokens=KV, seats=SEATS)
    assert fit.errors.whole is None
    for error in (fit.errors.prefill, fit.errors.decode, fit.errors.mixed):
        assert error is not None
        assert error.worst < 1e-3
    assert fit.profile.prefill_a == pytest.approx(profile.prefill_a + host_s, rel=0.01)
    assert fit.profile.decode_d == pytest.approx(profile.decode_d + host_s, rel=0.01)


def test_an_engine_that_runs_ahead_is_timed_between_its_steps() -> None:
    """It tells how long it waited for a step, not how long that took."""
    steps = [EngineStep(10 + 0.1 * n, 0.01, 0 if n else 8, 1 if n else 0) for n in range(12)]
    found = points_of([Observation(Load((Lengths(8, 12),), 1), 1.2, tuple(steps))], LIMITS)
    assert [point.seconds for point in found if point.kind == "decode"] == pytest.approx([0.1])


def test_steps_that_do_not_fit_the_requests_are_not_used() -> None:
    """Somebody else uses the engine, or it preempts: the time of the whole is left."""
    load = Load((Lengths(8, 4),) * 2, 2)
    steps = tuple(EngineStep(float(n), 0.5, 0, 7) for n in range(5))
    (point,) = points_of([Observation(load, 3.0, steps)], LIMITS)
    assert (point.kind, point.seconds) == ("whole", 3.0)
    assert point.terms == Terms(prefills=1, decodes=3, prompt=16, squares=128, running=6, context=54)

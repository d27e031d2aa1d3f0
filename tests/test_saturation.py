"""An engine that is kept full: what its profile promises then, and what it does."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_profiler import in_virtual_time
from test_profiles import record

from broker.engine_steps import EngineStep
from broker.errors import UsageError
from broker.length_class import LengthClass
from broker.profiles import FitErrors, KindError, ProfileRecord
from broker.throughput import DeviceKind, Profile
from planner.cluster_plan import throughput
from planner.fit import Fit, Point, Terms, fit_profile
from planner.measured_steps import EngineLimits, Lengths
from planner.profiler import Measurement, ProfilingError, measure
from planner.reach import as_reached
from planner.saturation import Part, Served, Stretch, filling, parts_of, put_right

TRUTH = Profile(0.02, 3e-4, 2e-7, 0.02, 3e-4, 2.5e-6, kv_tokens=20_000, seats=32)
LIMITS = EngineLimits(TRUTH.kv_tokens, TRUTH.seats, 512, 4096)


@dataclass(eq=False)
class _Job:
    request: Lengths
    done: asyncio.Future[None]
    left: int


@dataclass(eq=False)
class HostBoundBench:
    """An engine that tells its steps, on a host that needs some time for each request, in which no step is made.

    Its steps themselves take what the profile says.
    """

    profile: Profile
    host_s: float = 0.0
    refuses_text: bool = False
    tokens: int = 0
    aborted: int = 0
    most: int = 0
    _steps: list[EngineStep] = field(default_factory=list[EngineStep])
    _waiting: deque[_Job] = field(default_factory=deque[_Job])
    _running: list[_Job] = field(default_factory=list[_Job])
    _task: asyncio.Task[None] | None = None

    async def run(self, request: Lengths) -> Lengths:
        job = _Job(request, asyncio.get_running_loop().create_future(), request.output)
        self._waiting.append(job)
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._serve())
        try:
            await job.done
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        return request

    async def run_text(self, request: Lengths) -> Lengths:
        if self.refuses_text:
            raise ProfilingError("it takes no text")
        return await self.run(request)

    def take_steps(self) -> list[EngineStep]:
        taken, self._steps = self._steps, []
        return taken

    async def _serve(self) -> None:
        while self._waiting or self._running:
            self._running = [job for job in self._running if not job.done.done()]
            fresh: list[_Job] = []
            while self._waiting and len(self._running) + len(fresh) < self.profile.seats:
                job = self._waiting.popleft()
                if not job.done.done():
                    fresh.append(job)
            if not fresh and not self._running:
                continue
            self.most = max(self.most, len(self._running) + len(fresh))
            seconds = self._seconds(fresh)
            await asyncio.sleep(seconds + self.host_s * len(fresh))
            prompt = sum(job.request.prompt for job in fresh)
            now = asyncio.get_running_loop().time()
            self._steps.append(EngineStep(now, seconds, prompt, len(self._running)))
            self._running += fresh
            self.tokens += prompt + len(self._running)
            for job in self._running:
                job.left -= 1
                if job.left <= 0 and not job.done.done():
                    job.done.set_result(None)
            self._running = [job for job in self._running if job.left > 0]

    def _seconds(self, fresh: list[_Job]) -> float:
        p, prompts = self.profile, [job.request.prompt for job in fresh]
        held = sum(job.request.prompt + job.request.output - job.left - 1 for job in self._running)
        fixed = max(p.prefill_a if fresh else 0.0, p.decode_d if self._running else 0.0)
        reading = p.prefill_b * sum(prompts) + p.prefill_c * sum(n * n for n in prompts)
        return fixed + reading + p.decode_e * len(self._running) + p.decode_f * held


async def rate(bench: HostBoundBench, request: Lengths, seconds: float = 300.0) -> float:
    """Tokens a second of a worker with a backlog: as many requests as seats, and a few ahead."""

    async def place(number: int) -> None:
        await bench.run(request._replace(output=1 + number * request.output // 34))
        while True:
            await bench.run(request)

    async def work() -> None:
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for number in range(34):
                group.create_task(place(number))

    before = bench.tokens
    with pytest.raises(TimeoutError):
        await work()
    return (bench.tokens - before) / seconds


def promised(profile: Profile, request: Lengths) -> float:
    """Tokens a second by the planner's own program, as an engine reaches it."""
    mix = [LengthClass.of(*request)]
    return throughput(mix, as_reached([DeviceKind(profile, max_batched_tokens=4096)], mix)).tokens_per_s


@pytest.mark.parametrize(
    ("host_s", "requests", "rel"),
    [
        (0.0, (Lengths(107, 40), Lengths(40, 60), Lengths(180, 20), Lengths(64, 16)), 0.03),
        (0.005, (Lengths(107, 40), Lengths(40, 60), Lengths(180, 20), Lengths(64, 32)), 0.03),
        (0.02, (Lengths(107, 40), Lengths(40, 60), Lengths(180, 20)), 0.08),
    ],
)
def test_what_a_full_engine_does_is_what_its_profile_promises(
    host_s: float, requests: Sequence[Lengths], rel: float
) -> None:
    """Also where the host takes time for each request, as long as a step at most; a single step does not tell."""

    async def main() -> tuple[Measurement, list[float]]:
        bench = HostBoundBench(TRUTH, host_s)
        return await measure(bench, LIMITS, budget_s=20), [await rate(bench, request) for request in requests]

    found, measured = in_virtual_time(main())
    for request, tokens_per_s in zip(requests, measured, strict=True):
        assert promised(found.fit.profile, request) == pytest.approx(tokens_per_s, rel=rel)
    if host_s:
        assert found.fit.overhead > 1.05
        assert promised(TRUTH, requests[0]) > 1.05 * measured[0]
    else:
        assert found.fit.overhead == pytest.approx(1.0, abs=0.02)


def test_it_is_kept_full_for_the_last_part_of_the_budget() -> None:
    async def main() -> tuple[Measurement, HostBoundBench]:
        bench = HostBoundBench(TRUTH)
        return await measure(bench, LIMITS, budget_s=20), bench

    found, bench = in_virtual_time(main())
    assert found.seconds == pytest.approx(20, abs=1)
    assert bench.most == TRUTH.seats
    assert bench.aborted == 34, "what runs at the end is not waited for"
    saturated = found.fit.errors.saturated
    assert saturated is not None
    assert saturated.points >= 3
    assert saturated.worst < 0.05


def test_a_request_that_is_refused_ends_the_measurement() -> None:
    bench = HostBoundBench(TRUTH, refuses_text=True)
    with pytest.raises(ProfilingError, match="it takes no text"):
        in_virtual_time(measure(bench, LIMITS, budget_s=20))


@given(st.integers(16, 10**6), st.integers(1, 512), st.integers(2, 131_072))
@settings(deadline=None)
def test_nothing_is_given_that_does_not_fit(kv_tokens: int, seats: int, context_tokens: int) -> None:
    limits = EngineLimits(kv_tokens, seats, context_tokens, 2048)
    full = filling(limits)
    if full is None:
        assert kv_tokens < 200 or context_tokens < 96
        return
    running = min(full.together, seats)
    for request in (full.reading, full.writing, *(full.first(number) for number in range(full.together))):
        assert min(request) >= 1
        assert sum(request) <= context_tokens
        assert running * sum(request) <= max(kv_tokens, 120)
    assert full.next(0.1) == full.reading
    assert full.next(0.9) == full.writing


def test_the_parts_of_a_stretch_add_up_to_its_time() -> None:
    served = (Served(0.0, 10.0, 50), Served(0.0, float("inf"), 70))
    steps = [EngineStep(0.5, 0.4, 120, 0), *(EngineStep(1.0 + 0.5 * n, 0.4, 0, 2) for n in range(18))]
    parts = parts_of(Stretch(served, tuple(steps)))
    assert sum(part.seconds for part in parts) == pytest.approx(steps[-1].at - steps[1].at)
    assert sum(part.terms.decodes for part in parts) == 17
    assert sum(part.terms.running for part in parts) == 34
    # In the n-th step after that of the prompts each holds its prompt and n tokens.
    assert sum(part.terms.context for part in parts) == sum(120 + 2 * n for n in range(1, 18))


@given(st.floats(0.7, 2.0), st.floats(0.7, 2.0), st.sampled_from([0.0, 0.005, 0.02]))
def test_what_prompts_cost_is_told_from_all_else(of_prompts: float, of_others: float, extra_s: float) -> None:
    """By two factors, and by what a step that reads at all takes longer."""
    truth = replace(
        TRUTH,
        prefill_a=TRUTH.prefill_a * of_others + extra_s,
        prefill_b=TRUTH.prefill_b * of_prompts,
        prefill_c=TRUTH.prefill_c * of_prompts,
        decode_d=TRUTH.decode_d * of_others,
        decode_e=TRUTH.decode_e * of_others,
        decode_f=TRUTH.decode_f * of_others,
    )
    much = Terms(mixed=8, prompt=3000, squares=600_000, running=240, context=40_000)
    little = Terms(mixed=8, prompt=512, squares=32_768, running=250, context=24_000)
    writing = Terms(decodes=30, running=960, context=90_000)
    parts = [Part(terms, terms.seconds(truth)) for terms in (much, little, writing) * 3]
    fit = Fit(TRUTH, FitErrors(), 1.0)
    found = put_right(fit, parts)
    for part in parts:
        assert part.terms.seconds(found.profile) == pytest.approx(part.seconds, rel=0.05)
    between = Terms(mixed=20, decodes=20, prompt=2200, squares=242_000, running=1250, context=160_000)
    assert between.seconds(found.profile) == pytest.approx(between.seconds(truth), rel=0.03)
    assert found.errors.saturated is not None
    assert found.errors.saturated.points == 9
    assert put_right(fit, []) == fit


@pytest.mark.parametrize("steps", [(), (EngineStep(1.0, 0.1, 5, 0),)], ids=["none", "one"])
def test_too_few_steps_make_no_point(steps: tuple[EngineStep, ...]) -> None:
    assert parts_of(Stretch((Served(0.0, 2.0, 5),), steps)) == []


def test_without_a_stretch_there_is_no_overhead() -> None:
    fit = fit_profile([Point("decode", Terms(decodes=1, running=4, context=90), 0.1)], kv_tokens=1000, seats=4)
    assert fit.overhead == 1.0
    assert fit.errors.saturated is None


class TestRecord:
    def test_an_old_one_says_nothing_of_it(self) -> None:
        text = record().to_json()
        old = text.replace(',"overhead":1.0', "").replace('"saturated":null,', "")
        assert "overhead" not in old
        assert "saturated" not in old
        assert ProfileRecord.from_json(old) == record()

    def test_it_is_kept(self) -> None:
        errors = replace_errors(record(), KindError(points=6, mean=0.01, worst=0.02))
        assert ProfileRecord.from_json(errors.to_json()) == errors

    @pytest.mark.parametrize("wrong", ["0", "-1", "1e9", '"x"', "null"])
    def test_one_that_makes_no_sense_is_refused(self, wrong: str) -> None:
        text = record().to_json().replace('"overhead":1.0', f'"overhead":{wrong}')
        with pytest.raises(UsageError, match="overhead"):
            ProfileRecord.from_json(text)


def replace_errors(found: ProfileRecord, saturated: KindError) -> ProfileRecord:
    return found.model_copy(
        update={"errors": found.errors.model_copy(update={"saturated": saturated}), "overhead": 1.2}
    )

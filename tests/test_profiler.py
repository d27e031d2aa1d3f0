"""An engine measured: the simulated one, whose truth is known, a server, and a real one."""

from __future__ import annotations

import asyncio
import importlib.util
import random
import selectors
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.batching import ContinuousBatch, EventKind
from broker.engine_steps import EngineStep
from broker.errors import UsageError
from broker.throughput import Profile
from planner.measured_steps import EngineLimits, Lengths, Load
from planner.profiler import Measurement, ProfilingError, measure
from planner.profiling_plan import first_batch, first_loads, further_loads, warm_up
from tokenyard.engine_bench import EngineBench
from tokenyard.engine_choice import EngineChoice, EngineKind, build_engine
from tokenyard.engine_profiling import profile_engine
from workers.engines.base import Capacity, Engine
from workers.engines.simulated import SimulatedEngine, SimulatedOptions

T = TypeVar("T")
BUSY_PERCENT = 20.0


class _SkippingSelector(selectors.DefaultSelector):
    """Waits for nothing: its clock jumps to the end of the wait."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += (timeout or 0.0) + 1e-9  # or what is due a rounding error from now would come due for ever
        return super().select(None if timeout is None else 0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop in which computing takes no time, and waiting takes just as long as was asked for."""

    def __init__(self) -> None:
        self._skipping = _SkippingSelector()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now


def in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def limits_of(capacity: Capacity) -> EngineLimits:
    return EngineLimits(capacity.kv_tokens, capacity.seats, capacity.context_tokens, capacity.max_batched_tokens)


async def measured(engine: Engine, model: str, budget_s: float, steps: list[EngineStep] | None = None) -> Measurement:
    limits = limits_of(await engine.start())
    return await measure(EngineBench(engine, model, steps if steps is not None else []), limits, budget_s=budget_s)


profiles = st.builds(
    Profile,
    st.floats(2e-3, 0.1),
    st.floats(1e-5, 1e-3),
    st.floats(1e-9, 1e-8),
    st.floats(2e-3, 0.1),
    st.floats(1e-5, 1e-3),
    st.floats(1e-8, 8e-7),
    kv_tokens=st.just(40_000),
    seats=st.sampled_from([16, 24]),
)


class TestSimulated:
    @given(profiles, st.sampled_from([1.0, 20.0]))
    @settings(max_examples=20, deadline=None)
    def test_its_profile_is_found(self, truth: Profile, speed: float) -> None:
        options = SimulatedOptions(profile=truth, speed=speed, context_tokens=4096)

        async def main() -> Measurement:
            engine = SimulatedEngine(options)
            found = await measured(engine, "simulated", budget_s=45)
            await engine.stop()
            return found

        found = in_virtual_time(main())
        assert not found.by_steps
        assert found.seconds <= 46 or found.loads <= 4
        whole = found.fit.errors.whole
        assert whole is not None
        assert whole.worst < 0.02
        profile, expected = found.fit.profile, options.effective_profile
        assert (profile.kv_tokens, profile.seats) == (expected.kv_tokens, expected.seats)
        for running, context in ((1, 100), (4, 500), (truth.seats, 1000)):
            step = expected.decode_step_seconds(running, context)
            assert profile.decode_step_seconds(running, context) == pytest.approx(step, rel=0.03)
        for prompt in (100, 500):
            assert profile.prefill_seconds(prompt) == pytest.approx(expected.prefill_seconds(prompt), rel=0.03)

    async def test_an_engine_that_refuses_is_said(self) -> None:
        engine = SimulatedEngine(SimulatedOptions())
        with pytest.raises(ProfilingError, match=r"refuses .*The model `other` does not exist"):
            await measured(engine, "other", budget_s=1)
        await engine.stop()

    async def test_only_generation_is_measured(self) -> None:
        with pytest.raises(UsageError, match="--task embed"):
            await profile_engine(EngineChoice(kind=EngineKind.SIMULATED, model="m", task="embed"), 1, print)


class CountingBench:
    """Takes the same time for every request, and keeps what it was asked."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.asked: list[Lengths] = []
        self.running = 0
        self.most = 0
        self._seconds = seconds

    async def run(self, request: Lengths) -> Lengths:
        self.asked.append(request)
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(self._seconds)
        self.running -= 1
        return request

    async def run_text(self, request: Lengths) -> Lengths:
        return await self.run(request)

    def take_steps(self) -> list[EngineStep]:
        return []


@pytest.mark.parametrize("limits", [
    EngineLimits(100_000, 64, 4096, 2048),
    EngineLimits(1_000_000, 256, 131_072, 8192),
    EngineLimits(2048, 1, 128, 2048),
    EngineLimits(16, 4, 2, 0),
])  # fmt: skip
def test_no_load_is_more_than_the_engine_holds(limits: EngineLimits) -> None:
    loads = [*warm_up(limits), *first_loads(limits), *further_loads(limits, 24)]
    assert loads
    batches = (first_batch(limits, lambda load: load.concurrency * 0.1, most_s) for most_s in (0.0, 1.0, 10.0))
    loads += [batch for batch in batches if batch is not None]
    for load in loads:
        assert load.concurrency <= limits.seats
        held = [request.prompt + request.output for request in load.requests]
        assert max(held) <= max(limits.context_tokens, 3)
        assert sum(sorted(held)[-load.concurrency :]) <= limits.kv_tokens
    full = {load.concurrency for load in loads}
    assert limits.kv_tokens < 20_000 or limits.seats in full


def test_a_slow_engine_gets_the_first_loads_only() -> None:
    """Its measurement takes as long as the least takes; nothing more is begun once the budget is spent."""
    limits = EngineLimits(100_000, 64, 4096, 2048)
    bench = CountingBench(seconds=20)
    found = in_virtual_time(measure(bench, limits, budget_s=45))
    batch = first_batch(limits, lambda load: 99.0, 1.0)
    assert batch is not None
    assert batch.concurrency == 2
    expected = [*warm_up(limits), *first_loads(limits), batch]
    assert bench.asked == [request for load in expected for request in load.requests]
    assert found.loads == len(first_loads(limits)) + 1


class SteppingBench:
    """Reads and writes for one request at a time, and tells its steps."""

    def __init__(self, seconds_a_token: float) -> None:
        self.texts = 0
        self._seconds_a_token = seconds_a_token
        self._steps: list[EngineStep] = []
        self._engine = asyncio.Lock()

    async def run(self, request: Lengths) -> Lengths:
        async with self._engine:
            for prompt in (request.prompt, *[0] * (request.output - 1)):
                seconds = self._seconds_a_token * max(prompt, 1)
                await asyncio.sleep(seconds)
                now = asyncio.get_running_loop().time()
                self._steps.append(EngineStep(now, seconds, prompt, 0 if prompt else 1))
        return request

    async def run_text(self, request: Lengths) -> Lengths:
        self.texts += 1
        return await self.run(request)

    def take_steps(self) -> list[EngineStep]:
        steps, self._steps = self._steps, []
        return steps


@pytest.mark.parametrize(("seconds_a_token", "kept_full"), [(0.001, True), (0.05, False)])
def test_an_engine_that_would_read_until_the_time_is_over_is_not_kept_full(
    seconds_a_token: float, kept_full: bool
) -> None:
    limits = EngineLimits(100_000, 16, 1024, 2048)

    async def main() -> tuple[Measurement, int]:
        bench = SteppingBench(seconds_a_token)
        return await measure(bench, limits, budget_s=45), bench.texts

    found, texts = in_virtual_time(main())
    assert found.by_steps
    assert (texts > 0) == kept_full
    assert found.seconds <= 45.1


def test_the_first_batch_is_as_large_as_there_is_time_for() -> None:
    limits = EngineLimits(100_000, 24, 4096, 2048)

    def size(most_s: float) -> int:
        batch = first_batch(limits, lambda load: load.concurrency * 0.1, most_s)
        assert batch is not None
        return batch.concurrency

    assert [size(most_s) for most_s in (9.0, 2.5, 2.3, 1.0, 0.1)] == [24, 24, 16, 8, 2]
    assert first_batch(limits._replace(seats=1), lambda load: 0.0, 1.0) is None


def test_no_more_run_at_once_than_the_engine_has_seats() -> None:
    limits = EngineLimits(100_000, 16, 4096, 2048)
    bench = CountingBench(seconds=0.1)
    in_virtual_time(measure(bench, limits, budget_s=45))
    assert bench.most == 16


def predicted_seconds(profile: Profile, load: Load, budget: int) -> float:
    """By the model of continuous batching: how long a load takes, the next request as one ends."""
    batch = ContinuousBatch(profile, max_batched_tokens=budget)
    waiting = list(enumerate(load.requests))
    for number, request in waiting[: load.concurrency]:
        batch.add(number, *request, 0.0)
    del waiting[: load.concurrency]
    now = 0.0
    while (at := batch.next_event_at()) is not None:
        now = at
        for event in batch.advance(at):
            if event.kind is EventKind.FINISHED and waiting:
                number, request = waiting.pop(0)
                batch.add(number, *request, event.at)
    return now


async def run_load(bench: EngineBench, requests: Sequence[Lengths], concurrency: int) -> float:
    queue = iter(requests)

    async def slot() -> None:
        for request in queue:
            await bench.run(request)

    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(*(slot() for _ in range(concurrency)))
    return loop.time() - began


async def use_of_cores() -> list[float]:
    """Share of each core that is in use now, percent."""
    return await asyncio.to_thread(psutil.cpu_percent, interval=2, percpu=True)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
class TestVllm:
    async def test_what_is_predicted_is_then_measured(self) -> None:
        """A batch of 16 at once, of lengths that the profiler has not seen.

        Profile and batch are comparable only where nobody else uses the core, before and after.
        """
        use = await use_of_cores()
        core = use.index(min(use))
        steps: list[EngineStep] = []
        choice = EngineChoice(
            kind=EngineKind.VLLM,
            model="demo",
            served_names=("smol",),
            dtype="bfloat16",
            seats=16,
            context_tokens=2048,
            kv_gib=0.5,
            cores=str(core),
            eager=True,
        )
        engine = build_engine(choice, print, observe=steps.append)
        try:
            found = await measured(engine, "smol", 45.0, steps)
            assert found.by_steps
            assert found.seconds < 60
            rng = random.Random(5)
            load = Load(tuple(Lengths(rng.randint(20, 500), rng.randint(10, 80)) for _ in range(48)), 16)
            bench = EngineBench(engine, "smol", steps)
            # Whatever else the machine does only makes it longer.
            seconds = min([await run_load(bench, load.requests, load.concurrency) for _ in range(3)])
            busy = max(use[core], (await use_of_cores())[core])
        finally:
            await engine.stop()
        predicted = predicted_seconds(found.fit.profile, load, 4096)
        print(found.fit, f"predicted {predicted:.2f} s, measured {seconds:.2f} s, profiled in {found.seconds:.1f} s")
        if busy > BUSY_PERCENT:
            pytest.skip(f"something else uses {busy:.0f} % of core {core}")
        assert predicted == pytest.approx(seconds, rel=0.25)

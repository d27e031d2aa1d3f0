"""Measures an engine within a budget of time: runs loads, cheapest first, and fits the step-time model to them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple, Protocol

from broker.engine_steps import EngineStep
from broker.errors import TokenyardError
from planner.fit import Fit, Point, fit_profile
from planner.measured_steps import EngineLimits, Lengths, Load, Observation, points_of, terms_of
from planner.profiling_plan import first_batch, first_loads, further_loads, warm_up
from planner.saturation import Filling, Part, Served, Stretch, filling, parts_of, put_right

log = logging.getLogger(__name__)

#: Tokens each request generates: enough steps for a median, and for the time of the whole to be mostly decoding.
_OUTPUT_TOKENS = 24
#: The share of the time for which an engine that tells its steps is kept full.
_SATURATED_SHARE = 0.4
#: At most this part of it may pass until it is full; a slower engine would still be reading when the time is over.
_FILLING_SHARE = 0.5
#: And the share that the first batch may take.
_FIRST_BATCH_SHARE = 0.2


class ProfilingError(TokenyardError):
    """The engine could not be measured."""


class Bench(Protocol):
    """A started engine, as the profiler drives it."""

    async def run(self, request: Lengths) -> Lengths:
        """Run one request with a prompt that the engine has not seen; returns the lengths it had.

        Raises:
            TokenyardError: the engine refused it, or died.
        """
        ...

    async def run_text(self, request: Lengths) -> Lengths:
        """The same with a prompt that is text and has about that length.

        Raises:
            TokenyardError: the engine refused it, or died.
        """
        ...

    def take_steps(self) -> list[EngineStep]:
        """The engine's steps since the last call; always empty where it does not tell them."""
        ...


class Measurement(NamedTuple):
    """What was found.

    Attributes:
        fit: the profile and its errors.
        loads: loads that were run.
        seconds: how long it took.
        by_steps: whether the engine told its steps; else whole requests were timed.
    """

    fit: Fit
    loads: int
    seconds: float
    by_steps: bool


async def measure(bench: Bench, limits: EngineLimits, *, budget_s: float) -> Measurement:
    """Measure a started engine that nobody else uses.

    The few loads without which nothing can be fitted are always run. What they tell predicts how long each further one
    will take; these are run cheapest first, then all once more, until the next would end after the budget. An engine
    that tells its steps, and is not too slow for it, is kept full for the last part, see ``planner.saturation``.

    Args:
        limits: what the engine can hold.
        budget_s: seconds to spend, about.

    Raises:
        ProfilingError: nothing it answered took any time.
        TokenyardError: a request failed.
    """
    session = _Session(bench, limits)
    for load in warm_up(limits):
        await session.run(load)
    session.observations.clear()
    first = first_loads(limits)
    for load in first:
        await session.run(load)
    if (batch := first_batch(limits, session.predicted, budget_s * _FIRST_BATCH_SHARE)) is not None:
        await session.run(batch)
        first.append(batch)
    by_steps = any(point.kind != "whole" for point in session.points())
    further = [load for load in further_loads(limits, _OUTPUT_TOKENS) if by_steps or load.together]
    full_s = budget_s * _SATURATED_SHARE
    full = filling(limits) if by_steps else None
    if full is not None and session.predicted(full.first_prompts()) > full_s * _FILLING_SHARE:
        full = None
    until_s = budget_s - (full_s if full is not None else 0.0)
    await session.run_cheapest(further, until_s)
    # What time is left goes into repeats, so that what disturbs the device for a while does not decide.
    await session.run_cheapest([*first, *further], until_s)
    parts: list[Part] = []
    if full is not None:
        parts = await session.keep_full(full, max(budget_s - session.spent(), full_s / 2))
    return Measurement(put_right(session.fit(), parts), len(session.observations), session.spent(), by_steps)


class _Session:
    """One measurement under way."""

    def __init__(self, bench: Bench, limits: EngineLimits) -> None:
        self.observations: list[Observation] = []
        self._bench = bench
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()

    def spent(self) -> float:
        """Seconds since the start."""
        return self._loop.time() - self._began

    def points(self) -> list[Point]:
        """What was measured so far."""
        return points_of(self.observations, self._limits)

    def fit(self) -> Fit:
        """The profile by what was measured so far."""
        try:
            return fit_profile(self.points(), kv_tokens=self._limits.kv_tokens, seats=self._limits.seats)
        except ValueError as error:
            raise ProfilingError(f"the engine cannot be measured: {error}") from None

    def predicted(self, load: Load) -> float:
        """Seconds that a load will take, where no batch was measured yet.

        One request tells a step's fixed time and what it adds itself as their sum alone; it adds about as much as a
        token of a prompt, which takes the same operations.
        """
        profile = self.fit().profile
        return terms_of(load, self._limits).seconds(replace(profile, decode_e=max(profile.decode_e, profile.prefill_b)))

    async def run_cheapest(self, loads: Iterable[Load], until_s: float) -> None:
        """Run these loads, cheapest first by what is known by then, until the next would end after so long."""
        waiting = list(loads)
        while waiting:
            profile = self.fit().profile
            predicted = [terms_of(load, self._limits).seconds(profile) for load in waiting]
            cheapest = min(predicted)
            if self.spent() + cheapest > until_s:
                return
            await self.run(waiting.pop(predicted.index(cheapest)))

    async def run(self, load: Load) -> None:
        """Run a load and note what it took."""
        self._bench.take_steps()
        began = self._loop.time()
        lengths = await _closed_loop(self._bench, load)
        seconds = self._loop.time() - began
        log.debug("%d requests of %s, %d at once: %.3f s", len(lengths), lengths[0], load.concurrency, seconds)
        observed = Load(tuple(lengths), load.concurrency)
        self.observations.append(Observation(observed, seconds, tuple(self._bench.take_steps())))

    async def keep_full(self, full: Filling, seconds: float) -> list[Part]:
        """Give the engine one request after another for so long, then abort what runs; what it did meanwhile."""
        self._bench.take_steps()
        began = self._loop.time()
        served: list[Served] = []
        running: dict[int, Served] = {}

        async def place(number: int) -> None:
            request = full.first(number)
            while True:
                running[number] = Served(self._loop.time(), float("inf"), request.prompt)
                lengths = await self._bench.run_text(request)
                served.append(running.pop(number)._replace(ended=self._loop.time(), prompt=lengths.prompt))
                request = full.next((self._loop.time() - began) / seconds)

        try:
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
                for number in range(full.together):
                    group.create_task(place(number))
        except TimeoutError:
            pass
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        served += running.values()
        return parts_of(Stretch(tuple(served), tuple(self._bench.take_steps())))


async def _closed_loop(bench: Bench, load: Load) -> list[Lengths]:
    """Run the requests in their order, so many at once; the lengths they had. The first to fail ends them all."""
    found: list[Lengths] = list(load.requests)
    queue = iter(enumerate(load.requests))

    async def slot() -> None:
        for place, request in queue:
            found[place] = await bench.run(request)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(load.concurrency):
                group.create_task(slot())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return found

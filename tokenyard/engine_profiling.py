"""Start an engine, measure it, stop it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import NamedTuple

from broker.engine_steps import EngineStep
from broker.errors import UsageError
from broker.profiles import ProfileRecord
from planner.measured_steps import EngineLimits
from planner.profiler import Measurement, measure
from tokenyard.engine_bench import EngineBench
from tokenyard.engine_choice import EngineChoice, build_engine
from tokenyard.engine_profiles import record_of
from workers.engines.base import Capacity


class EngineProfile(NamedTuple):
    """An engine that was measured."""

    record: ProfileRecord
    measurement: Measurement
    capacity: Capacity


async def profile_engine(
    choice: EngineChoice,
    budget_s: float,
    report: Callable[[str], None],
    until_its_turn: Callable[[], Awaitable[None]] | None = None,
) -> EngineProfile:
    """Measure the engine that was asked for.

    Args:
        budget_s: seconds to spend once the engine is up.
        report: told about long steps.
        until_its_turn: waited for once the engine is up: others are measured beside it, or before it.

    Raises:
        TokenyardError: it cannot be started, or refuses a request; or what ``until_its_turn`` raises.
    """
    if choice.task != "generate":
        raise UsageError(f"--task {choice.task}: only engines that generate text can be measured")
    steps: list[EngineStep] = []
    engine = build_engine(choice, report, observe=steps.append)
    try:
        report("starting the engine")
        capacity = await engine.start()
        if until_its_turn is not None:
            await until_its_turn()
        report(f"measuring {capacity.version} on {capacity.device} for about {budget_s:.0f} s")
        limits = EngineLimits(capacity.kv_tokens, capacity.seats, capacity.context_tokens, capacity.max_batched_tokens)
        measurement = await measure(EngineBench(engine, choice.names[0], steps), limits, budget_s=budget_s)
    finally:
        await engine.stop()
    today = datetime.now(UTC).date()
    return EngineProfile(record_of(choice.kind, capacity, measurement.fit, today), measurement, capacity)

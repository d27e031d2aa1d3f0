"""The profile of an engine: found when it has started, recorded when it was measured."""

from __future__ import annotations

import logging
from datetime import date
from typing import TYPE_CHECKING

from broker.connection import RedisClient
from broker.errors import UsageError
from broker.profiles import ProfileRecord, ProfileValues, configuration
from broker.store.profiles import ProfileStore
from broker.throughput import Profile
from tokenyard.engine_choice import EngineChoice, EngineKind
from tokenyard.profile_file import ProfileFile, read_profile_file
from workers.engines.base import Capacity
from workers.membership import ProfileSource

if TYPE_CHECKING:
    from planner.fit import Fit

log = logging.getLogger(__name__)


def profile_source(redis: RedisClient, pool: str, choice: EngineChoice) -> ProfileSource:
    """Where a worker finds its engine's profile: in the file it was given, in the engine, or in the pool's records.

    Raises:
        UsageError: the file is no profile, or one of another model.
    """
    given = _given(choice)
    store = ProfileStore(redis, pool)

    async def find(capacity: Capacity) -> Profile | None:
        if given is not None:
            _compare(given, capacity)
            return given.profile
        if capacity.profile is not None:
            return capacity.profile
        record = await store.find(_configuration(choice.kind, capacity))
        if record is not None:
            log.info("profile measured on %s: %s", record.measured, record.configuration)
        return record.profile if record else None

    return find


def record_of(kind: EngineKind, capacity: Capacity, fit: Fit, today: date) -> ProfileRecord:
    """The record of a measurement."""
    return ProfileRecord(
        device=capacity.device,
        model=capacity.model,
        engine=kind.value,
        version=capacity.version,
        dtype=capacity.dtype,
        tensor_parallel=capacity.tensor_parallel,
        max_batched_tokens=capacity.max_batched_tokens,
        variant=capacity.variant,
        measured=today,
        profile=ProfileValues.of(fit.profile),
        errors=fit.errors,
        overhead=min(max(round(fit.overhead, 4), 1e-3), 1e3),
    )


def _given(choice: EngineChoice) -> ProfileFile | None:
    """The profile that a real engine was given; a simulated one has it from its own timing."""
    if choice.profile is None or choice.kind is EngineKind.SIMULATED:
        return None
    found = read_profile_file(choice.profile)
    if found.record and found.record.model not in choice.names:
        raise UsageError(
            f"{choice.profile} is a profile of {found.record.model}, and this worker runs {choice.names[0]}: "
            "measure it with `tokenyard profile`"
        )
    return found


def _compare(given: ProfileFile, capacity: Capacity) -> None:
    record = given.record
    if record and record.device != capacity.device:
        log.warning("the profile was measured on %s, and this worker runs on %s", record.device, capacity.device)


def _configuration(kind: EngineKind, capacity: Capacity) -> str:
    return configuration(
        device=capacity.device,
        model=capacity.model,
        engine=kind.value,
        version=capacity.version,
        dtype=capacity.dtype,
        tensor_parallel=capacity.tensor_parallel,
        max_batched_tokens=capacity.max_batched_tokens,
        variant=capacity.variant,
    )

"""A plan for machines to read. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.cluster_plan import ClusterPlan, PlannedMachine
from planner.configurations import EngineOption
from tokenyard.planning import PlanOutcome


def outcome_json(outcome: PlanOutcome) -> dict[str, Any]:
    """All that was found; prices are null where they are not known, shares lie between 0 and 1."""
    best, today = outcome.result.best, outcome.today
    found: dict[str, Any] = {
        "best": plan_json(best),
        "runner_up": plan_json(outcome.result.runner_up) if outcome.result.runner_up else None,
        "left_out_share": outcome.result.left_out,
        "idle": [{"machine": name, "reason": str(misfit)} for name, misfit in outcome.idle],
        "without_supervisor": list(outcome.unwatched),
        "today": None,
    }
    if today is not None:
        found["today"] = {
            "workers": today.workers,
            "without_profile": list(today.unknown),
            "jobs_per_s": today.throughput.jobs_per_s,
            "tokens_per_s": today.throughput.tokens_per_s,
            "unplaced_share": today.throughput.unplaced,
            "gain": gain(best.tokens_per_s, today.throughput.tokens_per_s),
        }
    if outcome.what_if is not None:
        found["what_if"] = {
            **plan_json(outcome.what_if),
            "gain": gain(outcome.what_if.tokens_per_s, best.tokens_per_s),
        }
    if outcome.batch is not None:
        found["batch"] = {
            **plan_json(outcome.batch),
            "jobs": outcome.jobs,
            "seconds": outcome.batch.seconds(outcome.jobs),
            "price": outcome.batch.price(outcome.jobs),
        }
    return found


def plan_json(plan: ClusterPlan) -> dict[str, Any]:
    """One plan."""
    return {
        "jobs_per_s": plan.jobs_per_s,
        "tokens_per_s": plan.tokens_per_s,
        "price_per_hour": plan.price_per_hour,
        "price_per_million_tokens": plan.price_per_million_tokens,
        "gap": plan.gap,
        "stopped": plan.stopped,
        "engines": [
            {
                **_engine(share.option),
                "engines": share.engines,
                "jobs_per_s": share.jobs_per_s,
                "tokens_per_s": share.tokens_per_s,
            }
            for share in plan.shares
        ],
        "machines": [_machine(planned) for planned in plan.machines],
    }


def gain(after: float, before: float) -> float | None:
    """How much more, as a share; None where there was nothing."""
    return after / before - 1 if before > 0 else None


def _machine(planned: PlannedMachine) -> dict[str, Any]:
    return {
        "name": planned.machine.name,
        "price_per_hour": planned.machine.price_per_hour,
        "engines": [{**_engine(option), "engines": count} for option, count in planned.engines],
    }


def _engine(option: EngineOption) -> Mapping[str, Any]:
    profile = option.kind.profile
    return {
        "device": option.device,
        "cores" if option.cpu else "tensor_parallel": option.units,
        "dtype": option.dtype,
        "seats": profile.seats,
        "kv_tokens": profile.kv_tokens,
        "context_tokens": option.kind.context_tokens,
        "basis": option.basis.value,
        "source": option.source,
    }

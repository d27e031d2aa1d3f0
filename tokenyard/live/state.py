"""The web page's data: plain values for JSON, with every name cut and cleaned (anyone can write to Redis)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from broker.heartbeat import Heartbeat
from broker.jobs import BatchCounts
from broker.pool_plan import PoolPlan
from broker.tenant_names import tenant_of
from tokenyard.cluster_snapshot import ClusterSnapshot, PoolSnapshot, batch_as_json
from tokenyard.device_prices import cost_of, missing_of, prices_of
from tokenyard.live.batch_line import BatchLine
from tokenyard.live.pool_bound import share_of
from tokenyard.live.pool_past import PoolPast
from tokenyard.views.devices import tokens_per_s
from tokenyard.views.text import printable

#: Devices of a pool that are told, batches, and names of a list.
MOST_DEVICES = 500
MOST_BATCHES = 20
_MOST_NAMES = 5
_NAME_CHARS = 200


def cluster_json(
    snapshot: ClusterSnapshot, pasts: Mapping[str, PoolPast], left_s: Mapping[str, float | None], viewer: str | None
) -> dict[str, Any]:
    """The cluster at one moment.

    Args:
        snapshot: what is so.
        pasts: of the pools by name.
        left_s: batch -> seconds it still takes, None where that is not known.
        viewer: the tenant who looks: sees devices and its own batches, no plan and no price; None: an operator.
    """
    memory = snapshot.memory
    batches = [batch for batch in snapshot.batches if viewer is None or tenant_of(batch) == viewer]
    return {
        "at": snapshot.clock,
        "operator": viewer is None,
        "memory": None
        if memory is None or viewer is not None
        else {"used": memory.used, "limit": memory.limit, "full": memory.full, "evicts": memory.evicts},
        "pools": [
            _pool(pool, snapshot.clock, pasts.get(pool.name, PoolPast()), operator=viewer is None)
            for pool in snapshot.pools
        ],
        "batches": [
            {**batch_json(batch, snapshot.batches[batch]), "left_s": left_s.get(batch)}
            for batch in batches[:MOST_BATCHES]
        ],
    }


def batch_json(batch_id: str, counts: BatchCounts) -> dict[str, Any]:
    """A batch and how far it is."""
    return {**batch_as_json(batch_id, counts), "id": named(batch_id)}


def line_json(line: BatchLine, bound: float | None, prices: Mapping[str, float], *, operator: bool) -> dict[str, Any]:
    """What devices have done of a batch.

    Args:
        line: its results so far.
        bound: tokens a second that the devices can do of its mix at best, None where not known.
        prices: of the devices, an hour.
        operator: whether prices are told.
    """
    found = line.line()
    span_s = len(found.prompt) * found.width_s
    mean = line.tokens / span_s if span_s else 0.0
    return {
        "read": line.read,
        "begin": found.begin,
        "width_s": found.width_s,
        "prompt_tokens_per_s": found.prompt,
        "output_tokens_per_s": found.output,
        "devices": [
            {"name": named(d.name), "jobs": d.jobs, "tokens": d.tokens, "busy_s": d.busy_s, "running": d.running}
            for d in found.devices
        ],
        "more_devices": found.more,
        "tokens_per_s": mean,
        "bound_tokens_per_s": bound,
        "share_of_bound": share_of(mean, bound),
        "cost": cost_of(found.busy_s, prices) if operator else None,
    }


def named(text: str) -> str:
    """Somebody's name, without control characters, and of a bounded length."""
    text = printable(text[: _NAME_CHARS + 1])
    return text if len(text) <= _NAME_CHARS else f"{text[: _NAME_CHARS - 1]}…"


def _pool(pool: PoolSnapshot, now: float, past: PoolPast, *, operator: bool) -> dict[str, Any]:
    beats = pool.workers
    total = sum(tokens_per_s(beat) for beat in beats.values() if beat is not None)
    prices = prices_of(pool.plan, beats) if operator else {}
    shown = list(beats.items())[:MOST_DEVICES]
    of_all = {name: 3600.0 for name, beat in beats.items() if beat is not None}
    return {
        "name": named(pool.name),
        "models": _names(pool.models),
        "scheduler": None if pool.scheduler is None else named(pool.scheduler) if operator else "",
        "waiting": pool.waiting,
        "delayed": pool.delayed,
        "dead_letters": pool.dead_letters if operator else None,
        "tokens_per_s": total,
        "bound_tokens_per_s": past.bound_tokens_per_s,
        "share_of_bound": share_of(total, past.bound_tokens_per_s),
        "price_per_hour": cost_of(of_all, prices) if operator else None,
        "past": {"begin": past.begin, "width_s": past.width_s, "tokens_per_s": list(past.tokens_per_s)},
        "plan": _plan(pool.plan, pool) if operator and pool.plan is not None else None,
        "devices": [_device(name, beat, now, total, pool.depths.get(name, 0), prices) for name, beat in shown],
        "more_devices": len(beats) - len(shown),
    }


def _device(
    name: str, beat: Heartbeat | None, now: float, total: float, queue: int, prices: Mapping[str, float]
) -> dict[str, Any]:
    if beat is None:
        return {"name": named(name), "state": None, "queue": queue}
    used = 1 - beat.kv_tokens_free / beat.kv_tokens_total if beat.kv_tokens_total else None
    return {
        "name": named(name),
        "state": beat.state,
        "silent_s": max(now - beat.seen, 0.0),
        "kind": named(beat.device),
        "tokens_per_s": tokens_per_s(beat),
        "share": tokens_per_s(beat) / total if total else None,
        "running": beat.running,
        "seats": beat.seats,
        "queue": queue,
        "kv_used": used if used is None else max(0.0, used),
        "jobs": beat.jobs_total,
        "price_per_hour": prices.get(name),
    }


def _plan(plan: PoolPlan, pool: PoolSnapshot) -> dict[str, Any]:
    return {
        "version": plan.version,
        "workers": len(plan.workers),
        "hosts": len({worker.host for worker in plan.workers}),
        "tokens_per_s": plan.tokens_per_s,
        "price_per_hour": plan.price_per_hour,
        "reason": named(plan.reason),
        "missing": _names(missing_of(plan, pool.workers)),
        "without_supervisor": _names(pool.unwatched),
    }


def _names(names: Sequence[str]) -> dict[str, Any]:
    """The first of some names, and how many there are."""
    return {"count": len(names), "first": [named(name) for name in names[:_MOST_NAMES]]}

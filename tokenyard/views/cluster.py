"""A cluster at one moment: pools, their devices, and batches."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from broker.jobs import BatchCounts
from broker.pool_plan import PoolPlan
from broker.store.server import ServerMemory
from tokenyard.cluster_snapshot import ClusterSnapshot, PoolSnapshot, batch_state
from tokenyard.device_prices import missing_of
from tokenyard.views.devices import device_table, plain_table
from tokenyard.views.text import counted, duration, name_cell, printable

_NO_POOLS = "no pools yet: start a worker with `tokenyard worker --model MODEL`"
#: Hosts that are named one by one.
_NAMED = 3
_NO_SCHEDULER = "none: start `tokenyard scheduler`"


def cluster_view(snapshot: ClusterSnapshot, left_s: Mapping[str, float | None] | None = None) -> RenderableType:
    """Everything one below the other.

    Args:
        snapshot: what to show.
        left_s: batch id -> seconds it still takes, None where that is not known. Without it, none is shown.
    """
    parts: list[RenderableType] = _memory(snapshot.memory) if snapshot.memory else []
    for pool in snapshot.pools:
        parts += [
            *_pool(pool),
            device_table(pool.workers, snapshot.clock, pool.depths) if pool.workers else Text("no workers"),
        ]
        parts.append(Text())
    if not snapshot.pools:
        parts += [Text(_NO_POOLS), Text()]
    parts.append(batch_table(snapshot.batches, left_s) if snapshot.batches else Text("no batches"))
    return Group(*parts)


def batch_table(batches: Mapping[str, BatchCounts], left_s: Mapping[str, float | None] | None) -> Table:
    """A row for each batch; ``left_s`` as in ``cluster_view``."""
    table = plain_table()
    table.add_column("batch", max_width=40)
    table.add_column("state", no_wrap=True)
    for name in ("jobs", "done", "failed", "cancelled", *(["time left"] if left_s is not None else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for batch_id, counts in batches.items():
        cells = [f"{n:,}" for n in (counts.total, counts.done, counts.failed, counts.cancelled)]
        if left_s is not None:
            left = left_s.get(batch_id)
            cells.append("" if counts.complete else "-" if left is None else duration(left))
        table.add_row(name_cell(batch_id), batch_state(counts), *cells)
    return table


def _memory(memory: ServerMemory) -> list[RenderableType]:
    """What is wrong with Redis' memory; nothing where all is well."""
    lines: list[RenderableType] = []
    if memory.full:
        text = f"Redis is out of memory: {memory.used / 2**20:,.0f} of {memory.limit / 2**20:,.0f} MiB are used."
        lines.append(Text(f"{text} Submitters wait, queued jobs go on: raise maxmemory, or free some", "bold red"))
    if memory.evicts:
        text = f"maxmemory-policy is {memory.policy}: when its memory is full, Redis deletes jobs. Set noeviction"
        lines.append(Text(text, "bold red"))
    return [*lines, Text()] if lines else []


def _pool(pool: PoolSnapshot) -> list[RenderableType]:
    waiting = ", ".join(f"{jobs:,} {level}" for level, jobs in pool.waiting.items() if jobs)
    delayed = f"; {pool.delayed:,} to be tried again" if pool.delayed else ""
    dead = f"; {counted(pool.dead_letters, 'dead letter')}" if pool.dead_letters else ""
    models = ", ".join(printable(model) for model in pool.models) or "no model"
    scheduler = Text(printable(pool.scheduler)) if pool.scheduler else Text(_NO_SCHEDULER, style="bold red")
    lines: list[RenderableType] = [
        Text.assemble(("pool ", "bold"), (printable(pool.name), "bold"), f": {models}"),
        Text.assemble("scheduler: ", scheduler),
        Text(f"waiting jobs: {waiting or 'none'}{delayed}{dead}"),
    ]
    if pool.unwatched:
        more = f" and {len(pool.unwatched) - _NAMED} more" if len(pool.unwatched) > _NAMED else ""
        names = ", ".join(map(printable, pool.unwatched[:_NAMED]))
        lines.append(Text(f"planned on {names}{more}, where no supervisor runs: start `tokenyard supervisor`"))
    if pool.plan is not None:
        lines.append(Text(_plan_words(pool.plan, pool)))
    return lines


def _plan_words(plan: PoolPlan, pool: PoolSnapshot) -> str:
    expected = f", {plan.tokens_per_s:,.0f} tokens/s expected" if plan.tokens_per_s else ""
    missing = missing_of(plan, pool.workers)
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    away = f"; not there: {', '.join(map(printable, missing[:_NAMED]))}{more}" if missing else ""
    hosts = counted(len({worker.host for worker in plan.workers}), "host")
    return f"plan {plan.version}: {counted(len(plan.workers), 'worker')} on {hosts}{expected}{away}"

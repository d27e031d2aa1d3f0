"""Plans for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.cluster_plan import ClusterPlan, EngineShare, PlannedMachine
from planner.estimate import Basis
from tokenyard.kernel_database import EXTRA, is_installed
from tokenyard.plan_json import gain
from tokenyard.planning import PlanOutcome
from tokenyard.views.devices import plain_table
from tokenyard.views.quantities import seconds
from tokenyard.views.text import counted, name_cell, percent, printable

#: Hosts that are named one by one.
_NAMED = 3
_DASH = "-"
_BASIS = {
    Basis.MEASURED: "measured",
    Basis.PREDICTED: "predicted",
    Basis.ROUGH: "rough estimate",
}


def outcome_view(outcome: PlanOutcome, what_if: str = "") -> RenderableType:
    """The plans beside each other, then the best in full.

    Args:
        outcome: what was found.
        what_if: the change that was asked for, as it was written.
    """
    best = outcome.result.best
    parts: list[RenderableType] = [_comparison(outcome, what_if), Text()]
    parts += [Text(line) for line in _remarks(outcome)]
    if outcome.batch is not None:
        parts += [*_batch(outcome.batch, outcome.jobs), Text()]
    parts += _whole("best", best)
    if outcome.result.runner_up is not None:
        parts += [Text(), Text("runner-up, by machine"), _machines(outcome.result.runner_up.machines)]
    if outcome.what_if is not None:
        parts += [Text(), *_whole(f"best with {printable(what_if)}", outcome.what_if)]
    return Group(*parts)


def _comparison(outcome: PlanOutcome, what_if: str) -> Table:
    table = plain_table()
    table.add_column("plan", no_wrap=True)
    for name in ("tokens/s", "requests/s", "to best", "per hour", "per million tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    best = outcome.result.best
    rows: list[tuple[str, ClusterPlan]] = [("best", best)]
    rows += [("runner-up", outcome.result.runner_up)] if outcome.result.runner_up else []
    rows += [(f"with {what_if}", outcome.what_if)] if outcome.what_if else []
    for name, plan in rows:
        cells = (_signed(gain(plan.tokens_per_s, best.tokens_per_s)), _price(plan.price_per_hour))
        row = (f"{plan.tokens_per_s:,.0f}", f"{plan.jobs_per_s:,.4g}", *cells, _price(plan.price_per_million_tokens))
        table.add_row(name_cell(name), *row)
    if outcome.today is not None:
        now = outcome.today.throughput
        share = _signed(gain(now.tokens_per_s, best.tokens_per_s))
        table.add_row("today", f"{now.tokens_per_s:,.0f}", f"{now.jobs_per_s:,.4g}", share, _DASH, _DASH)
    return table


def _remarks(outcome: PlanOutcome) -> list[str]:
    best, today = outcome.result.best, outcome.today
    lines = [_unproven(best)] if best.stopped else []
    if today is not None and (more := gain(best.tokens_per_s, today.throughput.tokens_per_s)) is not None:
        lines.append(f"gain over today's {counted(today.workers, 'worker')}: {100 * more:+.1f} % tokens/s")
    if today is not None and today.unknown:
        names = ", ".join(map(printable, today.unknown[:_NAMED]))
        lines.append(f"not in today's figures, for want of a profile: {names} ({len(today.unknown)})")
    if today is not None and today.throughput.unplaced > 0:
        lines.append(f"today's workers cannot hold {percent(today.throughput.unplaced)} of the requests")
    if outcome.result.left_out > 0:
        lines.append(f"{100 * outcome.result.left_out:.1f} % of the requests fit no configuration and are left out")
    for reason, idle in groupby(outcome.idle, key=lambda pair: pair[1]):
        names = [name for name, _ in idle]
        lines.append(f"{_hosts(names)} can run nothing: {reason}")
    if outcome.unwatched:
        lines.append(f"no supervisor on {_hosts(outcome.unwatched)}: what a plan has for it does not start there")
    rough = sorted({share.option.device for share in best.shares if share.option.basis is Basis.ROUGH})
    if rough:
        hint = "" if is_installed() else f" or, for a better first estimate, {EXTRA}"
        lines.append(f"rough, nobody measured an engine on {', '.join(rough)}: measure with `tokenyard profile`{hint}")
    return [*lines, ""] if lines else []


def _batch(plan: ClusterPlan, jobs: float) -> list[RenderableType]:
    span, price = plan.seconds(jobs), plan.price(jobs)
    used = [planned for planned in plan.machines if planned.engines]
    machines = counted(len(used), "machine")
    text = f"for {jobs:,.0f} requests: {machines}, done in {seconds(span)} at best, for {_price(price)}"
    if plan.stopped:
        text += f"\n{_unproven(plan)}"
    return [Text(text), _machines(used)]


def _unproven(plan: ClusterPlan) -> str:
    return f"the time for searching was over: another plan could be better by up to {100 * plan.gap:.2g} %"


def _whole(name: str, plan: ClusterPlan) -> list[RenderableType]:
    return [Text(f"{name}, by machine"), _machines(plan.machines), Text(), Text("what each does"), _shares(plan)]


def _machines(machines: Sequence[PlannedMachine]) -> Table:
    table = plain_table()
    table.add_column("machine", max_width=40)
    table.add_column("engines")
    ordered = sorted(machines, key=lambda planned: (_engines(planned), planned.machine.name))
    for engines, alike in groupby(ordered, key=_engines):
        table.add_row(name_cell(_hosts([planned.machine.name for planned in alike])), engines)
    return table


def _engines(planned: PlannedMachine) -> str:
    said = [
        f"{count} x {option.label}, {option.dtype}, {option.kind.profile.seats} seats, "
        f"{option.kind.profile.kv_tokens:,} KV tokens"
        for option, count in planned.engines
    ]
    return "; ".join(said) or "nothing"


def _shares(plan: ClusterPlan) -> Table:
    table = plain_table()
    table.add_column("engine", max_width=36)
    for name in ("engines", "tokens/s", "share", "each", "requests/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("times")
    for share in sorted(plan.shares, key=lambda share: -share.tokens_per_s):
        table.add_row(
            name_cell(share.option.label),
            f"{share.engines:,}",
            f"{share.tokens_per_s:,.0f}",
            percent(share.tokens_per_s / plan.tokens_per_s if plan.tokens_per_s else None),
            f"{share.tokens_per_s / share.engines:,.0f}",
            f"{share.jobs_per_s:,.4g}",
            _source(share),
        )
    return table


def _source(share: EngineShare) -> str:
    option = share.option
    return "measured" if option.basis is Basis.MEASURED else f"{_BASIS[option.basis]}, {option.source}"


def _hosts(names: Sequence[str]) -> str:
    if len(names) <= _NAMED:
        return ", ".join(names)
    return f"{names[0]} … {names[-1]} ({len(names)})"


def _price(price: float | None) -> str:
    return _DASH if price is None else f"{price:,.4g}"


def _signed(share: float | None) -> str:
    return _DASH if share is None else f"{100 * share:+.1f} %"

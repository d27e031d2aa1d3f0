"""Simulated runs for a terminal; everything here is called simulated."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.simulation_bound import Reached
from planner.simulation_report import DeviceUse, Percentiles, SimulationReport
from planner.what_if_report import Difference
from tokenyard.views.devices import plain_table
from tokenyard.views.quantities import seconds
from tokenyard.views.text import counted, name_cell, percent

#: More devices than this are shown by kind.
_MOST_ROWS = 16


def report_view(report: SimulationReport) -> RenderableType:
    """One run."""
    parts: list[RenderableType] = [Text(line) for line in report_lines(report)]
    parts += [Text(), _use_table(report.devices)]
    if report.done:
        parts += [Text(), _latency_table(report)]
    return Group(*parts)


def report_lines(report: SimulationReport) -> list[str]:
    """One run in some lines."""
    return [
        f"simulated: {counted(report.jobs, 'job')} on {counted(len(report.devices), 'device')}, policy {report.policy}",
        f"makespan {_span(report.makespan_s)}: {report.jobs_per_s:,.4g} jobs/s, {report.tokens_per_s:,.0f} tokens/s"
        f" ({report.prompt_tokens_per_s:,.0f} prompt, {report.output_tokens_per_s:,.0f} output)",
        *_reached_lines(report.reached),
        *_troubles(report),
    ]


def comparison_view(reports: Sequence[SimulationReport]) -> RenderableType:
    """The same jobs on the same devices under several policies, a row each."""
    first = reports[0]
    head = f"simulated: {counted(first.jobs, 'job')} on {counted(len(first.devices), 'device')}"
    bound = f"the bound, which no scheduler passes: {first.reached.bound_jobs_per_s:,.4g} jobs/s"
    table = plain_table()
    table.add_column("policy", no_wrap=True)
    for name in ("jobs/s", "tokens/s", "makespan", "over least", "steady", "50 %", "95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    for report in reports:
        over, latency = report.reached.makespan_over_lower_bound, report.arrival_to_result
        table.add_row(
            report.policy,
            f"{report.jobs_per_s:,.4g}",
            f"{report.tokens_per_s:,.0f}",
            _span(report.makespan_s),
            f"{over:.3f}" if over else "-",
            _share(report.reached.steady_share),
            seconds(latency and latency.p50),
            seconds(latency and latency.p95),
        )
    return Group(Text(head), Text(bound), *_legend(first.reached), Text(), table)


def difference_view(difference: Difference, before: SimulationReport, after: SimulationReport) -> RenderableType:
    """What a changed cluster does better or worse."""
    table = plain_table()
    table.add_column("simulated", no_wrap=True)
    for name in ("now", f"with {difference.change}", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    bounds = before.reached.bound_jobs_per_s, after.reached.bound_jobs_per_s
    table.add_row("jobs/s", *_row(before.jobs_per_s, after.jobs_per_s, ",.4g"))
    table.add_row("tokens/s", *_row(before.tokens_per_s, after.tokens_per_s, ",.0f"))
    table.add_row("bound, jobs/s", *_row(*bounds, ",.4g"))
    table.add_row("makespan, s", *_row(before.makespan_s, after.makespan_s, ",.4g"))
    times = before.arrival_to_result, after.arrival_to_result
    if times[0] and times[1]:
        table.add_row("time to result 50 %, s", *_row(times[0].p50, times[1].p50, ",.4g"))
        table.add_row("time to result 95 %, s", *_row(times[0].p95, times[1].p95, ",.4g"))
    parts: list[RenderableType] = [table, Text(), Text(_worth(difference, before, after))]
    if difference.added:
        parts += [Text(), Text("what the added devices do, simulated"), _use_table(difference.added)]
    return Group(*parts)


def _worth(difference: Difference, before: SimulationReport, after: SimulationReport) -> str:
    """What one device more or less is worth, in a line."""
    each = difference.gain_jobs_per_s_each
    if before.reached.load is not None:
        return "the jobs came over time, and no device makes them come sooner: see the bound and the times"
    if each is None or not before.jobs_per_s:
        return "as many devices came as went"
    which = "added" if len(after.devices) > len(before.devices) else "taken away"
    return f"each device {which}: {each:+,.4g} jobs/s ({100 * each / before.jobs_per_s:+.1f} % of now)"


def picture_title(report: SimulationReport) -> str:
    """What stands above the picture of a run."""
    jobs = counted(report.done, "job")
    return f"simulated, {report.policy}: {jobs} in {_span(report.makespan_s)}, {report.tokens_per_s:,.0f} tokens/s"


def _reached_lines(reached: Reached) -> list[str]:
    bound = f"the bound, {reached.bound_jobs_per_s:,.4g} jobs/s: the most that any scheduler can do"
    if reached.load is not None:
        return [f"load: the jobs came at {_share(reached.load)} of {bound}"]
    lines = [f"steady state: {_share(reached.steady_share)} of {bound}"]
    if reached.steady_share is None:
        lines = [f"{bound[0].upper()}{bound[1:]}", f"no share of it in steady state: {reached.note}"]
    if reached.makespan_over_lower_bound is not None:
        times = f"{reached.makespan_over_lower_bound:.3f} times the least possible, {_span(reached.lower_bound_s)}"
        lines.append(f"makespan: {times}")
    return lines


def _legend(reached: Reached) -> list[Text]:
    text = "over least: makespan over the least possible; steady: share of the bound in steady state"
    lines = [text] if reached.load is None else []
    lines += [f"no steady state: {reached.note}"] if reached.note else []
    return [Text(line, style="dim") for line in lines]


def _troubles(report: SimulationReport) -> list[str]:
    found = [
        (report.preemptions, f"{counted(report.preemptions, 'preemption')} for lack of KV memory"),
        (report.copies, f"{counted(report.copies, 'second run')} of stragglers"),
        (report.wasted_tokens, f"{report.wasted_tokens:,} tokens in vain"),
        (report.refused, f"{counted(report.refused, 'job')} failed on a device that cannot hold them"),
    ]
    line = "; ".join(text for number, text in found if number)
    return [line] if line else []


def _use_table(devices: Sequence[DeviceUse]) -> Table:
    table = plain_table()
    table.add_column("device", min_width=8, max_width=20)
    table.add_column("kind", max_width=28)
    for name in ("jobs", "tokens/s", "busy", "jobs at once", "KV used"):
        table.add_column(name, justify="right", no_wrap=True)
    for use in devices if len(devices) <= _MOST_ROWS else _by_kind(devices):
        table.add_row(
            name_cell(use.name),
            name_cell(use.device),
            f"{use.jobs:,}",
            f"{use.tokens_per_s:,.0f}",
            percent(use.busy_share),
            f"{use.jobs_at_once:,.4g}",
            percent(use.kv_share),
        )
    return table


def _by_kind(devices: Sequence[DeviceUse]) -> list[DeviceUse]:
    """A row for each kind: sums of what was done, means of the shares."""
    ordered = sorted(devices, key=lambda use: use.device)
    return [_together(kind, list(alike)) for kind, alike in groupby(ordered, key=lambda use: use.device)]


def _together(kind: str, alike: list[DeviceUse]) -> DeviceUse:
    known = [use.kv_share for use in alike if use.kv_share is not None]
    return DeviceUse(
        name=f"all {len(alike)}",
        device=kind,
        jobs=sum(use.jobs for use in alike),
        prompt_tokens=sum(use.prompt_tokens for use in alike),
        output_tokens=sum(use.output_tokens for use in alike),
        tokens_per_s=sum(use.tokens_per_s for use in alike),
        busy_share=sum(use.busy_share for use in alike) / len(alike),
        jobs_at_once=sum(use.jobs_at_once for use in alike) / len(alike),
        kv_share=sum(known) / len(known) if known else None,
    )


def _latency_table(report: SimulationReport) -> Table:
    table = plain_table()
    table.add_column("simulated times", no_wrap=True)
    for name in ("50 %", "90 %", "95 %", "99 %", "longest"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = (
        ("arrival to result", report.arrival_to_result),
        ("arrival to first token", report.arrival_to_first_token),
        ("dispatch to result", report.dispatch_to_result),
        ("token to token", report.token_interval),
    )
    for name, p in rows:
        if p is not None:
            table.add_row(name, *(seconds(value) for value in _values(p)))
    return table


def _values(p: Percentiles) -> tuple[float, ...]:
    return p.p50, p.p90, p.p95, p.p99, p.max


def _row(before: float, after: float, form: str) -> tuple[str, str, str]:
    share = f" ({100 * (after / before - 1):+.1f} %)" if before > 0 else ""
    return format(before, form), format(after, form), f"{format(after - before, '+' + form)}{share}"


def _span(value: float) -> str:
    """A time with four figures: runs are compared by it."""
    return f"{value:,.4g} s" if value < 10_000 else f"{value:,.0f} s"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"

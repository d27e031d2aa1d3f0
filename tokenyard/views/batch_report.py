"""The report of a batch for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tokenyard.batch_bound import Reached
from tokenyard.batch_report import BatchReport, DeviceReport, Percentiles, PredictionError
from tokenyard.views.devices import plain_table
from tokenyard.views.quantities import moment, seconds, signed_percent
from tokenyard.views.text import counted, name_cell, percent, printable

#: A share above this is more than the grain of the bound.
_FASTER = 1.02
_OF = {
    "bound": "the bound, {bound:,.4g} jobs/s: the most that any scheduler can do with these devices and lengths",
    "ideal": "the ideal (the sum of each device's best sustained rate)",
}


_ERRORS = "error: median of |predicted - actual| / actual; bias: sum of the predicted over sum of the actual, less 1"


def report_view(report: BatchReport) -> RenderableType:
    """Everything one below the other."""
    parts: list[RenderableType] = [Text(line) for line in report_lines(report)]
    if report.devices:
        parts += [Text(), _work_table(report), Text(), _time_table(report)]
        parts += [Text(_ERRORS, style="dim")] if report.time_error or report.length_error else []
    if report.submit_to_result and report.dispatch_to_result:
        parts += [Text(), _latency_table(report.submit_to_result, report.dispatch_to_result)]
    return Group(*parts)


def report_lines(report: BatchReport) -> list[str]:
    """The whole batch in some lines."""
    left = report.total - report.done - report.failed - report.cancelled
    retried = f", {report.retried:,} of them after a retry" if report.retried else ""
    still = f", {left:,} not ended yet" if left > 0 else ""
    endings = f"{report.done:,} done, {report.failed:,} failed, {report.cancelled:,} cancelled{still}{retried}"
    lines = [f"batch {printable(report.batch)}: {report.state}", f"{counted(report.total, 'job')}: {endings}"]
    if report.began:
        lines.append(
            f"{seconds(report.span_s)} from the first dispatch ({moment(report.began)}) to the last end:"
            f" {report.jobs_per_s:,.4g} jobs/s, {report.tokens_per_s:,.0f} tokens/s"
        )
    lines += [reached_line(report.reached)] if report.total else []
    wasted = report.wasted_prompt_tokens + report.wasted_output_tokens
    if wasted or report.copies:
        lines.append(
            f"wasted: {report.wasted_prompt_tokens:,} prompt and {report.wasted_output_tokens:,} output tokens;"
            f" {counted(report.copies, 'second run')} of stragglers, {report.copies_won:,} of them first"
        )
    return lines


def picture_title(report: BatchReport) -> str:
    """What stands above the picture of the batch's time line."""
    ended = counted(report.done + report.failed, "job")
    return f"{report.batch}: {ended} in {seconds(report.span_s)}, {report.tokens_per_s:,.0f} tokens/s"


def reached_line(reached: Reached) -> str:
    """The share of the bound in a line, or what is missing for it."""
    if reached.share is None or not reached.of:
        return f"share of the bound not known: {reached.note}"
    line = f"{percent(reached.share)} of {_OF[reached.of].format(bound=reached.bound_jobs_per_s or 0.0)}"
    note = reached.note or ("faster than the profiles say: measure them again" if reached.share > _FASTER else "")
    return f"{line}; {note}" if note else line


def _work_table(report: BatchReport) -> Table:
    table = plain_table()
    table.show_footer = True
    rows = report.devices
    tokens = sum(row.prompt_tokens for row in rows), sum(row.output_tokens for row in rows)
    table.add_column("device", "total", max_width=24)
    table.add_column("kind", max_width=20)
    totals = [sum(row.jobs for row in rows), sum(row.failed for row in rows), *tokens]
    for name, total in zip(("jobs", "failed", "prompt tokens", "output tokens"), totals, strict=True):
        table.add_column(name, f"{total:,}", justify="right", no_wrap=True)
    table.add_column("tokens/s", f"{report.tokens_per_s:,.0f}", justify="right", no_wrap=True)
    table.add_column("busy", justify="right", no_wrap=True)
    for row in rows:
        numbers = [f"{n:,}" for n in (row.jobs, row.failed, row.prompt_tokens, row.output_tokens)]
        rate = [f"{row.tokens_per_s:,.0f}", percent(row.busy_share)] if row.name else ["-", "-"]
        table.add_row(_name(row), name_cell(row.device), *numbers, *rate)
    return table


def _time_table(report: BatchReport) -> Table:
    """Times from dispatch to result, and the errors of what was predicted of them."""
    table = plain_table()
    table.show_footer = True
    of_all = report.dispatch_to_result
    table.add_column("dispatch to result", "all", max_width=24)
    for name, footer in (("median", of_all and of_all.p50), ("95 %", of_all and of_all.p95)):
        table.add_column(name, seconds(footer), justify="right", no_wrap=True)
    for name, error in (("time", report.time_error), ("length", report.length_error)):
        table.add_column(f"{name} error", _off(error), justify="right", no_wrap=True)
        table.add_column("bias", _bias(error), justify="right", no_wrap=True)
    for row in report.devices:
        if row.name:
            errors = [cell for error in (row.time_error, row.length_error) for cell in (_off(error), _bias(error))]
            table.add_row(_name(row), seconds(row.median_s), seconds(row.p95_s), *errors)
    return table


def _latency_table(submitted: Percentiles, dispatched: Percentiles) -> Table:
    table = plain_table()
    table.add_column("time to result", no_wrap=True)
    for name in ("50 %", "90 %", "95 %", "99 %", "longest"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, p in (("from submission", submitted), ("from dispatch", dispatched)):
        table.add_row(name, *(seconds(value) for value in (p.p50, p.p90, p.p95, p.p99, p.max)))
    return table


def _name(row: DeviceReport) -> Text:
    return name_cell(row.name or "(no device)")


def _off(error: PredictionError | None) -> str:
    return percent(error.median_absolute if error else None)


def _bias(error: PredictionError | None) -> str:
    return signed_percent(error.bias if error else None)

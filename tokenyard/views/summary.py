"""The closing table: who did what, and how near the cluster came to its devices' best."""

from __future__ import annotations

from rich.table import Table

from tokenyard.device_tally import DeviceSummary, DeviceTally
from tokenyard.views.devices import plain_table
from tokenyard.views.text import counted, duration, name_cell, percent


def summary_table(tally: DeviceTally) -> Table:
    """A row for each device, and their total."""
    devices = tally.summaries()
    total = _total(devices)
    table = plain_table()
    table.show_footer = True
    table.add_column("device", "total", max_width=24)
    table.add_column("kind", max_width=24)
    for name, cell in zip(("jobs", "failed", "output tokens", "tokens/s"), _numbers(total), strict=True):
        table.add_column(name, cell, justify="right", no_wrap=True)
    table.add_column("busy", justify="right", no_wrap=True)
    table.add_column("of tokens", percent(1.0 if _tokens(total) else None), justify="right", no_wrap=True)
    for device in devices:
        share = _tokens(device) / _tokens(total) if _tokens(total) else None
        table.add_row(
            name_cell(device.name or "(no device)"),
            name_cell(device.device),
            *_numbers(device),
            percent(device.busy_share) if device.name else "-",
            percent(share),
        )
    return table


def summary_line(tally: DeviceTally) -> str:
    """The whole run in one line."""
    total = _total(tally.summaries())
    line = f"{counted(total.jobs, 'job')} in {duration(tally.elapsed_s)}, {total.tokens_per_s:,.0f} tokens/s"
    share = tally.share_of_ideal()
    if share is None:
        return line
    return f"{line}, {percent(share)} of the ideal (the sum of each device's best sustained rate)"


def _numbers(row: DeviceSummary) -> list[str]:
    return [f"{row.jobs:,}", f"{row.failed:,}", f"{row.output_tokens:,}", f"{row.tokens_per_s:,.0f}"]


def _tokens(row: DeviceSummary) -> int:
    return row.prompt_tokens + row.output_tokens


def _total(devices: list[DeviceSummary]) -> DeviceSummary:
    return DeviceSummary(
        name="total",
        device="",
        engine="",
        model="",
        jobs=sum(d.jobs for d in devices),
        failed=sum(d.failed for d in devices),
        prompt_tokens=sum(d.prompt_tokens for d in devices),
        output_tokens=sum(d.output_tokens for d in devices),
        tokens_per_s=sum(d.tokens_per_s for d in devices),
        output_tokens_per_s=sum(d.output_tokens_per_s for d in devices),
        best_tokens_per_s=sum(d.best_tokens_per_s for d in devices),
        busy_share=0.0,
    )

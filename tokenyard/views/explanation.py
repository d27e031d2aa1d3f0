"""The explanation of a job for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from broker.job_record import JobRecord
from broker.jobs import JobState
from tokenyard.job_explanation import REASONS, DeviceCost, Explanation
from tokenyard.views.devices import plain_table
from tokenyard.views.quantities import moment, seconds, signed_percent
from tokenyard.views.text import name_cell, printable


def explanation_view(explanation: Explanation) -> RenderableType:
    """Everything one below the other."""
    job = explanation.job
    parts: list[RenderableType] = [
        Text(f"job {printable(job.job_id)} (custom_id {printable(job.custom_id)}): {state_in_words(job)}"),
        _history(explanation),
    ]
    if job.dispatched:
        parts += [Text(), _predictions(explanation)]
    if explanation.devices:
        parts += [Text(), _costs(explanation.devices)]
    parts += [Text(line, style="dim") for line in notes(explanation)]
    return Group(*parts)


def state_in_words(job: JobRecord) -> str:
    """Where the job is, in a few words."""
    tries = f", attempt {job.attempt}" if job.attempt > 1 else ""
    if job.state is JobState.QUEUED:
        return f"waits for a device{tries}"
    if job.state is JobState.DISPATCHED:
        where = f"{printable(job.worker)} and {printable(job.copy)}" if job.copy else printable(job.worker)
        return f"on {where}, waiting there or running{tries}"
    if job.state is JobState.DELAYED:
        return f"failed for now, waits to be tried again{tries}"
    if job.state is JobState.DONE:
        return f"done{tries}"
    why = printable(job.error) or (f"status {job.status_code}" if job.status_code else "no reason given")
    return f"{job.state.value}{tries}: {why}"


def notes(explanation: Explanation) -> list[str]:
    """What the costs are reckoned with, and what is missing."""
    job, lengths, devices = explanation.job, explanation.lengths, explanation.devices
    lines: list[str] = []
    if lengths.output_tokens is None:
        lines.append("how many tokens it will generate is not predicted yet: no costs")
    elif not lengths.known:
        lines.append(
            f"reckoned with about {lengths.prompt_tokens:,} prompt tokens, by the request's size, and"
            f" {lengths.output_tokens:,} output tokens"
        )
    if not devices:
        lines.append("no device of its pool is known now: no costs")
    elif job.worker and not any(row.chosen for row in devices):
        lines.append(f"{printable(job.worker)} has left the pool: nothing to compare with")
    elif lengths.output_tokens and all(row.device_s is None for row in devices if row.fits):
        lines.append("no profile known: run `tokenyard profile` for the costs")
    return lines


def _history(explanation: Explanation) -> Table:
    job = explanation.job
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_row("submitted", moment(job.submitted), f"{seconds(max(0.0, explanation.now - job.submitted))} ago")
    if job.dispatched:
        where = f"to {printable(job.worker)}" if job.worker else ""
        because = f", because {printable(explanation.because)}" if explanation.because else ""
        table.add_row("dispatched", _after(job, job.dispatched), Text(f"{where}{because}"))
    if job.copy:
        where = f"to {printable(job.copy)}, too: {REASONS['copy']}"
        table.add_row("copied", _after(job, job.copy_dispatched), Text(where))
    if job.started:
        table.add_row("started", _after(job, job.started), "")
    if job.ended:
        table.add_row("ended", _after(job, job.ended), Text(f"status {job.status_code}" if job.status_code else ""))
    return table


def _after(job: JobRecord, at: float) -> str:
    return f"{seconds(max(0.0, at - job.submitted))} after"


def _predictions(explanation: Explanation) -> Table:
    job = explanation.job
    table = plain_table()
    table.add_column("")
    for name in ("predicted", "actual", "off by"):
        table.add_column(name, justify="right", no_wrap=True)
    predicted_s = job.predicted_s or None
    actual_tokens = job.output_tokens if job.state is JobState.DONE else None
    table.add_row(
        "dispatch to result",
        seconds(predicted_s),
        seconds(explanation.actual_s),
        signed_percent(_off(predicted_s, explanation.actual_s)),
    )
    predicted_tokens = job.predicted_output_tokens or None
    off = signed_percent(_off(predicted_tokens, actual_tokens))
    table.add_row("output tokens", _count(predicted_tokens), _count(actual_tokens), off)
    if job.prompt_tokens:
        table.add_row("prompt tokens", "", _count(job.prompt_tokens), "")
        table.add_row("of them cached", "", _count(job.cached_tokens), "")
    return table


def _costs(devices: list[DeviceCost]) -> Table:
    table = plain_table()
    table.add_column("device", max_width=24)
    table.add_column("kind", max_width=20)
    table.add_column("fits", no_wrap=True)
    for name in ("device time", "relative", "alone there"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in devices:
        fits = "-" if row.fits is None else "yes" if row.fits else f"no: {row.why_not}"
        name = name_cell(f"{'* ' if row.chosen else '  '}{row.name}")
        if row.chosen:
            name.stylize("bold")
        relative = "-" if row.relative is None else f"{row.relative:.2f}"
        table.add_row(name, name_cell(row.device), fits, seconds(row.device_s), relative, seconds(row.alone_s))
    return table


def _off(predicted: float | None, actual: float | None) -> float | None:
    return predicted / actual - 1 if predicted and actual else None


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"

"""Commands that look back: the report of a batch, the explanation of a job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from broker.client import connect_client
from broker.settings import Settings
from tokenyard.cli.runtime import RedisUrl, err, out, redis_url_of, run, settings_of

if TYPE_CHECKING:
    from tokenyard.batch_report import BatchReport
    from tokenyard.ended_jobs import JobColumns


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("report")(report_command)
    app.command("explain")(explain_command)


def report_command(
    batch: Annotated[str, typer.Argument(metavar="BATCH", help="Id of the batch, as `tokenyard submit` printed it.")],
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw what the devices did over time: FILE.svg or FILE.png.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    redis_url: RedisUrl = None,
) -> None:
    """Show what became of a batch: rates, the share of the bound, each device's part, how good predictions were."""
    settings = settings_of(redis_url=redis_url)
    run(_report(settings, batch, plot, as_json), settings)


async def _report(settings: Settings, batch: str, plot: Path | None, machine: bool) -> None:
    # numpy and the solver take a moment to load, which no other command should wait for
    from tokenyard.batch_reading import read_report
    from tokenyard.views.batch_report import report_view
    from tokenyard.views.timeline import check_path

    if plot is not None:
        check_path(plot)
    async with connect_client(redis_url_of(settings), settings.result_ttl_s) as client:
        report, jobs = await read_report(client, batch)
    if machine:
        _print_json(report)
    else:
        out.print(report_view(report), soft_wrap=False)
    if plot is not None:
        _say(_plot(report, jobs, plot))


def _plot(report: BatchReport, jobs: JobColumns, path: Path) -> str:
    """Draw the time line; what became of it in a line."""
    from tokenyard.batch_timeline import timeline_of
    from tokenyard.views.batch_report import picture_title
    from tokenyard.views.timeline import draw

    ran = jobs.ran()
    if not len(ran):
        return "no picture: no job has ended on a device yet"
    draw(timeline_of(ran), path, picture_title(report))
    return f"time line drawn to {path}"


def explain_command(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Id of the job; with --batch, its custom_id.")],
    batch: Annotated[str | None, typer.Option(metavar="BATCH", help="The batch that JOB is a custom_id of.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    redis_url: RedisUrl = None,
) -> None:
    """Show why a job went to its device, what others would have cost, and how good the predictions were."""
    settings = settings_of(redis_url=redis_url)
    run(_explain(settings, job, batch, as_json), settings)


async def _explain(settings: Settings, job: str, batch: str | None, machine: bool) -> None:
    from tokenyard.job_lookup import explain_job
    from tokenyard.views.explanation import explanation_view

    async with connect_client(redis_url_of(settings), settings.result_ttl_s) as client:
        found = await explain_job(client, job, batch)
    if machine:
        _print_json(found)
    else:
        out.print(explanation_view(found), soft_wrap=False)


def _print_json(value: Any) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(value)))


def _say(text: str) -> None:
    err.print(text, markup=False, highlight=False)

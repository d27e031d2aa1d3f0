"""The command ``submit``: queue a batch file on a cluster that runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import orjson
import typer

from broker.client import SubmitOptions, Submitted, connect_client, new_batch_id
from broker.errors import InputFileError, UsageError
from broker.jobs import Priority
from broker.settings import Settings
from broker.tenant_names import id_of_tenant
from tokenyard.batch_files import read_requests
from tokenyard.cli.runtime import RedisUrl, err, redis_url_of, run, settings_of
from tokenyard.refused_lines import RefusedLines
from tokenyard.spans import parse_span
from tokenyard.views.text import counted

_BATCH_ID = re.compile(r"(?!input_)([A-Za-z0-9_-]+:)?[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DURABLE = "Return only once the jobs are on Redis' disk, or say what is promised instead."
_WAIT = "Where the queue or Redis' memory is full: wait, or fail."
_TIMEOUT = "Longest time a request may run (90s, 30m); it is tried again, then fails."
_WINDOW = "What has not ended of the batch after this time (8h, 1d) expires."


@dataclass(frozen=True, slots=True)
class _Asked:
    source: Path
    priority: Priority
    batch: str | None
    errors: Path | None
    as_json: bool
    options: SubmitOptions


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(submit)


def submit(
    source: Annotated[Path, typer.Argument(metavar="IN", help="OpenAI Batch file (.jsonl or .jsonl.gz).")],
    priority: Annotated[Priority, typer.Option(help="Jobs of a higher level go first.")] = Priority.NORMAL,
    batch: Annotated[
        str | None, typer.Option(help="Id of the batch; one that exists is gone on with, nothing runs twice.")
    ] = None,
    errors: Annotated[Path | None, typer.Option(help="File of its own for the lines that cannot run.")] = None,
    durable: Annotated[bool, typer.Option("--durable/--no-durable", help=_DURABLE)] = True,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help=_WAIT)] = True,
    timeout: Annotated[str | None, typer.Option(metavar="TIME", help=_TIMEOUT)] = None,
    completion_window: Annotated[str | None, typer.Option(metavar="TIME", help=_WINDOW)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    tenant: Annotated[
        str | None, typer.Option(help="Whose the batch is [TOKENYARD_TENANT].", show_default=False)
    ] = None,
    redis_url: RedisUrl = None,
) -> None:
    """Queue a batch file. Prints the batch's id alone on standard output."""
    settings = settings_of(redis_url=redis_url, tenant=tenant)

    async def main() -> None:
        options = SubmitOptions(
            durable=durable,
            durable_replicas=settings.durable_replicas,
            wait=wait,
            max_backlog_jobs=settings.max_backlog_jobs,
            max_backlog_bytes=settings.max_backlog_bytes,
            timeout_s=parse_span(timeout, "--timeout") if timeout else 0.0,
            completion_window_s=parse_span(completion_window, "--completion-window") if completion_window else 0.0,
            report=_say,
        )
        await _submit(settings, _Asked(source, priority, batch, errors, as_json, options))

    run(main(), settings)


async def _submit(settings: Settings, asked: _Asked) -> None:
    source, batch = asked.source, asked.batch
    if batch is not None and not _BATCH_ID.fullmatch(batch):
        raise UsageError(f"--batch {batch!r}: use letters, digits, '.', '_' and '-', not beginning with 'input_'")
    batch_id = id_of_tenant(settings.tenant, batch) if batch else new_batch_id(settings.tenant)
    requests = read_requests(source, max_line_bytes=settings.max_request_bytes)
    with RefusedLines(asked.errors, _say) as refused:
        async with connect_client(redis_url_of(settings), settings.result_ttl_s) as client:
            complete = False
            try:
                report = await client.submit(
                    refused.without(requests),
                    batch_id,
                    priority=asked.priority,
                    source=str(source),
                    options=asked.options,
                )
                complete = True
            finally:
                if not complete and refused.passed:
                    _say(
                        f"batch {batch_id} may hold a part of {source}: `tokenyard submit {source} --batch {batch_id}`"
                        f" goes on with it, `tokenyard cancel {batch_id}` ends it"
                    )
            for error in report.refused:
                refused.add(error)
            if not report.accepted + report.known:
                refused.say_how_many()
                raise InputFileError(f"{source}: no line can run; the reasons are above")
            await client.seal(batch_id)
        refused.say_how_many()
    _tell(report, refused.count, batch_id, asked.as_json)


def _tell(report: Submitted, refused: int, batch_id: str, as_json: bool) -> None:
    known = f", {report.known:,} known already" if report.known else ""
    _say(f"{counted(report.accepted, 'job')} queued{known}; `tokenyard follow {batch_id}` shows how far they are")
    if report.promise:
        _say(report.promise)
    if as_json:
        fields = {
            "batch": batch_id,
            "accepted": report.accepted,
            "known": report.known,
            "refused": refused,
            "on_disk": report.on_disk,
            "replicas": report.replicas,
        }
        typer.echo(orjson.dumps(fields))
    else:
        typer.echo(batch_id)


def _say(text: str) -> None:
    err.print(text, markup=False, highlight=False)

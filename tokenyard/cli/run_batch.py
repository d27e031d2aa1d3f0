"""The command ``run``: one batch file through a one-machine cluster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from broker.concurrency import on_stop_signals
from broker.errors import UsageError
from broker.settings import Settings
from tokenyard.batch_files import BatchOutput, errors_path_of, read_requests
from tokenyard.batch_run import BatchRun, RunOptions
from tokenyard.cli.runtime import PoolName, RedisUrl, err, run, settings_of
from tokenyard.engine_choice import names_of
from tokenyard.local_cluster import demo_workers, parse_worker, usable_cores
from tokenyard.views.progress import ProgressView
from tokenyard.views.summary import summary_line, summary_table
from tokenyard.views.text import counted
from workers.engines.cpu_precision import cpu_dtype


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    app.command("run")(run_command)


def run_command(
    source: Annotated[Path, typer.Argument(metavar="IN", help="OpenAI Batch file (.jsonl or .jsonl.gz).")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="File for the responses.")],
    errors: Annotated[Path | None, typer.Option(help="File for failed requests; OUT.errors otherwise.")] = None,
    model: Annotated[str, typer.Option(help="Directory or hub name of the model; 'demo' for the demo's.")] = "demo",
    served_name: Annotated[
        list[str] | None, typer.Option(help="Name that requests call the model by (repeatable).")
    ] = None,
    worker: Annotated[
        list[str] | None,
        typer.Option(help="A worker to start, as 'NAME: OPTIONS of tokenyard worker' (repeatable)."),
    ] = None,
    retry_failed: Annotated[bool, typer.Option(help="Run requests again that failed in an earlier run.")] = False,
    policy: Annotated[str | None, typer.Option(help="Placement policy [TOKENYARD_POLICY].")] = None,
    pool: PoolName = None,
    state_dir: Annotated[Path | None, typer.Option(help="Data and logs [TOKENYARD_STATE_DIR].")] = None,
    redis_url: RedisUrl = None,
) -> None:
    """Run a batch file on this machine: server, scheduler and workers included.

    Started again over the same files it goes on where it was. Ctrl-C finishes what runs and says what is left.
    """
    names = names_of(model, tuple(served_name or ()))
    settings = settings_of(redis_url=redis_url, pool=pool, state_dir=state_dir, policy=policy)
    if "pool" not in settings.model_fields_set:
        settings = settings.model_copy(update={"pool": _pool_of(names[0])})
    run(_run(source, output, errors, model, names, worker or [], retry_failed, settings), settings)


async def _run(
    source: Path,
    output: Path,
    errors: Path | None,
    model: str,
    names: tuple[str, ...],
    workers: list[str],
    retry_failed: bool,
    settings: Settings,
) -> int:
    from broker.policies import make_policy  # with NumPy, which no other command here needs

    make_policy(settings.policy)  # an unknown one is refused before anything is started
    specs = [parse_worker(text, number) for number, text in enumerate(workers, 1)]
    specs = specs or demo_workers(usable_cores(), cpu_dtype())
    if len({spec.name for spec in specs}) < len(specs):
        raise UsageError("two workers have the same name: give each its own, as in --worker 'fast: --seats 32'")
    if names != names_of(model):
        words = tuple(word for name in names for word in ("--served-name", name))
        specs = [type(spec)(spec.name, (*words, *spec.options)) for spec in specs]
    options = RunOptions(source, output, model, names, tuple(specs))
    lines = read_requests(source, max_line_bytes=settings.max_request_bytes)
    with BatchOutput.open(output, errors, retry_failed=retry_failed) as files:
        with ProgressView(err) as view:
            batch = BatchRun(options, settings, files, view)
            on_stop_signals(lambda _name: batch.stop())
            await batch.run(lines)
        return _close(batch, options, errors or errors_path_of(output))


def _close(batch: BatchRun, options: RunOptions, errors: Path) -> int:
    """The closing table, and how it went as an exit code."""
    if batch.answered or batch.failed:
        err.print(summary_table(batch.tally))
        _say(summary_line(batch.tally))
    if batch.skipped:
        _say(f"finished before and not run again: {counted(batch.skipped, 'request')}")
    _say(f"{counted(batch.answered, 'response')} written to {options.output}")
    if batch.failed or batch.refused:
        _say(f"{counted(batch.failed + batch.refused, 'request')} without a response; the reasons are in {errors}")
    if batch.stopped and batch.left:
        more = " or more" if batch.more else ""
        _say(f"stopped: {counted(batch.left, 'request')}{more} left; the same command goes on with the rest")
        return 130
    return 1 if not batch.answered and batch.failed else 0


def _say(text: str) -> None:
    err.print(text, markup=False, highlight=False)


def _pool_of(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")[-64:] or "default"

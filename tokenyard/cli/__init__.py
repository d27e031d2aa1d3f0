"""The command line ``tokenyard``: one module for each group of commands."""

from __future__ import annotations

import typer

from tokenyard import __version__
from tokenyard.cli import (
    acl,
    batches,
    dead,
    device,
    plan,
    planner,
    processes,
    profile,
    ray,
    report,
    run_batch,
    serve,
    simulate,
    supervisor,
    tenants,
    traces,
)

app = typer.Typer(
    name="tokenyard",
    help="Run large batches of LLM requests over a mixed pool of accelerators.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tokenyard {__version__}")
        raise typer.Exit


@app.callback()
def _root(  # pyright: ignore[reportUnusedFunction]  typer calls it
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    del version


run_batch.add_to(app)
batches.add_to(app)
dead.add_to(app)
device.add_to(app)
report.add_to(app)
processes.add_to(app)
serve.add_to(app)
profile.add_to(app)
simulate.add_to(app)
plan.add_to(app)
planner.add_to(app)
supervisor.add_to(app)
ray.add_to(app)
acl.add_to(app)
tenants.add_to(app)
traces.add_to(app)

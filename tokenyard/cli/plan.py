"""The command ``plan``: what to run on which machine."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
import typer

from broker.connection import connected
from broker.settings import Settings
from broker.store.monitor import MonitorStore
from broker.store.profiles import ProfileStore
from tokenyard.cli.request_options import BatchFile, BytesPerToken, Context, Dtypes, GpuMemory, MeanOutput, Seats, Trace
from tokenyard.cli.runtime import PoolName, RedisUrl, err, out, redis_url_of, run, settings_of
from tokenyard.spans import parse_span

if TYPE_CHECKING:
    from broker.heartbeat import Heartbeat
    from broker.profiles import ProfileRecord
    from broker.store.plans import StoredPlan
    from tokenyard.planning import PlanOutcome
    from tokenyard.simulation_choice import RequestChoice

_INVENTORY = "Machines as TOML or JSON; without it, this host alone."
_PROFILES = "What `tokenyard profile` wrote, a folder of these, or one with fits.csv and kv.csv; repeatable."
_LENGTHS = "Requests of these lengths, tokens: 1000,200; in parts: 3x1000,200. Repeatable."
_DEADLINE = "The machines that do the requests in this time (90s, 30m, 2h) at the least price."
_BUDGET = "The machines that do the requests for this price in the least time."
_WRITE = "Write the plan (with a budget or a deadline, that one's) for the pool's supervisors."


class _Asked(NamedTuple):
    """The words of the command line."""

    inventory: Path | None
    model: str
    served_names: tuple[str, ...]
    lengths: tuple[str, ...]
    requests: RequestChoice
    profiles: tuple[Path, ...]
    dtypes: tuple[str, ...]
    seats: tuple[int, ...]
    utilization: float
    context: int
    what_if: str | None
    deadline: str | None
    budget: float | None

    @property
    def model_words(self) -> tuple[str, ...]:
        """The options of ``tokenyard worker`` that name the model."""
        return ("--model", self.model, *(word for name in self.served_names for word in ("--served-name", name)))


class _Output(NamedTuple):
    """What becomes of the plan."""

    plot: Path | None
    as_json: bool
    write: bool


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    app.command("plan")(plan_command)


def plan_command(
    model: Annotated[str, typer.Option(help="Folder of the model, or a well-known one's name; 'demo' for the demo's.")],
    inventory: Annotated[Path | None, typer.Argument(metavar="INVENTORY", help=_INVENTORY)] = None,
    served_name: Annotated[list[str] | None, typer.Option(help="Name that profiles call the model by.")] = None,
    lengths: Annotated[list[str] | None, typer.Option(metavar="PROMPT,OUTPUT", help=_LENGTHS)] = None,
    trace: Trace = None,
    columns: Annotated[
        str, typer.Option(metavar="PROMPT,OUTPUT", help="Its columns, where the header is not known.")
    ] = "",
    batch: BatchFile = None,
    mean_output: MeanOutput = None,
    bytes_per_token: BytesPerToken = 4.0,
    jobs: Annotated[int | None, typer.Option(min=1, max=10**12, help="So many requests of these lengths.")] = None,
    profiles: Annotated[list[Path] | None, typer.Option(metavar="PATH", help=_PROFILES)] = None,
    dtype: Dtypes = None,
    seats: Seats = None,
    gpu_memory_utilization: GpuMemory = 0.9,
    context: Context = 0,
    what_if: Annotated[str | None, typer.Option(metavar="CHANGE", help="With other devices, too: '+2xL4'.")] = None,
    deadline: Annotated[str | None, typer.Option(metavar="TIME", help=_DEADLINE)] = None,
    budget: Annotated[float | None, typer.Option(min=0.0, help=_BUDGET)] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the plans: FILE.svg or FILE.png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    write: Annotated[bool, typer.Option("--write", help=_WRITE)] = False,
    pool: PoolName = None,
    redis_url: RedisUrl = None,
) -> None:
    """Plan what to run on which machine: the best, the runner-up and today's, with what each device contributes.

    Throughput is predicted from measured profiles; with a Redis, those of the pool and what runs there today count in.
    """
    from tokenyard.simulation_choice import RequestChoice

    settings = settings_of(redis_url=redis_url, pool=pool)
    requests = RequestChoice(trace, columns, batch, mean_output, bytes_per_token, jobs)
    asked = _Asked(
        inventory,
        model,
        tuple(served_name or ()),
        tuple(lengths or ()),
        requests,
        tuple(profiles or ()),
        tuple(dtype or ()),
        tuple(seats or ()),
        gpu_memory_utilization,
        context,
        what_if,
        deadline,
        budget,
    )
    run(_plan(asked, settings, _Output(plot, as_json, write)), settings)


async def _plan(asked: _Asked, settings: Settings, output: _Output) -> None:
    from tokenyard.plan_json import outcome_json
    from tokenyard.views.plan import outcome_view
    from tokenyard.views.timeline import check_path

    if output.plot is not None:
        check_path(output.plot)
    # Read before the search: a plan that is written while it runs is one that nobody here has seen.
    over = await _stored(settings) if output.write else None
    records, beats = await _of_pool(settings) if settings.redis_url else ([], None)
    outcome = _outcome(asked, settings, records, beats)
    if settings.redis_url:
        outcome = replace(outcome, unwatched=await _unwatched(settings, outcome))
    if output.as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(outcome_json(outcome))))
    else:
        out.print(outcome_view(outcome, asked.what_if or ""), soft_wrap=False)
    if output.plot is not None:
        _draw(outcome, asked, output.plot)
    if over is not None:
        await _write(outcome, asked, settings, over)


async def _stored(settings: Settings) -> StoredPlan:
    from tokenyard.plan_writing import read_plan

    async with connected(redis_url_of(settings)) as redis:
        return await read_plan(redis, settings.pool)


async def _write(outcome: PlanOutcome, asked: _Asked, settings: Settings, over: StoredPlan) -> None:
    from tokenyard.plan_writing import write_plan

    plan = outcome.batch or outcome.result.best
    async with connected(redis_url_of(settings)) as redis:
        said = await write_plan(redis, settings.pool, plan, over, asked.model_words, asked.utilization)
    err.print(said, markup=False, highlight=False)


def _outcome(
    asked: _Asked, settings: Settings, records: list[ProfileRecord], beats: dict[str, Heartbeat | None] | None
) -> PlanOutcome:
    from tokenyard.inventory_file import read_inventory, this_host
    from tokenyard.model_config import read_model
    from tokenyard.planning import (
        PlanChoice,
        check_models,
        make_plan,
        parse_what_if,
        read_measured,
        read_mix,
        space_of,
    )
    from tokenyard.simulation import generator

    deadline_s = parse_span(asked.deadline) if asked.deadline else None
    what_if = parse_what_if(asked.what_if)
    shape = read_model(asked.model)
    names = (*asked.served_names, asked.model)
    machines = read_inventory(asked.inventory) if asked.inventory else (this_host(platform.node() or "this-host"),)
    measured = read_measured(asked.profiles, records)
    check_models(measured, shape, names)
    classes, jobs = read_mix(asked.lengths, asked.requests, generator(0), settings.max_request_bytes)
    space = space_of(shape, asked.dtypes, asked.seats, asked.utilization, asked.context)
    choice = PlanChoice(machines, space, names, what_if, deadline_s, asked.budget)
    return make_plan(choice, classes, jobs, measured, beats)


async def _of_pool(settings: Settings) -> tuple[list[ProfileRecord], dict[str, Heartbeat | None]]:
    async with connected(redis_url_of(settings)) as redis:
        records = await ProfileStore(redis, settings.pool).all()
        return records, await MonitorStore(redis, settings.pool).heartbeats()


async def _unwatched(settings: Settings, outcome: PlanOutcome) -> tuple[str, ...]:
    """Hosts without a supervisor, where the pool has any: without, its workers are started by hand."""
    from broker.store.plans import PlanStore

    hosts = [planned.machine.name for planned in outcome.result.best.machines]
    async with connected(redis_url_of(settings)) as redis:
        without = await PlanStore(redis, settings.pool).without_supervisor(hosts)
    return tuple(without) if len(without) < len(hosts) else ()


def _draw(outcome: PlanOutcome, asked: _Asked, path: Path) -> None:
    from broker.errors import UsageError
    from tokenyard.views.plan_figure import PlanBar, save

    plans = [("best", outcome.result.best), ("runner-up", outcome.result.runner_up)]
    plans.append((f"with {asked.what_if}", outcome.what_if))
    bars = [
        PlanBar(name, [(share.option.label, share.tokens_per_s) for share in plan.shares])
        for name, plan in plans
        if plan is not None
    ]
    if outcome.today is not None:
        bars.append(PlanBar("today", [("today's workers", outcome.today.throughput.tokens_per_s)]))
    try:
        save(bars, path, f"{asked.model}: plans by what each kind of engine does")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
    err.print(f"plans drawn to {path}", markup=False, highlight=False)

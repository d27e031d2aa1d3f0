"""The command ``simulate``: what a cluster would do, without it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from broker.connection import connected
from broker.settings import Settings
from broker.store.monitor import MonitorStore
from tokenyard.cli.request_options import BatchFile, BytesPerToken, MeanOutput, Trace
from tokenyard.cli.runtime import PoolName, RedisUrl, err, out, redis_url_of, run, settings_of

if TYPE_CHECKING:
    from broker.heartbeat import Heartbeat
    from tokenyard.simulation import Run, Setting
    from tokenyard.simulation_choice import ClusterChoice, RequestChoice

_PROFILES = "Folder with fits.csv and kv.csv, or what `tokenyard profile` wrote; repeatable."
_PLOT = "Draw what the devices did over time: FILE.svg or FILE.png. Of several runs the last."
_SLOW = "A device runs slower for a while, seconds from the start: L4-1@100-200x3. Repeatable."


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    app.command("simulate")(simulate_command)


def simulate_command(
    cluster: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Clusters as JSON: name -> list of device, model, tp, count.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Which cluster of the file, where it has several.")] = None,
    devices: Annotated[str | None, typer.Option(help="A cluster in a word instead: '2xH100-SXM,4xL4'.")] = None,
    model: Annotated[str, typer.Option(help="Model of the devices in --devices.")] = "",
    from_redis: Annotated[bool, typer.Option("--from-redis", help="The devices of the running pool instead.")] = False,
    profiles: Annotated[list[Path] | None, typer.Option(metavar="PATH", help=_PROFILES)] = None,
    trace: Trace = None,
    columns: Annotated[
        str, typer.Option(metavar="PROMPT,OUTPUT[,TIME]", help="Its columns, where the header is not known.")
    ] = "",
    batch: BatchFile = None,
    mean_output: MeanOutput = None,
    bytes_per_token: BytesPerToken = 4.0,
    jobs: Annotated[int | None, typer.Option(min=1, max=10**8, help="So many jobs of these lengths.")] = None,
    arrivals: Annotated[
        str, typer.Option(help="backlog: all at the start; trace: as recorded; x2: so much faster; 12/s: at random.")
    ] = "backlog",
    policy: Annotated[list[str] | None, typer.Option(help="Placement policy; several are compared.")] = None,
    lengths: Annotated[
        str, typer.Option(help="What the scheduler knows of lengths: learned (as live), known, or off by x2.")
    ] = "learned",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same figures.")] = 0,
    slow: Annotated[list[str] | None, typer.Option(metavar="DEVICE@FROM-TOxFACTOR", help=_SLOW)] = None,
    what_if: Annotated[
        str | None, typer.Option(metavar="CHANGE", help="The same with other devices, too: '+2xL4', '-1xL40S'.")
    ] = None,
    step_overhead: Annotated[float, typer.Option(min=0, max=10, help="Seconds the host adds to each step.")] = 0.0,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help=_PLOT)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    pool: PoolName = None,
    redis_url: RedisUrl = None,
) -> None:
    """Simulate a cluster: throughput, makespan, each device's use, latencies and the share of the bound.

    The live policies place the requests of a trace or a batch file on devices of which only profiles are known.
    """
    # numpy and the solver take a moment to load, which no other command should wait for
    from tokenyard.simulation import Setting
    from tokenyard.simulation_choice import ClusterChoice, RequestChoice

    settings = settings_of(redis_url=redis_url, pool=pool)
    where = ClusterChoice(cluster, name, devices, model, from_redis, tuple(profiles or ()), what_if or "")
    what = RequestChoice(trace, columns, batch, mean_output, bytes_per_token, jobs, arrivals)
    policies = tuple(dict.fromkeys(policy or ["throughput"]))
    broker = settings.window_jobs, settings.round_trip_s
    setting = Setting(seed, policies, lengths, tuple(slow or ()), *broker, step_overhead)
    run(_simulate(where, what, setting, settings, plot, as_json), settings)


async def _simulate(
    where: ClusterChoice, what: RequestChoice, setting: Setting, settings: Settings, plot: Path | None, machine: bool
) -> None:
    from planner.what_if import parse_devices
    from tokenyard.garbage import collect_rarely
    from tokenyard.simulation import check, generator, scenes, simulate
    from tokenyard.simulation_choice import find_cluster, find_requests
    from tokenyard.views.timeline import check_path

    if plot is not None:
        check_path(plot)
    changes = parse_devices(where.what_if) if where.what_if else []
    cluster = find_cluster(where, await _heartbeats(settings) if where.from_redis else {})
    requests, source = find_requests(what, generator(setting.seed), settings.max_request_bytes)
    found, left_out = scenes(requests, cluster, changes)
    check(setting, found)
    if source.left_out:
        _say(f"{source.left_out:,} lines are no request and are left out; the first: {source.problem}")
    if left_out:
        _say(f"{left_out:,} requests fit no device and are left out")
    collect_rarely()
    runs = [[simulate(scene, policy, setting, _say) for scene in found] for policy in setting.policies]
    if machine:
        _print_json(cluster.name, setting, where.what_if, runs)
    else:
        _show(where.what_if, runs)
    if plot is not None:
        _plot(runs[-1][-1], plot)


async def _heartbeats(settings: Settings) -> dict[str, Heartbeat | None]:
    async with connected(redis_url_of(settings)) as redis:
        return await MonitorStore(redis, settings.pool).heartbeats()


def _show(what_if: str, runs: list[list[Run]]) -> None:
    """One run in full; of several a table. With another cluster, what that changes under each policy."""
    from planner.what_if_report import difference
    from tokenyard.views.simulation import comparison_view, difference_view, report_view

    reports = [each[0].report for each in runs]
    out.print(report_view(reports[0]) if len(runs) == 1 else comparison_view(reports), soft_wrap=False)
    for first, *others in runs:
        for other in others:
            found = difference(what_if, first.report, other.report)
            out.print()
            out.print(difference_view(found, first.report, other.report), soft_wrap=False)


def _print_json(cluster: str, setting: Setting, what_if: str, runs: list[list[Run]]) -> None:
    from planner.what_if_report import difference

    value: dict[str, Any] = {
        "simulated": True,
        "cluster": cluster,
        "seed": setting.seed,
        "lengths": setting.lengths,
        "runs": [first.report for first, *_ in runs],
    }
    if what_if:
        value["what_if"] = [
            {"run": other.report, "difference": difference(what_if, first.report, other.report)}
            for first, *others in runs
            for other in others
        ]
    typer.echo(msgspec.json.format(msgspec.json.encode(value)))


def _plot(run: Run, path: Path) -> None:
    from tokenyard.simulation_timeline import timeline_of
    from tokenyard.views.simulation import picture_title
    from tokenyard.views.timeline import draw

    if not run.report.done:
        _say("no picture: no job was done")
        return
    draw(timeline_of(run.scene.requests, run.scene.devices, run.outcome), path, picture_title(run.report))
    _say(f"devices over time drawn to {path}")


def _say(text: str) -> None:
    err.print(text, markup=False, highlight=False)

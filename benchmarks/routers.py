"""The same requests to the same four unequal servers, through Tokenyard and through the routers people use.

Two fast servers and two at a fifth of their speed and KV memory, simulated, each a process of its own behind the
OpenAI API. A router gets the requests as from a busy client: a fixed number in flight, the next as soon as one comes
back. Tokenyard gets them all as one batch, and its workers hold no more than that number on the servers together.
Nobody but the reference knows how long an answer will be: every request asks for the same, generous
max_completion_tokens. The clock runs from the first request sent to the last answer read.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from benchmarks.cluster import BenchmarkError
from benchmarks.report import Report, Row, Value, at_least, note, options_parser, run_benchmark
from benchmarks.routing.devices import DEVICES, slower, sped_up
from benchmarks.routing.load import longest_first, through_router
from benchmarks.routing.peers import ROUTERS, Router, check_installed, installed_version, running_router
from benchmarks.routing.servers import Server, Watch, running_servers
from benchmarks.routing.under_tokenyard import seats_of, through_tokenyard
from benchmarks.routing.workload import (
    TRACES,
    Request,
    conversation_lengths,
    drawn_lengths,
    make_requests,
    trace_lengths,
)
from broker.settings import load_settings
from broker.throughput import Profile

TOKENYARD, KNOWN = "tokenyard", "known lengths"


@dataclass(frozen=True, slots=True)
class Setting:
    """What every system is given.

    Attributes:
        profiles: servers to simulate, by name.
        speed: times faster than real that they run.
        requests: in the order in which they are sent.
        in_flight: most requests on all servers together.
        policy: Tokenyard's placement policy.
        profiled: whether Tokenyard's workers are given the profiles of their servers.
    """

    profiles: Mapping[str, Profile]
    speed: float
    requests: Sequence[Request]
    in_flight: int
    policy: str
    profiled: bool

    @property
    def tokens(self) -> int:
        """Prompt and output tokens of all requests."""
        return sum(request.tokens for request in self.requests)


async def main(options: argparse.Namespace) -> Report:
    """Run every system ``--repeat`` times, in turns."""
    systems = _wanted(options.systems)
    routers = [router for router in ROUTERS if router.name in systems]
    check_installed(routers)
    policy = options.policy or load_settings().policy
    device = DEVICES[options.device]
    speed = options.speed or device.speed
    fast, slow = device.profile, slower(device.profile, options.slower)
    requests = _requests(options, slow.kv_tokens - options.max_tokens)
    profiles = {"fast-1": fast, "fast-2": fast, "slow-1": slow, "slow-2": slow}
    setting = Setting(profiles, speed, requests, options.in_flight, policy, options.profiled)
    rows: list[Row] = []
    for _ in range(options.repeat):
        rows += [await _measure(system, setting) for system in systems]
    title = (
        f"{len(requests):,} requests, {options.in_flight} in flight; {device.label} and {options.slower:g} times "
        f"slower, at {speed:g} times their real speed; policy {policy}"
    )
    return Report(title, rows, _summary(rows), notes=_notes(setting, routers))


async def _measure(system: str, setting: Setting) -> Row:
    """One run, with fresh servers: the prefix caches of others' would know the prompts by now."""
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="tokenyard-bench-") as folder:
        async with running_servers(setting.profiles, setting.speed, Path(folder)) as servers:
            watch = Watch(servers)
            await _run(system, watch, servers, setting, Path(folder))
    seconds = watch.seconds
    row: Row = {
        "system": system,
        "seconds": seconds,
        "tokens_per_s": setting.tokens / seconds,
        "output_tokens_per_s": sum(request.output_tokens for request in setting.requests) / seconds,
        "most_in_flight": watch.most_in_flight,
        "cpu_%": watch.cpu_percent,
        "load_before": load_before,
    }
    note(f"{system}: {row['tokens_per_s']:,.0f} tokens/s ({seconds:.1f} s)")
    return row


async def _run(system: str, watch: Watch, servers: Sequence[Server], setting: Setting, folder: Path) -> None:
    requests, in_flight = setting.requests, setting.in_flight
    if system == TOKENYARD:
        profiles = _profile_files(setting, folder) if setting.profiled else {}
        await through_tokenyard(watch, servers, requests, in_flight, setting.policy, folder, profiles, setting.speed)
    elif system == KNOWN:
        await longest_first(watch, servers, requests, in_flight)
    else:
        [router] = [router for router in ROUTERS if router.name == system]
        async with running_router(router, servers, folder) as url:
            await through_router(watch, url, requests, in_flight)


def _profile_files(setting: Setting, folder: Path) -> dict[str, Path]:
    """Files for the workers' ``--profile``, by name of the server."""
    files = {name: folder / f"{name}-measured.json" for name in setting.profiles}
    for name, file in files.items():
        file.write_bytes(orjson.dumps(asdict(sped_up(setting.profiles[name], setting.speed))))
    return files


def _requests(options: argparse.Namespace, longest_prompt: int) -> list[Request]:
    """Requests that every server can hold, with the longest answer that they may get."""
    if longest_prompt < 1:
        raise BenchmarkError(f"the slow servers cannot hold {options.max_tokens} tokens: give less --max-tokens")
    rng = random.Random(options.seed)
    if options.data is None:
        draw = drawn_lengths if options.heavy_tailed else conversation_lengths
        lengths = draw(options.requests, longest_prompt, rng)
    else:
        file, *columns = TRACES[options.trace]
        path = options.data / "traces" / file
        lengths = trace_lengths(path, (columns[0], columns[1]), options.requests, longest_prompt, rng)
    return make_requests(lengths, options.max_tokens, rng)


def _wanted(text: str) -> list[str]:
    known = [TOKENYARD, KNOWN, *(router.name for router in ROUTERS)]
    names = [name.strip() for name in text.split(",") if name.strip()] if text else known
    if unknown := [name for name in names if name not in known]:
        raise BenchmarkError(f"--systems {unknown[0]}: choose from {', '.join(known)}")
    return names


def _summary(rows: Sequence[Row]) -> dict[str, Value]:
    """Medians over the repeats; a figure whose other side was left out is not there."""
    speeds: dict[str, list[float]] = {}
    for row in rows:
        speed = row["tokens_per_s"]
        assert isinstance(speed, float)
        speeds.setdefault(str(row["system"]), []).append(speed)
    medians = {system: statistics.median(values) for system, values in speeds.items()}
    ours, known = medians.pop(TOKENYARD, None), medians.pop(KNOWN, None)
    return {
        "ratio_to_best_router": ours / max(medians.values()) if ours is not None and medians else None,
        "share_of_known_lengths": ours / known if ours is not None and known is not None else None,
    }


def _notes(setting: Setting, routers: Sequence[Router]) -> list[str]:
    versions = {router.package: installed_version(router) for router in routers}
    seats = seats_of([profile.kv_tokens for profile in setting.profiles.values()], setting.in_flight)
    outputs = [request.output_tokens for request in setting.requests]
    prompts = [request.prompt_tokens for request in setting.requests]
    return [
        "simulated devices; tokens are prompt and output together",
        f"prompt tokens: median {statistics.median(prompts):g}, mean {statistics.mean(prompts):.0f}; "
        f"output tokens: median {statistics.median(outputs):g}, mean {statistics.mean(outputs):.0f}, "
        f"longest {max(outputs)}",
        f"seats of Tokenyard's workers: {', '.join(map(str, seats))}",
        *(f"{package} {version}" for package, version in versions.items()),
    ]


def _options() -> argparse.Namespace:
    parser = options_parser("routers", __doc__ or "")
    parser.add_argument("--requests", type=at_least(1), default=1500)
    parser.add_argument("--in-flight", type=at_least(4), default=256, help="most requests on all servers together")
    parser.add_argument("--max-tokens", type=at_least(1), default=1024, help="max_completion_tokens of every request")
    parser.add_argument("--slower", type=at_least(1.0), default=5, help="how much slower and smaller two servers are")
    parser.add_argument("--device", choices=sorted(DEVICES), default="rtx4090", help="what the fast servers simulate")
    parser.add_argument("--speed", type=at_least(0.01), help="times faster than real the servers run")
    parser.add_argument("--data", type=Path, help="folder with traces/: lengths from there instead of made-up ones")
    parser.add_argument("--heavy-tailed", action="store_true", help="without --data: lognormals, longer at the end")
    parser.add_argument("--trace", choices=sorted(TRACES), default="conv", help="which trace of --data")
    parser.add_argument("--policy", help="Tokenyard's placement policy; its default otherwise")
    parser.add_argument("--profiled", action="store_true", help="give Tokenyard's workers their servers' profiles")
    parser.add_argument("--systems", help=f"comma-separated: {TOKENYARD}, {KNOWN}, ROUTER:POLICY; all otherwise")
    parser.add_argument("--repeat", type=at_least(1), default=1, help="runs of each system; the median counts")
    return parser.parse_args()


if __name__ == "__main__":
    chosen = _options()
    run_benchmark(main(chosen), chosen)

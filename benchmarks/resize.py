"""A pool that resizes itself under a day-like load, against pools that never change and against an oracle.

Four simulated devices run as four engines, as two, or as one: four do most of short requests, two most of long ones,
whose KV cache fills a single device. The rate swings 10:1, and in the middle of the day short requests give way to long
ones. One run is live: server, scheduler, supervisor and workers are processes, and the planner looks every few seconds
instead of minutes. The others do the same requests: each fixed pool simulated, the oracle as a fluid that changes in no
time.

Summary: ``lost`` and ``doubled`` jobs of the live run, ``changes`` of its plan, and its drain time (from the last
arrival to the last result) over that of the oracle and of the best fixed pool.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.cluster import BenchmarkError, bench_cluster
from benchmarks.report import Report, Row, at_least, note, options_parser, run_benchmark, server_name
from benchmarks.resizing.compared import day_is_sound, fixed_pool, oracle
from benchmarks.resizing.day import Day
from benchmarks.resizing.live import Cadence, LiveRun, run_live
from benchmarks.resizing.shapes import SHAPES
from planner.simulated import Requests


def main() -> None:
    """Read the options and run."""
    parser = options_parser("resize", __doc__ or "")
    parser.add_argument("--minutes", type=at_least(2.0), default=10.0, help="length of the day (10)")
    parser.add_argument("--every-s", type=at_least(1.0), default=5.0, help="the planner looks this often (5)")
    options = parser.parse_args()
    run_benchmark(_run(options), options)


async def _run(options: argparse.Namespace) -> Report:
    day = Day(60.0 * options.minutes)
    if not day_is_sound(day):
        raise BenchmarkError("one shape is the best all day: there is nothing to change")
    requests, long = day.draw(options.seed)
    note(f"{len(requests):,} requests in {day.seconds:.0f} s, {sum(long):,} of them long")
    fixed = {shape.name: fixed_pool(shape, requests, options.seed) for shape in SHAPES}
    best_possible = oracle(requests, long)
    cadence = Cadence(options.every_s, day.seconds / 15, day.seconds / 10, day.seconds / 30, day.seconds / 15)
    async with bench_cluster() as cluster:
        with TemporaryDirectory(prefix="tokenyard-resize-") as folder:
            await cluster.start_scheduler()
            live = await run_live(cluster, Path(folder), day, requests, cadence)
        server = await server_name(cluster.client.redis)
    return _report(requests, fixed, best_possible, live, server)


def _report(requests: Requests, fixed: dict[str, float], best_possible: float, live: LiveRun, server: str) -> Report:
    last = float(requests.arrivals[-1])
    tokens = int(requests.prompt_tokens.sum() + requests.output_tokens.sum())
    workers = {shape.name: float(shape.workers) for shape in SHAPES}

    def row(name: str, how: str, seconds: float, done: int, mean: float | None) -> Row:
        return {
            "pool": name,
            "how": how,
            "seconds": seconds,
            "drain s": seconds - last,
            "tokens per s": done / seconds,
            "mean workers": mean,
        }

    rows = [row("resized", "live", live.seconds, live.tokens, live.workers)]
    rows += [row(name, "fixed, simulated", end, tokens, workers[name]) for name, end in fixed.items()]
    rows.append(row("oracle", "fluid", best_possible, tokens, None))
    best_fixed = min(fixed.values())
    summary = {
        "lost": live.submitted - len(live.results) + live.failed,
        "doubled": sum(live.results.values()) - len(live.results),
        "changes": live.changes,
        "drain_vs_oracle": (live.seconds - last) / (best_possible - last),
        "drain_vs_best_fixed": (live.seconds - last) / (best_fixed - last),
        "throughput_vs_best_fixed": best_fixed / live.seconds,
    }
    notes = [f"plans of the live pool: {', '.join(live.shapes) or 'the first one, all day'}"]
    return Report("A day of load, short requests giving way to long ones", rows, summary, server, notes)


if __name__ == "__main__":
    main()

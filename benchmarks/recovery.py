"""Workers and Redis killed under 100 jobs, and a job that kills its worker, here and in other queues, side by side.

Every queue runs as it comes, with two workers of ten jobs at once (one in the crash loop), over the embedded server.
A job sleeps for half a second and notes in a file that it began and ended.

Summary, for each queue and scenario: ``lost`` good jobs that had not ended when the patience was over, ``doubled`` ends
over one a job, and the ``seconds`` from the death until the last had ended.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.chaotic.redis_process import free_port
from benchmarks.cluster import BenchmarkError
from benchmarks.recovering.scenarios import SCENARIOS, measure
from benchmarks.recovering.systems import OURS, PEERS, python_of
from benchmarks.report import Report, Row, Value, at_least, note, options_parser, run_benchmark


def main() -> None:
    """Read the options and run."""
    parser = options_parser("recovery", __doc__ or "")
    parser.add_argument("--peers", default=",".join(PEERS), help="queues to compare with; '' for none")
    parser.add_argument("--patience-s", type=at_least(1.0), default=400.0, help="wait so long for jobs (400)")
    parser.add_argument("--scenarios", default=",".join(SCENARIOS), help="which, separated by commas")
    options = parser.parse_args()
    run_benchmark(_run(options), options)


async def _run(options: argparse.Namespace) -> Report:
    peers = [name for name in options.peers.split(",") if name]
    for name in peers:
        if name not in PEERS:
            raise BenchmarkError(f"--peers {name}: choose from {','.join(PEERS)}")
        python_of(name)
    scenarios = options.scenarios.split(",")
    if unknown := [name for name in scenarios if name not in SCENARIOS]:
        raise BenchmarkError(f"--scenarios {unknown[0]}: choose from {','.join(SCENARIOS)}")
    rows: list[Row] = []
    summary: dict[str, Value] = {}
    for scenario in scenarios:
        for name in (OURS, *peers):
            with TemporaryDirectory(prefix="tokenyard-recovery-") as folder:
                seen = await measure(scenario, name, Path(folder), free_port(), options.patience_s)
            took = "not all ended" if seen.seconds is None else f"all ended after {seen.seconds:.1f} s"
            note(f"{scenario}, {name}: {took}")
            rows.append(
                {
                    "scenario": scenario,
                    "system": name,
                    "done": seen.done,
                    "lost": seen.lost,
                    "doubled": seen.doubled,
                    "seconds": seen.seconds,
                    "note": seen.note,
                }
            )
            key = f"{name}_{scenario.lower().replace(' ', '_')}"
            summary |= {f"{key}_lost": seen.lost, f"{key}_doubled": seen.doubled, f"{key}_s": seen.seconds}
    return Report("Deaths under the work", rows, summary, notes=[f"patience {options.patience_s:.0f} s"])


if __name__ == "__main__":
    main()

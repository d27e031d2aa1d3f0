"""Jobs through a cluster of processes that are killed, stopped and resumed, over a Redis that is, too.

Two workers with simulated engines and two attached to OpenAI-compatible servers that fail (or, with ``--vllm``, two
real ones), two schedulers, and clients by the command line, over a Redis with an append-only file. Faults of all kinds
come at random times from a seed, on top of one another. Bad requests are mixed in, and some that kill the server they
are sent to. At the end the clients' files and Redis itself must show every job once.

Summary: ``lost`` jobs have no result, ``doubled`` ones more than one, ``stuck`` ones are still there; ``wrong`` ended
otherwise than they should; ``given_up`` lost their worker, or got the engine's error, too often and say so. Recovery:
from the fault until its jobs had ended or were served elsewhere, or until jobs were dispatched and completed again; of
all faults, of those that were ``alone`` (nothing else was broken that the recovery goes through: Redis, a scheduler,
the same target), and of those that overlapped. Throughput under faults over that before the first.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.chaotic.faults import KINDS
from benchmarks.chaotic.run import Terms, run_chaos
from benchmarks.chaotic.tables import report_of
from benchmarks.cluster import BenchmarkError
from benchmarks.report import Report, at_least, note, options_parser, run_benchmark


def main() -> None:
    """Read the options and run."""
    parser = options_parser("chaos", __doc__ or "")
    parser.add_argument("--jobs", type=at_least(1), default=10_000, help="jobs (10,000)")
    parser.add_argument("--faults", type=at_least(1), default=200, help="faults (200)")
    parser.add_argument("--minutes", type=at_least(0.1), default=10.0, help="over which the faults come (10)")
    parser.add_argument("--fsync", choices=("everysec", "always"), default="everysec", help="of Redis' file")
    parser.add_argument("--embedded", action="store_true", help="the embedded server, not the installed redis-server")
    parser.add_argument("--vllm", action="store_true", help="two real vLLM workers on this machine's cores")
    parser.add_argument("--kinds", help="only faults whose names hold one of these words, separated by commas")
    parser.add_argument("--folder", type=Path, help="an empty folder for files and logs, which are kept")
    options = parser.parse_args()
    run_benchmark(_run(options), options)


async def _run(options: argparse.Namespace) -> Report:
    words = (options.kinds or "").lower().split(",")
    kinds = tuple(kind for kind in KINDS if any(word in kind.lower() for word in words))
    if not kinds:
        raise BenchmarkError(f"--kinds {options.kinds}: no fault is called so; there are: {', '.join(KINDS)}")
    terms = Terms(
        options.jobs,
        options.faults,
        options.minutes,
        options.seed,
        options.fsync,
        options.embedded,
        kinds=kinds,
        vllm=options.vllm,
    )
    if options.folder is None:
        with TemporaryDirectory(prefix="tokenyard-chaos-") as folder:
            return report_of(terms, await run_chaos(terms, Path(folder)))
    options.folder.mkdir(parents=True, exist_ok=True)
    if any(options.folder.iterdir()):
        raise BenchmarkError(f"--folder {options.folder} is not empty: name another")
    note(f"files and logs: {options.folder}")
    return report_of(terms, await run_chaos(terms, options.folder.absolute()))


if __name__ == "__main__":
    main()

"""``vllm run-batch`` with a stopwatch: its own code, as its command runs it, except that the moments are noted.

Run by ``benchmarks.engine_overhead`` as a process of its own. Only what notes the progress is replaced: vLLM asks
for its progress bar when every line is read and the first request is about to go to the engine, and reports each
response there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

from workers.engines.vllm_options import VllmOptions
from workers.engines.vllm_process import prepare_process


def main() -> None:
    """Run one file; the seconds from the first request to the last response go to a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--options", required=True, help="fields of VllmOptions, as JSON")
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--seconds", type=Path, required=True, help="file for the measured time")
    words = parser.parse_args()
    options = VllmOptions(**json.loads(words.options))
    # The very environment and cores that the engine of a worker gets.
    prepare_process(options)
    if options.enforce_eager:
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    words.seconds.write_text(str(_run(options, words.input, words.output)))


def _run(options: VllmOptions, source: str, output: str) -> float:
    from vllm.entrypoints.launchers import run_batch
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    moments: list[float] = []

    class Tracker(run_batch.BatchProgressTracker):
        def pbar(self) -> Any:
            bar = super().pbar()
            moments.append(time.perf_counter())
            return bar

        def completed(self) -> None:
            super().completed()
            moments.append(time.perf_counter())

    run_batch.BatchProgressTracker = Tracker
    flags = [*options.flags(), "--disable-log-stats", "-i", source, "-o", output]
    arguments: Any = run_batch.make_arg_parser(FlexibleArgumentParser()).parse_args(flags)
    asyncio.run(run_batch.main(arguments))
    return moments[-1] - moments[0]


if __name__ == "__main__":  # vLLM's engine core starts by spawn, which imports this module again
    main()

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

from benchmarks.cluster import cpu_seconds
from workers.engines.vllm_options import VllmOptions
from workers.engines.vllm_process import prepare_process


def main() -> None:
    """Run one file; how long that took goes to another."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--options", required=True, help="fields of VllmOptions, as JSON")
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--times", type=Path, required=True, help="file for the measured times")
    words = parser.parse_args()
    options = VllmOptions(**json.loads(words.options))
    # The very environment and cores that the engine of a worker gets.
    prepare_process(options)
    if options.enforce_eager:
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    words.times.write_text(json.dumps(_run(options, words.input, words.output)))


def _run(options: VllmOptions, source: str, output: str) -> dict[str, float]:
    """Wall and CPU time (seconds) from the first request to the last response, of this process and its children."""
    from vllm.entrypoints.launchers import run_batch
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    moments: list[tuple[float, float]] = []

    def note_moment() -> None:
        moments.append((time.perf_counter(), cpu_seconds(os.getpid(), and_children=True)))

    class Tracker(run_batch.BatchProgressTracker):
        _left = 0

        def submitted(self) -> None:
            super().submitted()
            self._left += 1

        def pbar(self) -> Any:
            bar = super().pbar()
            note_moment()
            return bar

        def completed(self) -> None:
            super().completed()
            self._left -= 1
            if not self._left:
                note_moment()

    run_batch.BatchProgressTracker = Tracker
    flags = [*options.flags(), "--disable-log-stats", "-i", source, "-o", output]
    arguments: Any = run_batch.make_arg_parser(FlexibleArgumentParser()).parse_args(flags)
    asyncio.run(run_batch.main(arguments))
    (begin, cpu_begin), (end, cpu_end) = moments
    return {"seconds": end - begin, "cpu_seconds": cpu_end - cpu_begin}


if __name__ == "__main__":  # vLLM's engine core starts by spawn, which imports this module again
    main()

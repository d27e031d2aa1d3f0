"""The client of ``benchmarks.client_stream``: submits prompts from a generator, reads all results, says what it saw."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator

import orjson

from benchmarks.cluster import peak_memory_bytes
from benchmarks.requests import MODEL
from tokenyard.client import BatchResult, Client
from tokenyard.client.items import position_of


def main() -> None:
    """Print a line of JSON once all is submitted, and one at the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("batch")
    parser.add_argument("jobs", type=int)
    parser.add_argument("--map", action="store_true", help="one call does both")
    options = parser.parse_args()
    with Client(options.url, model=MODEL) as client:
        if options.map:
            results = client.map(_prompts(options.jobs), batch=options.batch, max_tokens=1)
        else:
            report = client.submit(_prompts(options.jobs), batch=options.batch, max_tokens=1)
            _say({"accepted": report.accepted, "known": report.known})
            results = client.results(options.batch)
        _say(_counted(results, options.jobs))


def _counted(results: Iterable[BatchResult], jobs: int) -> dict[str, int]:
    seen = bytearray(jobs)
    strange = doubled = failed = 0
    for result in results:
        failed += not result.ok
        position = position_of(result.custom_id)
        if position is None or position >= jobs:
            strange += 1
        elif seen[position]:
            doubled += 1
        else:
            seen[position] = 1
    return {"lost": seen.count(0), "doubled": doubled, "strange": strange, "failed": failed}


def _prompts(jobs: int) -> Iterator[str]:
    for number in range(jobs):
        yield f"Write a line about the number {number}."


def _say(found: dict[str, int]) -> None:
    sys.stdout.buffer.write(orjson.dumps({**found, "peak_bytes": peak_memory_bytes(os.getpid())}) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

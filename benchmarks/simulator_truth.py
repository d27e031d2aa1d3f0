"""A real vLLM run, replayed with its arrivals through the simulator's engine: how near the simulated times are.

The run's folder holds what a bench client logged: requests.jsonl (input_toks, output_toks, arrival_time or queued_ts,
first_token_ts, last_token_ts; seconds) and meta.json with the engine's settings. The device's times come from the
fits of the data folder. Latencies count from a request's arrival in the engine's queue.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import orjson

from benchmarks.cluster import BenchmarkError
from benchmarks.placing.devices import Catalogue, Part
from benchmarks.report import Report, Row, at_least, options_parser, run_benchmark
from broker.batching import ContinuousBatch, EventKind
from broker.throughput import Profile

_DATA = Path(__file__).parents[2] / "shared" / "data"


@dataclass(frozen=True, slots=True)
class Logged:
    """One request of a run: tokens, and times in seconds from the first arrival."""

    prompt_tokens: int
    output_tokens: int
    arrival: float
    first_token: float
    finished: float


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What decides how the engine batches; None where the run does not say."""

    seats: int
    max_batched_tokens: int
    kv_tokens: int | None
    block_tokens: int
    prefix_caching: bool


@dataclass(frozen=True, slots=True)
class Times:
    """What is compared (seconds)."""

    makespan: float
    ttft_median: float
    ttft_mean: float
    e2e_median: float
    e2e_mean: float

    @classmethod
    def of(cls, requests: Sequence[Logged]) -> Times:
        """The times of a run, real or simulated."""
        ttft = [request.first_token - request.arrival for request in requests]
        e2e = [request.finished - request.arrival for request in requests]
        begun = min(request.arrival for request in requests)
        makespan = max(request.finished for request in requests) - begun
        return cls(makespan, median(ttft), fmean(ttft), median(e2e), fmean(e2e))


async def main(options: argparse.Namespace) -> Report:
    """Replay the run and compare."""
    settings = read_settings(options.run / "meta.json")
    requests = read_requests(options.run / "requests.jsonl")
    part = Part(device=options.device, model=options.model, tp=options.tp)
    profile = Catalogue(options.data).profile(part, settings.seats, settings.kv_tokens)
    simulated, preemptions = replay(requests, profile, settings, options.step_overhead_ms / 1000)
    real, ours = Times.of(requests), Times.of(simulated)
    title = f"{len(requests)} requests of {options.run.name}, replayed with its arrivals (simulated beside real)"
    notes = [
        f"seats {profile.seats:,}, {settings.max_batched_tokens:,} tokens a step, {profile.kv_tokens:,} KV tokens; "
        f"{preemptions} preemptions; {options.step_overhead_ms:g} ms of the host a step",
    ]
    if settings.prefix_caching:
        notes.append("the engine cached prefixes: which prompts share one is not in the log, none is taken to")
    figures = ("makespan", "ttft_median", "e2e_median")
    summary = {f"{name}_error": abs(getattr(ours, name) / getattr(real, name) - 1) for name in figures}
    return Report(title, _rows(real, ours), summary, notes=notes)


def _rows(real: Times, ours: Times) -> list[Row]:
    return [
        {
            "time": name.replace("ttft", "time to first token").replace("e2e", "end to end").replace("_", ", "),
            "real_s": getattr(real, name),
            "simulated_s": getattr(ours, name),
            "error_%": 100 * (getattr(ours, name) / getattr(real, name) - 1),
        }
        for name in Times.__slots__
    ]


def replay(
    requests: Sequence[Logged], profile: Profile, settings: EngineSettings, step_overhead_s: float
) -> tuple[list[Logged], int]:
    """The same requests through the simulated engine; and how often one lost its KV memory.

    Raises:
        BenchmarkError: a request does not fit the KV cache.
    """
    batch = ContinuousBatch(
        profile,
        max_batched_tokens=settings.max_batched_tokens,
        block_tokens=settings.block_tokens,
        step_overhead_s=step_overhead_s,
    )
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    preemptions = 0
    for number, request in enumerate(requests):
        try:
            batch.add(number, request.prompt_tokens, request.output_tokens, request.arrival)
        except ValueError as error:
            raise BenchmarkError(f"{error}: {profile.kv_tokens} KV tokens; is it this device and model?") from None
    for kind, request_id, at, *_ in batch.advance(float("inf")):
        number = int(request_id)  # type: ignore[arg-type]
        if kind is EventKind.FIRST_TOKEN:
            first.setdefault(number, at)
        elif kind is EventKind.FINISHED:
            last[number] = at
        else:
            preemptions += 1
    return [
        Logged(r.prompt_tokens, r.output_tokens, r.arrival, first[i], last[i]) for i, r in enumerate(requests)
    ], preemptions


def read_requests(file: Path) -> list[Logged]:
    """The requests of a run that came to an end, in order of arrival.

    The engine's clock is taken throughout: ``queued_ts`` where it is logged. The client's ``arrival_time`` is on
    another clock, and only then moved to the engine's: so that the least wait for a seat is none.

    Raises:
        BenchmarkError: it cannot be read, or a line of it is not of this form.
    """
    rows = [row for row in _lines(file) if row.get("last_token_ts") is not None]
    try:
        shift = _clock_shift(rows)
        found = [
            Logged(
                max(1, int(row["input_toks"])),
                max(1, int(row["output_toks"])),
                float(row["queued_ts"]) if "queued_ts" in row else float(row["arrival_time"]) + shift,
                float(row["first_token_ts"]),
                float(row["last_token_ts"]),
            )
            for row in rows
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise BenchmarkError(f"{file}: a request without {error}") from None
    if not found:
        raise BenchmarkError(f"{file} holds no request that ended")
    found.sort(key=lambda request: request.arrival)
    zero = found[0].arrival
    return [
        Logged(r.prompt_tokens, r.output_tokens, r.arrival - zero, r.first_token - zero, r.finished - zero)
        for r in found
    ]


def _clock_shift(rows: Sequence[dict[str, Any]]) -> float:
    """Seconds from the client's clock to the engine's; 0 where it need not be known."""
    waits = [
        row.get("scheduled_ts", row["first_token_ts"]) - row["arrival_time"] for row in rows if "queued_ts" not in row
    ]
    return min(waits, default=0.0)


def read_settings(file: Path) -> EngineSettings:
    """The engine's settings, wherever in the file they are: those the engine resolved go before those asked for.

    Raises:
        BenchmarkError: it cannot be read, or does not say how many sequences and tokens a batch may have.
    """
    try:
        meta = orjson.loads(file.read_bytes())
    except OSError as error:
        raise BenchmarkError(f"cannot read {file}: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise BenchmarkError(f"{file} is no JSON file: {error}") from None
    block = _setting(meta, "block_size") or 16
    blocks = _setting(meta, "num_gpu_blocks")
    kv_tokens = _setting(meta, "num_kv_tokens", "kv_tokens", "kv_cache_tokens") or (blocks and blocks * block)
    seats, batched = _setting(meta, "max_num_seqs"), _setting(meta, "max_num_batched_tokens")
    if not seats or not batched:
        raise BenchmarkError(f"{file} does not say max_num_seqs and max_num_batched_tokens")
    caching = any(value is True for key, value in _walk(meta) if key == "enable_prefix_caching")
    return EngineSettings(seats, batched, kv_tokens or None, block, caching)


def _setting(meta: Any, *names: str) -> int | None:
    """The first positive whole number under one of these names; below ``resolved_config`` first."""
    resolved = meta.get("resolved_config") if isinstance(meta, dict) else None
    for place in (resolved, meta):
        for name in names:
            for key, value in _walk(place):
                if key == name and isinstance(value, int) and not isinstance(value, bool) and value > 0:
                    return value
    return None


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values of a JSON document, outer ones first."""
    if isinstance(value, dict):
        yield from value.items()
        for inner in value.values():
            yield from _walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner)


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise BenchmarkError(f"cannot read {file}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise BenchmarkError(f"{file}, line {number}: {error}") from None
            if not isinstance(row, dict):
                raise BenchmarkError(f"{file}, line {number}: no JSON object")
            yield row


def _options() -> argparse.Namespace:
    parser = options_parser("simulator_truth", __doc__ or "")
    parser.add_argument("--run", type=Path, required=True, help="folder with requests.jsonl and meta.json")
    parser.add_argument("--device", required=True, help="as in profiles/fits.csv, or the beginning of its name")
    parser.add_argument("--model", required=True, help="as in profiles/fits.csv")
    parser.add_argument("--tp", type=at_least(1), default=1, help="tensor-parallel degree")
    parser.add_argument("--data", type=Path, default=_DATA, help="folder with profiles/fits.csv and kv.csv")
    parser.add_argument("--step-overhead-ms", type=at_least(0.0), default=0.0, help="what the host adds to each step")
    return parser.parse_args()


if __name__ == "__main__":
    chosen = _options()
    run_benchmark(main(chosen), chosen)

"""The same batch file through one vLLM worker under Tokenyard and through ``vllm run-batch``, same engine settings.

The start of the engines does not count. For Tokenyard the clock runs from the call that submits the requests to the
last result read by the client, so that everything between client and engine counts; for run-batch from the moment
its first request goes to the engine to its last response (see ``benchmarks.vllm_run_batch``). Every run has fresh
processes, so that none finds its prompts in the prefix cache.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson

from benchmarks.batch_runs import BatchRun, EngineSettings, run_tokenyard, run_vllm
from benchmarks.cluster import BenchmarkError
from benchmarks.report import Report, Row, Value, at_least, note, options_parser, run_benchmark
from tokenyard.demo_model import DEMO_MODEL_NAMES, prepare_demo_model
from tokenyard.local_cluster import usable_cores
from tokenyard.paths import model_cache
from workers.engines.cpu_precision import cpu_dtype

_QUESTIONS = Path(__file__).parents[1] / "examples" / "questions.jsonl"
_TOKENYARD, _RUN_BATCH = "tokenyard", "vllm run-batch"


async def main(options: argparse.Namespace) -> Report:
    """Run both, in an order that alternates from one repeat to the next."""
    chats = _chats(options.input)
    settings = _settings(options)
    rows: list[Row] = []
    runs: dict[str, list[BatchRun]] = {_TOKENYARD: [], _RUN_BATCH: []}
    server = ""
    with TemporaryDirectory(prefix="tokenyard-bench-") as folder:
        source = Path(folder) / "input.jsonl"
        lines = _batch_lines(chats, options.lines, settings.name, options.max_tokens, options.seed)
        source.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
        for turn in range(options.repeat):
            for system in (_TOKENYARD, _RUN_BATCH) if turn % 2 == 0 else (_RUN_BATCH, _TOKENYARD):
                note(f"{system}: run {turn + 1} of {options.repeat}, with an engine of its own")
                if system == _TOKENYARD:
                    run, server = await run_tokenyard(settings, source)
                else:
                    run = await asyncio.to_thread(run_vllm, settings, source, Path(folder))
                if len(run.texts) != options.lines:
                    raise BenchmarkError(f"{system} answered {len(run.texts)} of {options.lines} requests")
                runs[system].append(run)
                rows.append(_row(system, turn + 1, run))
    title = f"{options.lines} requests: {settings.dtype}, {settings.seats} seats, cores {settings.cores or 'any'}"
    return Report(title, rows, _summary(runs[_TOKENYARD], runs[_RUN_BATCH]), server)


def _settings(options: argparse.Namespace) -> EngineSettings:
    demo = options.model == "demo"
    return EngineSettings(
        model=str(prepare_demo_model(model_cache(), note)) if demo else options.model,
        name=DEMO_MODEL_NAMES[0] if demo else options.model,
        dtype=options.dtype,
        seats=options.seats,
        context=options.context,
        kv_gib=options.kv_gib,
        cores=options.cores or None,
        eager=not options.compile,
        step_tokens=options.step_tokens,
    )


def _chats(source: Path) -> list[dict[str, Any]]:
    try:
        found = [orjson.loads(line) for line in source.read_bytes().splitlines() if line.strip()]
        chats = [line for line in found if line["url"] == "/v1/chat/completions"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"--input {source} is no batch file: {error}") from None
    if not chats:
        raise BenchmarkError(f"--input {source} has no /v1/chat/completions requests")
    return chats


def _batch_lines(
    chats: Sequence[dict[str, Any]], count: int, model: str, max_tokens: int, seed: int
) -> list[dict[str, Any]]:
    """``count`` requests: the given ones over and over under new ids, shuffled, all at temperature 0."""
    lines: list[dict[str, Any]] = []
    for number in range(count):
        turn, place = divmod(number, len(chats))
        chat = chats[place]
        body = {**chat["body"], "model": model, "max_tokens": max_tokens, "temperature": 0}
        lines.append({**chat, "custom_id": f"{chat['custom_id']}.{turn}", "body": body})
    random.Random(seed).shuffle(lines)
    return lines


def _row(system: str, turn: int, run: BatchRun) -> Row:
    return {
        "system": system,
        "run": turn,
        "seconds": run.seconds,
        "output_tokens": run.output_tokens,
        "output_tokens_per_s": run.tokens_per_s,
        "output_tokens_per_cpu_s": run.output_tokens / run.cpu_seconds,
    }


def _summary(ours: Sequence[BatchRun], theirs: Sequence[BatchRun]) -> dict[str, Value]:
    """Ratio of the median speeds; shares of same texts as means over all pairs of runs."""
    speed_ours, speed_theirs = (statistics.median(run.tokens_per_s for run in runs) for runs in (ours, theirs))
    summary: dict[str, Value] = {
        "throughput_ratio": speed_ours / speed_theirs,
        "same_text_share": statistics.mean(_same_share(a, b) for a, b in product(ours, theirs)),
    }
    if len(theirs) > 1:  # how much run-batch differs from itself: batches form by the clock, and rounding with them
        summary["run_batch_same_as_itself"] = statistics.mean(_same_share(a, b) for a, b in combinations(theirs, 2))
    return summary


def _same_share(a: BatchRun, b: BatchRun) -> float:
    return sum(b.texts.get(custom_id) == text for custom_id, text in a.texts.items()) / len(a.texts)


def _options() -> argparse.Namespace:
    parser = options_parser("engine_overhead", __doc__ or "")
    parser.add_argument("--input", type=Path, default=_QUESTIONS, help="OpenAI Batch file of chat requests")
    parser.add_argument("--lines", type=at_least(1), default=200, help="requests to run; the file's are repeated")
    parser.add_argument("--max-tokens", type=at_least(1), default=64, help="most output tokens of each")
    parser.add_argument("--model", default="demo", help="directory of the model; 'demo' for the demo's")
    dtype = cpu_dtype()
    parser.add_argument("--dtype", default=dtype, help="precision; without it, the best that this CPU has")
    parser.add_argument("--seats", type=at_least(1), default=64, help="max_num_seqs")
    parser.add_argument("--context", type=at_least(1), default=2048, help="max_model_len")
    parser.add_argument("--kv-gib", type=at_least(0.01), default=1.0, help="GiB of KV cache")
    parser.add_argument("--step-tokens", type=at_least(1), default=4096, help="max_num_batched_tokens")
    cores = ",".join(map(str, usable_cores()))
    parser.add_argument("--cores", default=cores, help="cores of the engine (CPU only); '' for no binding")
    parser.add_argument("--compile", action="store_true", help="compile the model instead of running it eagerly")
    parser.add_argument("--repeat", type=at_least(1), default=1, help="runs of each")
    return parser.parse_args()


if __name__ == "__main__":
    chosen = _options()
    run_benchmark(main(chosen), chosen)

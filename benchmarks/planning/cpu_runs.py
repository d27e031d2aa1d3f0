"""Real engines on this machine's cores: profiled, and measured while each works off a backlog of its own."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.cluster import BenchmarkError
from benchmarks.planning.cpu_truth import (
    SEATS,
    Candidate,
    Predictor,
    groups,
    measured_engine,
    outcomes,
    rows_of,
    shown,
    summary_of,
)
from benchmarks.real.ceiling import Span, measure_ceiling
from benchmarks.real.processes import MODEL, RealCluster, real_cluster
from benchmarks.real.questions import Questions, read_questions
from benchmarks.report import Report, note, server_name
from broker.length_class import LengthClass
from planner.estimate import Measured
from planner.mix import classes_of
from tokenyard.demo_model import prepare_demo_model
from tokenyard.local_cluster import usable_cores
from tokenyard.model_config import read_model
from tokenyard.paths import model_cache
from tokenyard.profile_file import read_profile_file

_QUESTIONS, _COPIES = 300, 2
_MAX_TOKENS = (16, 64)
_CORES = 2
#: A slow engine is warmed up and measured for as long as so many tokens take it, at most so long: bfloat16 on a CPU
#: that has no instructions for it does some tens a second.
_TOKENS, _MOST_S = 10_000, 90.0
#: An engine with memory for all its seats is warm when it has ended so many requests: a slow one reads for minutes what
#: it is given at first. One without takes too many at first, and computes some of them again; it is warm when so many
#: times what runs at once has ended.
_WARM_JOBS, _WARM_TURNS, _LONGEST_WARM_UP_S = 2, 2, 300.0
#: No further turn begins so long after the first (seconds).
_TURNS_S = 300.0


async def cpu_report(options: argparse.Namespace) -> Report:
    """Profile two candidates, predict the others, measure all.

    Raises:
        BenchmarkError: this machine has too few cores, or an engine failed.
    """
    cores = usable_cores()[:_CORES]
    if len(cores) < _CORES:
        raise BenchmarkError(f"this benchmark needs {_CORES} cores")
    questions = read_questions(options.data, _QUESTIONS, _MAX_TOKENS, MODEL, random.Random(options.seed), whole=True)
    classes = _classes(questions)
    begun = time.monotonic()
    async with real_cluster() as cluster:
        server = await server_name(cluster.client.redis)
        known = await _profile(cluster, shown(), cores, options.profile_s)
    profiling_s = time.monotonic() - begun
    predictor = Predictor(known, read_model("demo"), classes)
    measured = [await _measure_in_turns(group, cores, questions, predictor, options) for group in groups()]
    found = outcomes(predictor, measured)
    title = "Prompt and output tokens a second of all engines together; error: predicted over measured, less 1"
    notes = [_words(engine) for engine in known]
    notes.append("profiling_s: both profiles one after the other, with the start of their engines, all at once")
    notes.append(
        "predicted: from these, made faster or slower by what the profiled ones did when measured in turns with the "
        "others, as the planner does live; by profiles alone: at the speed of the minute in which they were taken"
    )
    return Report(title, rows_of(found), summary_of(found, profiling_s), server, notes)


async def _profile(
    cluster: RealCluster, measured: Sequence[Candidate], cores: Sequence[int], budget_s: float
) -> list[Measured]:
    note(f"measuring profiles: {', then '.join(f'{one.layout}, {one.dtype}' for one in measured)}")
    found: list[Measured] = []
    for files in await cluster.profile([candidate.specs(cores) for candidate in measured], budget_s):
        records = [read_profile_file(file).record for file in files.values()]
        found.append(measured_engine([record for record in records if record is not None]))
        note(_words(found[-1]))
    return found


async def _measure_in_turns(
    group: Sequence[Candidate],
    cores: Sequence[int],
    questions: Questions,
    predictor: Predictor,
    options: argparse.Namespace,
) -> dict[Candidate, float]:
    """Tokens a second of each, its engines busy and those of all others paused; the mean of its turns.

    A machine's speed drifts from minute to minute: in turns, what is compared has had the same machine.
    """
    specs = {candidate: candidate.specs(cores) for candidate in group}
    rates: dict[Candidate, list[float]] = {candidate: [] for candidate in group}
    window = Span(options.window_s, _TOKENS, most_s=_MOST_S)
    async with real_cluster() as cluster:
        await cluster.start_workers([spec for those in specs.values() for spec in those], {})
        begun = time.monotonic()
        for turn in range(options.turns):
            if time.monotonic() > begun + _TURNS_S:
                break
            first = turn * len(group) // options.turns
            for candidate in [*group[first:], *group[:first]]:
                rng = random.Random(options.seed + turn)
                at_once = predictor.at_once(candidate)
                warm_jobs = _WARM_TURNS * at_once if at_once < SEATS else _WARM_JOBS
                warm_up = Span(options.warm_up_s, jobs=warm_jobs, most_s=_LONGEST_WARM_UP_S)
                backlogs = {s.name: questions.backlog(s.name, _COPIES, rng, at_once) for s in specs[candidate]}
                async with cluster.alone(backlogs):
                    rate = (await measure_ceiling(cluster, backlogs, warm_up, window)).tokens_per_s
                note(f"{candidate.layout}, {candidate.dtype}, {candidate.kv_gib:g} GiB: {rate:.0f} tokens/s")
                rates[candidate].append(rate)
    return {candidate: fmean(found) for candidate, found in rates.items()}


def _classes(questions: Questions) -> list[LengthClass]:
    """The lengths of the questions and, as every answer is as long as it may be, of their answers."""
    count = _token_counter()
    prompts = np.array([count(chat) for chat in questions.chats], dtype=np.int64)
    return classes_of(prompts, np.array(questions.max_tokens, dtype=np.int64))


def _token_counter() -> Callable[[Any], int]:
    from transformers import AutoTokenizer  # takes seconds to import

    folder = prepare_demo_model(model_cache(), note)
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))

    def count(chat: Any) -> int:
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return count


def _words(measured: Measured) -> str:
    p = measured.profile
    return (
        f"profiled: {measured.units} cores, {measured.dtype}: a {p.prefill_a:.4g} b {p.prefill_b:.4g} "
        f"c {p.prefill_c:.4g} d {p.decode_d:.4g} e {p.decode_e:.4g} f {p.decode_f:.4g} (seconds)"
    )

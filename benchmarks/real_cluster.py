"""Real questions over two and three unequal real vLLM workers, against what these do side by side at most.

That is the sum of their rates when each works off a private backlog of the same mix (in its own device queue, no
scheduler runs), all at once and on the same cores. Each cluster is measured with the same engine processes: the sum,
then, ``--turns`` times, the questions under ``throughput`` and the sum again; at last the questions under
``round_robin``. `share_of_sum` is the median of the turns: prompt and output tokens a second from the submit of the
first question to the last result, over the mean of the sums just before and just after.

The workers' profiles, by which the policy places and the simulator predicts, are measured before, side by side, too.
The simulator gets them and the lengths of the answers, which are taken from the run under ``round_robin``. Machines do
not keep their speed for so long: the simulator is also told how fast the workers were, by what they did of their
private backlogs, as a live scheduler is by their heartbeats. The error without that is printed beside it.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.real.batch import BatchRun, run_batch
from benchmarks.real.ceiling import Ceiling, Span, measure_ceiling
from benchmarks.real.figures import Measured, summary_of
from benchmarks.real.fleets import fleet
from benchmarks.real.prediction import predict, slowdown
from benchmarks.real.processes import MODEL, RealCluster, real_cluster
from benchmarks.real.questions import Questions, read_questions
from benchmarks.report import Report, at_least, note, options_parser, run_benchmark, server_name
from tokenyard.local_cluster import WorkerSpec, usable_cores
from workers.engines.cpu_precision import cpu_dtype

_POLICY, _BASELINE = "throughput", "round_robin"
#: A worker is warm when it has ended so many requests of its private backlog.
_WARM_JOBS = 2


async def main(options: argparse.Namespace) -> Report:
    """Measure each cluster."""
    rng = random.Random(options.seed)
    questions = read_questions(options.data, options.questions, options.max_tokens, MODEL, rng)
    measured: dict[int, Measured] = {}
    server = ""
    for count in options.workers:
        specs = fleet(count, usable_cores(), cpu_dtype())
        async with real_cluster() as cluster:
            server = await server_name(cluster.client.redis)
            measured[count] = await _measure(cluster, specs, questions, options)
    rows = [row for found in measured.values() for row in found.rows()]
    notes = [text for found in measured.values() for text in found.notes()]
    title = f"{len(questions)} questions; tokens: prompt and output; %: of one core"
    return Report(title, rows, summary_of(measured), server, notes)


async def _measure(
    cluster: RealCluster, specs: Sequence[WorkerSpec], questions: Questions, options: argparse.Namespace
) -> Measured:
    names = ", ".join(spec.name for spec in specs)
    rng = random.Random(options.seed)

    async def ceiling(turn: int) -> Ceiling:
        note(f"{names}: each from a private backlog")
        backlogs = {
            name: questions.backlog(f"{turn} {name}", options.backlog, rng, beat.seats) for name, beat in beats.items()
        }
        warm_up = Span(options.warm_up_s, jobs=_WARM_JOBS)
        found = await measure_ceiling(cluster, backlogs, warm_up, Span(options.window_s))
        note(f"{names}: {found.tokens_per_s:,.0f} tokens/s side by side")
        return found

    async def batch(policy: str, turn: int) -> BatchRun:
        note(f"{names}: {len(questions)} questions under {policy}")
        run = await run_batch(cluster, questions.requests(f"{policy} {turn}"), policy)
        note(f"{names}: {run.tokens_per_s:,.0f} tokens/s under {policy}")
        return run

    note(f"{names}: measuring profiles")
    [profiles] = await cluster.profile([specs], options.profile_s)
    note(f"{names}: starting the workers")
    await cluster.start_workers(specs, profiles)
    beats = await cluster.heartbeats()
    ceilings, ours = [await ceiling(0)], list[BatchRun]()
    for turn in range(1, options.turns + 1):
        ours.append(await batch(_POLICY, turn))
        ceilings.append(await ceiling(turn))
    baseline = await batch(_BASELINE, 1)
    # Nothing of the runs that are predicted goes into their prediction: the lengths are those of the other run.
    lengths = {result.custom_id: (result.prompt_tokens, result.output_tokens) for result in baseline.results}
    requests = questions.requests(_POLICY)
    backlog = questions.backlog(_POLICY, options.backlog, rng, 0)
    rates = {name: fmean(found.rates[name] for found in ceilings) for name in beats}
    slowdowns = {name: slowdown(name, beat, backlog, lengths, rates[name]) for name, beat in beats.items()}
    simulated = predict(requests, lengths, beats, _POLICY, options.seed, slowdowns)
    from_profiles = predict(requests, lengths, beats, _POLICY, options.seed)
    return Measured(beats, ceilings, ours, baseline, simulated, from_profiles, _POLICY, _BASELINE)


def _span(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    if not (low.isdigit() and high.isdigit() and 0 < int(low) <= int(high)):
        raise argparse.ArgumentTypeError(f"{text}: give two numbers such as 16-64")
    return int(low), int(high)


def _options() -> argparse.Namespace:
    parser = options_parser("real_cluster", __doc__ or "")
    parser.add_argument("--data", type=Path, help="folder with prompts/; without, the examples' questions")
    parser.add_argument("--questions", type=at_least(1), default=300, help="questions of the batch")
    parser.add_argument("--max-tokens", type=_span, default=(16, 64), metavar="LOW-HIGH", help="limits of the answers")
    parser.add_argument("--workers", type=int, choices=(2, 3), nargs="+", default=[2, 3], help="clusters to measure")
    parser.add_argument("--profile-s", type=at_least(1.0), default=30.0, help="seconds for the profiles")
    parser.add_argument("--warm-up-s", type=at_least(0.0), default=12.0, help="seconds before rates are measured")
    parser.add_argument("--window-s", type=at_least(1.0), default=45.0, help="seconds for which they are")
    parser.add_argument("--turns", type=at_least(1), default=3, help="runs under throughput")
    parser.add_argument("--backlog", type=at_least(1), default=2, help="times all questions in a private backlog")
    return parser.parse_args()


if __name__ == "__main__":
    chosen = _options()
    run_benchmark(main(chosen), chosen)

"""What the planner predicts of configurations it was not shown, beside what was measured of them.

``--data``: GPUs. From profiles of tensor-parallel degrees 1 and 2 alone it predicts 4 and 8, and chooses how to share
out a machine of eight devices; both are judged by the measured times.

``--cpu``: real vLLM on this machine's cores. Two of eight configurations (one engine on two cores or two on one, two
precisions, two sizes of KV memory) are profiled. The throughput of each on real questions is predicted and measured,
from backlogs that keep all engines busy. A machine is not as fast in one minute as in the next: the others are measured
in turns with the profiled ones, whose profiles are put right by what they then do, as the planner does live. With
``--data`` the questions are those of its prompts/.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.planning import gpu_truth
from benchmarks.report import Report, at_least, options_parser, run_benchmark

_PLACE = ("device", "model", "tp", "from")


async def main(options: argparse.Namespace) -> Report:
    """Run what is asked for. The report holds the predictions; the other tables beside it."""
    if options.cpu:
        from benchmarks.planning.cpu_runs import cpu_report

        return await cpu_report(options)
    found = gpu_truth.cases(options.data, options.devices, options.models)
    mixes = gpu_truth.mixes(options.data, options.seed)
    predictions = gpu_truth.prediction_rows(found, mixes)
    choices = gpu_truth.choice_rows(found, mixes)
    steps, rough = gpu_truth.step_rows(found, options.data), gpu_truth.rough_rows(options.data, mixes)
    tables = {
        "A machine of eight: the chosen layout by the measured times": choices,
        "Single steps: mean error of the prediction, and of a fit to the very points": steps,
        "From public specifications alone: throughput of one engine, predicted over measured, less 1": rough,
    }
    errors = [abs(float(value)) for row in predictions for name, value in row.items() if name not in _PLACE and value]
    summary = {
        "chosen_share_of_best": min(float(row["share"] or 0) for row in choices),
        "worst_prediction_error": max(errors),
        "mean_prediction_error": sum(errors) / len(errors),
    }
    title = "Throughput of one engine: predicted over measured, less 1"
    return Report(title, predictions, summary, notes=_NOTES, tables=tables)


_NOTES = (
    "columns: mixes of request lengths; throughput is that of the linear program with the predicted and with the "
    "measured profile, each with its own KV memory",
    "from: degrees of this model that were shown; what does not divide comes from other models where it is only one",
)


def _options() -> argparse.Namespace:
    parser = options_parser("planner_truth", __doc__ or "")
    parser.add_argument("--data", type=Path, help="folder with profiles/ and traces/, or prompts/")
    parser.add_argument("--cpu", action="store_true", help="real vLLM on this machine's cores, 20 to 35 minutes")
    parser.add_argument("--profile-s", type=at_least(1.0), default=12.0, help="seconds for each profile (--cpu)")
    parser.add_argument(
        "--warm-up-s", type=at_least(0.0), default=5.0, help="seconds before rates are measured (--cpu)"
    )
    parser.add_argument("--window-s", type=at_least(1.0), default=10.0, help="seconds for which they are (--cpu)")
    parser.add_argument("--turns", type=at_least(1), default=4, help="so often is each one measured (--cpu)")
    parser.add_argument("--devices", type=_names, default=gpu_truth.DEVICES, help="comma-separated: A100, H100")
    parser.add_argument("--models", type=_names, default=gpu_truth.MODELS, help="comma-separated: Llama 8B, 70B")
    options = parser.parse_args()
    if options.data is None and not options.cpu:
        parser.error("give --data FOLDER, or --cpu")
    return options


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


if __name__ == "__main__":
    chosen = _options()
    run_benchmark(main(chosen), chosen)

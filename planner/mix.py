"""A mix of request lengths as the linear program takes it. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from broker.errors import UsageError
from broker.length_class import LengthClass
from broker.throughput import Work
from planner.simulated import Floats, Ints

#: Lengths within this factor are one class: the mean work of a class is exact, and what is lost is that a plan cannot
#: send its shorter half elsewhere than its longer.
_CLASS_WIDTH = 1.5
_LENGTHS = re.compile(r"(?:(\d*\.?\d+)x)?(\d+),(\d+)")
_MOST_TOKENS = 10**9


def classes_of(prompt_tokens: Ints, output_tokens: Ints) -> list[LengthClass]:
    """Length classes of some requests; the longest request of a class decides where it can run."""
    prompt, output = prompt_tokens.astype(float), output_tokens.astype(float)
    steps = np.maximum(output - 1.0, 0.0)
    context = steps * (prompt + np.maximum(steps - 1.0, 0.0) / 2.0)
    work = np.column_stack([prompt, prompt * prompt, steps, context, prompt + steps])
    key = _octave(prompt) * 1000 + _octave(output)
    _, label = np.unique(key, return_inverse=True)
    jobs = np.bincount(label)
    longest = np.zeros(len(jobs), dtype=np.int64)
    np.maximum.at(longest, label, prompt_tokens + output_tokens)
    means = np.array([np.bincount(label, weights=column) for column in work.T]).T / jobs[:, None]
    parts = zip(jobs.tolist(), means.tolist(), longest.tolist(), strict=True)
    return [LengthClass(float(n), Work(*mean), most) for n, mean, most in parts]


def parse_lengths(texts: Sequence[str]) -> list[LengthClass]:
    """Classes such as ``1000,200`` (prompt and output tokens) or ``3x1000,200`` (three times as many as one of
    another).

    Raises:
        UsageError: one is not of this form.
    """
    found: list[LengthClass] = []
    for text in texts:
        match = _LENGTHS.fullmatch(text.strip())
        jobs = float(match[1] or 1) if match else 0.0
        tokens = [int(number) for number in match.groups()[1:]] if match else []
        if match is None or jobs <= 0 or not all(0 < n <= _MOST_TOKENS for n in tokens):
            raise UsageError(
                f"--lengths {text}: give PROMPT,OUTPUT tokens as 1000,200, or 3x1000,200 for a larger part"
            )
        found.append(LengthClass.of(tokens[0], tokens[1], jobs))
    return found


def _octave(tokens: Floats) -> Ints:
    return (np.log(np.maximum(tokens, 1.0)) / np.log(_CLASS_WIDTH)).astype(np.int64)

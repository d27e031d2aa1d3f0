"""Requests with the lengths of a trace. The server knows how long each answer is; whoever places requests does not."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from benchmarks.cluster import BenchmarkError
from workers.engines.simulated_wire import BYTES_PER_TOKEN, OUTPUT_TOKENS_KEY

MODEL = "simulated"
URL = "/v1/chat/completions"

#: Traces by name: file below ``traces`` of a data folder, columns of prompt and output tokens.
TRACES = {
    "conv": ("AzureLLMInferenceTrace_conv.csv", "ContextTokens", "GeneratedTokens"),
    "code": ("AzureLLMInferenceTrace_code.csv", "ContextTokens", "GeneratedTokens"),
    "sharegpt": ("helix_shared_gpt_lengths.csv", "prompt_tokens", "output_tokens"),
    "arxiv": ("arxiv_summarization_llama2_lengths.csv", "num_prefill_tokens", "num_decode_tokens"),
}

# Without a trace. Tokens at some quantiles of the conversations in AzureLLMInferenceTrace_conv.csv (CC-BY-4.0,
# Splitwise, ISCA '24); in between it is taken to be linear.
_QUANTILES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
_PROMPTS = (2, 181, 207, 387, 403, 703, 1020, 1071, 1130, 1315, 2735, 4083, 4098, 4142, 4831, 14050)
_OUTPUTS = (7, 41, 54, 77, 91, 103, 129, 177, 384, 400, 424, 451, 540, 601, 644, 1000)

# Lognormals with their medians and means. One in fifty answers is longer than 950 tokens; of the trace's, than 540.
_PROMPT_MEDIAN, _PROMPT_SIGMA = 1000.0, 0.7
_OUTPUT_MEDIAN, _OUTPUT_SIGMA = 135.0, 0.95


@dataclass(frozen=True, slots=True)
class Request:
    """One chat request.

    Attributes:
        custom_id: its number, as text.
        body: JSON. All ask for the same, generous ``max_completion_tokens``.
        max_tokens: that number.
        prompt_tokens: by the simulated server's count.
        output_tokens: what the server will answer with.
    """

    custom_id: str
    body: bytes
    max_tokens: int
    prompt_tokens: int
    output_tokens: int

    @property
    def tokens(self) -> int:
        """KV tokens it holds at its end, and what it counts for in tokens a second."""
        return self.prompt_tokens + self.output_tokens


def conversation_lengths(count: int, longest_prompt: int, rng: random.Random) -> list[tuple[int, int]]:
    """Prompt and output tokens as in conversations, drawn apart from each other; longer prompts are cut."""

    def draw(values: Sequence[int]) -> int:
        return round(float(np.interp(rng.random(), _QUANTILES, values)))

    return [(min(draw(_PROMPTS), longest_prompt), draw(_OUTPUTS)) for _ in range(count)]


def drawn_lengths(count: int, longest_prompt: int, rng: random.Random) -> list[tuple[int, int]]:
    """Prompt and output tokens from heavy-tailed distributions; longer prompts are cut."""

    def draw(median: float, sigma: float) -> int:
        return max(1, round(median * rng.lognormvariate(0.0, sigma)))

    return [
        (min(draw(_PROMPT_MEDIAN, _PROMPT_SIGMA), longest_prompt), draw(_OUTPUT_MEDIAN, _OUTPUT_SIGMA))
        for _ in range(count)
    ]


def trace_lengths(
    path: Path, columns: tuple[str, str], count: int, longest_prompt: int, rng: random.Random
) -> list[tuple[int, int]]:
    """Prompt and output tokens of so many requests of a trace, drawn with replacement; longer prompts are left out.

    Raises:
        BenchmarkError: the file cannot be read, or is no CSV file with these columns of whole numbers.
    """
    try:
        with path.open(newline="") as file:
            rows = [(int(row[columns[0]]), int(row[columns[1]])) for row in csv.DictReader(file)]
    except OSError as error:
        raise BenchmarkError(f"cannot read the trace {path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError):
        raise BenchmarkError(f"{path} is no CSV file with whole numbers in {' and '.join(columns)}") from None
    fitting = [(max(1, prompt), max(1, output)) for prompt, output in rows if prompt <= longest_prompt]
    if not fitting:
        raise BenchmarkError(f"{path} has no requests with prompts up to {longest_prompt} tokens")
    return [rng.choice(fitting) for _ in range(count)]


def make_requests(lengths: Sequence[tuple[int, int]], max_tokens: int, rng: random.Random) -> list[Request]:
    """Requests of these lengths. Their texts have nothing in common, so that no prefix cache plays a part."""
    requests: list[Request] = []
    for number, (prompt_tokens, wanted) in enumerate(lengths):
        text = rng.randbytes(prompt_tokens * BYTES_PER_TOKEN // 2).hex()  # exactly that many tokens of 4 characters
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": text}],
            "max_completion_tokens": max_tokens,
            "metadata": {OUTPUT_TOKENS_KEY: str(wanted)},
        }
        answer = min(wanted, max_tokens)
        requests.append(Request(str(number), orjson.dumps(body), max_tokens, prompt_tokens, answer))
    return requests

"""Requests for a simulation, from the rows of a trace or the sizes of a batch file's bodies. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from broker.errors import InputFileError, UsageError
from planner.simulate import Requests

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Headers that are known: columns of prompt tokens, output tokens and arrival (Azure, Vidur, BurstGPT, plain).
_HEADERS = (
    ("contexttokens", "generatedtokens", "timestamp"),
    ("num_prefill_tokens", "num_decode_tokens", "arrived_at"),
    ("request tokens", "response tokens", "timestamp"),
    ("prompt_tokens", "output_tokens", "arrival"),
    ("input_length", "output_length", "timestamp"),
)
#: No request is longer (tokens): what says so is another column.
_MOST_TOKENS = 10**9


@dataclass(frozen=True, slots=True)
class Lengths:
    """Requests as they were recorded, in order of arrival.

    Attributes:
        prompt_tokens: shape (requests,).
        output_tokens: likewise.
        arrivals: seconds from the first one, ascending; None where no times were recorded.
        left_out: rows that are no request.
        problem: what is wrong with the first of these.
    """

    prompt_tokens: Ints
    output_tokens: Ints
    arrivals: Floats | None = None
    left_out: int = 0
    problem: str = ""

    def __len__(self) -> int:
        return len(self.prompt_tokens)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When requests come: ``backlog`` all at the start, ``trace`` as recorded, ``rate`` at random, so many a second.

    ``value`` is that rate, or how many times faster than recorded they come.
    """

    kind: str
    value: float = 1.0


def parse_arrivals(text: str) -> Arrivals:
    """``backlog``, ``trace``, ``12.5/s`` or ``x2``.

    Raises:
        UsageError: it is none of these.
    """
    if text in ("backlog", "trace"):
        return Arrivals(text)
    for pattern, kind in ((r"(\d*\.?\d+)/s", "rate"), (r"x(\d*\.?\d+)", "trace")):
        found = re.fullmatch(pattern, text)
        if found and float(found[1]) > 0:
            return Arrivals(kind, float(found[1]))
    raise UsageError(f"--arrivals {text}: give backlog, trace, a rate as 12/s, or the trace x2 as fast")


def parse_trace(rows: Iterable[Sequence[str]], columns: Sequence[str], source: str) -> Lengths:
    """The requests of a trace's rows, of which the first is its header.

    A row without a prompt token, or that holds no numbers, is left out and counted.

    Args:
        rows: cells of each row.
        columns: names of the columns of prompt tokens, output tokens and, if there is one, time of arrival (seconds,
            or date and time); none: a known header tells.
        source: the file's name, for messages.

    Raises:
        InputFileError: a column is missing, or not one row is a request.
    """
    numbered = enumerate(rows, 1)
    _, header = next(numbered, (1, []))
    wanted = _positions([name.strip() for name in header], columns, source)
    found: list[tuple[float, int, int]] = []
    left_out, problem = 0, ""
    for number, row in numbered:
        if not row:
            continue
        try:
            found.append(_request(row, wanted))
        except (ValueError, IndexError, OverflowError) as error:
            left_out += 1
            problem = problem or f"{source}:{number}: {_reason(error)}"
    if not found:
        raise InputFileError(problem or f"{source} has no request in it")
    table = np.array(found)
    if len(wanted) == 3:
        table = table[np.argsort(table[:, 0], kind="stable")]
    arrivals = table[:, 0] - table[0, 0] if len(wanted) == 3 else None
    return Lengths(table[:, 1].astype(np.int64), table[:, 2].astype(np.int64), arrivals, left_out, problem)


def _positions(header: list[str], columns: Sequence[str], source: str) -> list[int]:
    there = {name.casefold(): n for n, name in reversed(list(enumerate(header)))}
    shown = ", ".join(header) or "nothing"
    if columns:
        missing = [name for name in columns if name.strip().casefold() not in there]
        if missing:
            raise InputFileError(f"{source} has no column {missing[0]!r}: its header is {shown}")
        return [there[name.strip().casefold()] for name in columns]
    for prompt, output, arrival in _HEADERS:
        if prompt in there and output in there:
            return [there[name] for name in (prompt, output, arrival) if name in there]
    raise InputFileError(f"{source}: say with --columns which are prompt and output tokens; its header is {shown}")


def _request(row: Sequence[str], wanted: list[int]) -> tuple[float, int, int]:
    prompt, output = (_tokens(row[n]) for n in wanted[:2])
    if prompt < 1:
        raise ValueError("no prompt token")
    return _seconds(row[wanted[2]].strip()) if len(wanted) == 3 else 0.0, prompt, output


def _tokens(text: str) -> int:
    try:
        tokens = float(text)
    except ValueError:
        raise ValueError(f"{text.strip()[:40]!r} is no number of tokens") from None
    if not 0 <= tokens <= _MOST_TOKENS or tokens != int(tokens):
        raise ValueError(f"{text.strip()[:40]!r} is no number of tokens")
    return int(tokens)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"{text[:40]!r} is no time: seconds, or date and time") from None
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    if not abs(seconds) < 1e15:
        raise ValueError(f"{text[:40]!r} is no time")
    return seconds


def _reason(error: Exception) -> str:
    return "too few cells" if isinstance(error, IndexError) else str(error)


def lengths_of_bodies(
    bodies: Iterable[tuple[int, int]],
    mean_output: float | None,
    bytes_per_token: float,
    rng: np.random.Generator,
) -> Lengths:
    """Requests of a batch file: prompts from the bodies' sizes, outputs as asked for.

    Args:
        bodies: bytes of each body and the ``max_tokens`` it names, 0 for none.
        mean_output: output lengths are drawn from an exponential distribution of this mean, and cut at ``max_tokens``;
            None: each is ``max_tokens``.
        bytes_per_token: bytes of a body for each prompt token.
        rng: the only source of chance.

    Raises:
        UsageError: a request names no ``max_tokens``, and there is no ``mean_output``.
    """
    table = np.array(list(bodies), dtype=np.int64).reshape(-1, 2)
    limits = np.where(table[:, 1] > 0, np.minimum(table[:, 1], _MOST_TOKENS), _MOST_TOKENS)
    if mean_output is not None:
        drawn = np.ceil(rng.exponential(mean_output, len(table))).astype(np.int64)
        outputs = np.clip(drawn, 1, limits)
    elif (table[:, 1] == 0).any():
        raise UsageError(f"{int((table[:, 1] == 0).sum())} requests name no max_tokens: say --mean-output TOKENS")
    else:
        outputs = limits
    prompts = np.maximum(np.rint(table[:, 0] / bytes_per_token).astype(np.int64), 1)
    return Lengths(prompts, outputs)


def requests_of(lengths: Lengths, jobs: int | None, arrivals: Arrivals, rng: np.random.Generator) -> Requests:
    """So many requests of these lengths.

    As recorded they come in their order, over and over, each time after the last. Otherwise they are shuffled, each
    once before any comes a second time; without ``jobs`` they are taken as they are.

    Args:
        lengths: at least one.
        jobs: how many; None: each once.
        arrivals: when they come.
        rng: the only source of chance.

    Raises:
        UsageError: times of arrival are asked for, and none were recorded.
    """
    count = len(lengths) if jobs is None else jobs
    if arrivals.kind == "trace":
        order, at = _repeated(lengths, count)
        return Requests(at / arrivals.value, lengths.prompt_tokens[order], lengths.output_tokens[order])
    order = np.arange(count) if jobs is None else _shuffled(len(lengths), count, rng)
    at = np.zeros(count)
    if arrivals.kind == "rate":
        at = np.cumsum(rng.exponential(1 / arrivals.value, count))
    return Requests(at, lengths.prompt_tokens[order], lengths.output_tokens[order])


def _shuffled(rows: int, count: int, rng: np.random.Generator) -> Ints:
    def permutations() -> Iterator[Ints]:
        for _ in range(-(-count // rows)):
            yield rng.permutation(rows)

    return np.concatenate(list(permutations()))[:count]


def _repeated(lengths: Lengths, count: int) -> tuple[Ints, Floats]:
    if lengths.arrivals is None:
        raise UsageError("--arrivals: no times of arrival are recorded: give backlog or a rate, or name the column")
    rows = len(lengths)
    turn, order = np.divmod(np.arange(count), rows)
    span = float(lengths.arrivals[-1])
    period = span + (span / (rows - 1) if rows > 1 else 1.0)
    return order, lengths.arrivals[order] + turn * period

"""Request lengths from traces, and mixtures of them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.cluster import BenchmarkError
from benchmarks.routing.workload import TRACES

Lengths = NDArray[np.int64]  # (requests, 2): prompt and output tokens

#: In the order of the tables.
_DEFAULT = ("code", "conv", "sharegpt", "arxiv")


@dataclass(frozen=True, slots=True)
class TraceFile:
    """A CSV file with a request a line."""

    name: str
    path: Path
    prompt_column: str
    output_column: str

    @classmethod
    def parse(cls, text: str) -> TraceFile:
        """From ``NAME=PATH:PROMPT_COLUMN:OUTPUT_COLUMN``.

        Raises:
            BenchmarkError: it is not of this form.
        """
        name, equals, rest = text.partition("=")
        path, *columns = rest.rsplit(":", 2)
        if not (name and equals and path and len(columns) == 2 and all(columns)):
            raise BenchmarkError(f"--trace {text}: give NAME=PATH:PROMPT_COLUMN:OUTPUT_COLUMN")
        return cls(name, Path(path), *columns)

    def read(self) -> Lengths:
        """Its lengths, each at least 1 token; shape (requests, 2).

        Raises:
            BenchmarkError: it cannot be read, or is no CSV file with numbers in these columns.
        """
        columns = self.prompt_column, self.output_column
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                rows = [[float(row[column]) for column in columns] for row in csv.DictReader(file)]
            lengths = np.array(rows).reshape(-1, 2)
        except OSError as error:
            raise BenchmarkError(f"cannot read the trace {self.path}: {error.strerror}") from None
        except (KeyError, TypeError, ValueError):
            raise BenchmarkError(f"{self.path} is no CSV file with numbers in {' and '.join(columns)}") from None
        if not len(lengths) or not np.isfinite(lengths).all():
            raise BenchmarkError(f"{self.path} has no requests, or lengths that are no numbers")
        return np.maximum(lengths.astype(np.int64), 1)


@dataclass(frozen=True, slots=True)
class Mix:
    """Requests of some traces in equal parts."""

    name: str
    traces: tuple[str, ...]


def default_traces(data: Path) -> list[TraceFile]:
    """The traces of a data folder."""
    return [TraceFile(name, data / "traces" / TRACES[name][0], *TRACES[name][1:]) for name in _DEFAULT]


def mixes_of(names: Sequence[str]) -> list[Mix]:
    """Each trace alone, and mixtures: all; with more than two also the last two, and all but the last."""
    names = list(dict.fromkeys(names))
    together = [names] if len(names) > 1 else []
    if len(names) > 3:
        together.insert(0, names[:-1])
    if len(names) > 2:
        together.append(names[-2:])
    mixtures = [Mix("all" if len(group) == len(names) > 2 else "+".join(group), tuple(group)) for group in together]
    return [Mix(name, (name,)) for name in names] + mixtures


def draw(traces: Mapping[str, Lengths], mix: Mix, count: int, longest: int, seed: int) -> tuple[Lengths, int]:
    """So many requests of a mix in random order; and how many were drawn but left out, as longer than ``longest``.

    Raises:
        BenchmarkError: no request of the mix is short enough.
    """
    rng = np.random.default_rng(seed)
    of_trace = rng.integers(len(mix.traces), size=count)
    drawn = np.empty((count, 2), dtype=np.int64)
    for i, name in enumerate(mix.traces):
        places = np.flatnonzero(of_trace == i)
        drawn[places] = rng.choice(traces[name], size=len(places))
    fitting = drawn[drawn.sum(axis=1) <= longest]
    if not len(fitting):
        raise BenchmarkError(f"no request of {mix.name} fits a device: the largest holds {longest} tokens")
    return fitting, count - len(fitting)

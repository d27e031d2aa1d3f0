"""What every benchmark shares: its options, its table, and its figures as JSON."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from broker.connection import RedisClient
from broker.errors import TokenyardError

Value = str | int | float | None
Row = Mapping[str, Value]

#: A log has no width of its own: wide enough for every table here.
console = Console(width=None if sys.stdout.isatty() else 140, soft_wrap=True)


def note(text: str) -> None:
    """Say how far a long benchmark is."""
    console.print(text, style="dim", highlight=False)


@dataclass(frozen=True, slots=True)
class Report:
    """What a benchmark found.

    Attributes:
        title: heading of the table.
        rows: lines of the table; all have the columns of the first.
        summary: the figures it is judged by.
        server: name and version of the Redis-compatible server.
        notes: what a reader should know, a line each.
        tables: smaller tables by title; those without rows are left out.
    """

    title: str
    rows: Sequence[Row]
    summary: Mapping[str, Value]
    server: str = ""
    notes: Sequence[str] = field(default_factory=tuple[str])
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict[str, Sequence[Row]])


def options_parser(module: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=description)
    parser.add_argument("--seed", type=int, default=0, help="seed of everything drawn at random")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    return parser


def at_least(least: float) -> Callable[[str], float]:
    """For argparse: a number no smaller than that, whole where ``least`` is."""

    def number(text: str) -> float:
        value = type(least)(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text}: give at least {least}")
        return value

    return number


def run_benchmark(main: Coroutine[Any, Any, Report], options: argparse.Namespace) -> None:
    """Run a benchmark to its end, print its tables and write its JSON; an error is one line and exit status 1."""
    try:
        if options.json is not None and not options.json.parent.is_dir():
            raise TokenyardError(f"--json {options.json}: there is no folder {options.json.parent}: make it first")
        report = asyncio.run(main)
        _print(report)
        if options.json is not None:
            figures = _as_json(report, options.seed)
            style = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY
            options.json.write_bytes(orjson.dumps(figures, option=style) + b"\n")
    except TokenyardError as error:
        main.close()
        console.print(f"error: {' '.join(str(error).split())}", style="bold red", markup=False, highlight=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


async def server_name(redis: RedisClient) -> str:
    """Name and version of the server."""
    info = await redis.info("server")
    if "valkey_version" in info:
        return f"valkey {info['valkey_version']}"
    return f"redis {info['redis_version']}"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of ``values`` that at least ``share`` of them do not exceed (nearest rank)."""
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]


def _as_json(report: Report, seed: int) -> dict[str, Any]:
    module = Path(sys.argv[0]).stem
    tables = {title: [dict(row) for row in rows] for title, rows in report.tables.items()}
    return {
        "command": shlex.join(["python", "-m", f"benchmarks.{module}", *sys.argv[1:]]),
        "seed": seed,
        "machine": {
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "server": report.server,
        },
        "rows": [dict(row) for row in report.rows],
        "summary": dict(report.summary),
        "notes": list(report.notes),
        **({"tables": tables} if tables else {}),
    }


def _print(report: Report) -> None:
    for title, rows in report.tables.items():
        if rows:
            console.print(_table(title, rows))
    console.print(_table(report.title, report.rows))
    for text in report.notes:
        note(text)
    for name, value in report.summary.items():
        console.print(f"{name}: {_shown(value)}", highlight=False)


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    names = list(rows[0]) if rows else []
    for name in names:
        is_text = any(isinstance(row[name], str) for row in rows)
        table.add_column(name.replace("_", " "), justify="left" if is_text else "right")
    for row in rows:
        table.add_row(*(_shown(row[name]) for name in names))
    return table


def _shown(value: Value) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        case int():
            return f"{value:,}"
        case str():
            return value

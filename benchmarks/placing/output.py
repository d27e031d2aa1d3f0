"""Tables beside the one of the report: printed, and added to its JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson
from rich.table import Table

from benchmarks.report import Row, Value, console

Tables = Mapping[str, Sequence[Row]]


def print_tables(tables: Tables) -> None:
    """Print those that have rows."""
    for title, rows in tables.items():
        if rows:
            table = Table(title=title, title_justify="left")
            for name, value in rows[0].items():
                justify = "left" if isinstance(value, str) else "right"
                table.add_column(name.replace("_", " "), justify=justify)
            for row in rows:
                table.add_row(*(_shown(value) for value in row.values()))
            console.print(table)


def add_tables(file: Path, tables: Tables) -> None:
    """Add them to the JSON file of a report, under ``tables``."""
    report = orjson.loads(file.read_bytes())
    report["tables"] = {title: [dict(row) for row in rows] for title, rows in tables.items()}
    file.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")


def _shown(value: Value) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value

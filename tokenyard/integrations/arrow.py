"""Arrow tables, and Parquet files of any size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from broker.errors import UsageError
from tokenyard.client.sync_client import Client
from tokenyard.integrations.columns import answers, in_rows, need

#: Rows of a Parquet file that are held at once.
_ROWS = 1000


def map_table(
    client: Client, table: Any, column: str, *, into: str = "answer", ids: str | None = None, **options: Any
) -> Any:
    """A ``pyarrow.Table`` with one more column; arguments and errors as of ``map_frame``.

    Raises:
        UsageError: it has a column ``into``.
    """
    arrow = need("pyarrow", "arrow")
    _refuse(into, table.column_names)
    names = [str(name) for name in table.column(ids).to_pylist()] if ids else None
    found = answers(client, table.column(column).to_pylist(), ids=names, **options)
    return table.append_column(into, arrow.array(found, arrow.string()))


def map_parquet(
    client: Client,
    source: str | Path,
    target: str | Path,
    column: str,
    *,
    into: str = "answer",
    batch: str | None = None,
    **options: Any,
) -> int:
    """A Parquet file with one more column, row by row in bounded memory. ``target`` appears when it is whole.

    Args:
        client: connected.
        source: the file; rows without a prompt get no answer, nor do those that fail.
        target: the new file; one that is there is replaced.
        column: the prompts.
        into: name of the new column.
        batch: key of the batch: the same call again after a crash goes on.
        options: as of ``Client.submit``.

    Returns:
        How many rows were written.

    Raises:
        MissingExtraError: pyarrow is not installed.
        UsageError: the file has a column ``into``.
        TokenyardError: as of ``Client.map``.
    """
    arrow, parquet = need("pyarrow", "arrow"), need("pyarrow.parquet", "arrow")
    target, file = Path(target), parquet.ParquetFile(source)
    _refuse(into, file.schema_arrow.names)
    unfinished = target.with_name(f".{target.name}.part")
    schema = file.schema_arrow.append(arrow.field(into, arrow.string()))
    prompts = _prompts(parquet.ParquetFile(source), column)  # it is ahead of the rows that are written
    rows = 0
    try:
        with (
            closing(client.map(prompts, batch=batch, **options)) as results,
            parquet.ParquetWriter(unfinished, schema) as writer,
        ):
            texts = (result.text for result in results)
            for part in file.iter_batches(batch_size=_ROWS):
                table = arrow.Table.from_batches([part])
                found = list(in_rows(table.column(column).to_pylist(), texts))
                writer.write_table(table.append_column(schema.field(into), arrow.array(found, arrow.string())))
                rows += table.num_rows
            next(texts, None)  # runs the reader to its end
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return rows


def _refuse(into: str, names: Sequence[str]) -> None:
    if into in names:
        raise UsageError(f"there is a column {into!r} already: name another one (into=…)")


def _prompts(file: Any, column: str) -> Iterator[str]:
    for part in file.iter_batches(batch_size=_ROWS, columns=[column]):
        yield from (value for value in part.column(0).to_pylist() if value is not None)

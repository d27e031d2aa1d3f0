"""pandas: a column of prompts in, a frame with a column of answers out."""

from __future__ import annotations

from typing import Any

from tokenyard.client.sync_client import Client
from tokenyard.integrations.columns import answers, need


def map_frame(
    client: Client, frame: Any, column: str, *, into: str = "answer", ids: str | None = None, **options: Any
) -> Any:
    """A copy of a ``pandas.DataFrame`` with one more column.

    Args:
        client: connected.
        frame: a DataFrame; rows without a prompt (None, NaN) get no answer.
        column: the prompts.
        into: name of the new column.
        ids: column of the rows' ids, see ``answers``.
        options: as of ``answers``.

    Raises:
        MissingExtraError: pandas is not installed.
        TokenyardError: as ``answers``.
    """
    pandas = need("pandas", "pandas")
    prompts = [None if pandas.isna(value) else value for value in frame[column].tolist()]
    names = [str(name) for name in frame[ids].tolist()] if ids else None
    found = answers(client, prompts, ids=names, **options)
    return frame.assign(**{into: pandas.Series(found, index=frame.index, dtype="object")})

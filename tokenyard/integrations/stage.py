"""A stage that adds a column of answers, for libraries that call it with some rows at a time."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from math import isnan
from typing import Any

import msgspec

from tokenyard.client.sync_client import Client
from tokenyard.integrations.columns import answers


class ColumnStage:
    """Takes rows as columns, gives the same with one more.

    ``map_dataset`` is made of it. Ray Data:
    ``dataset.map_batches(ColumnStage, fn_constructor_kwargs={"column": "question"}, concurrency=4)``, a connection for
    each actor.

    Each call is a batch, named by ``batch`` and what it is given: a task that is repeated runs nothing twice.

    Args:
        column: the prompts.
        into: name of the new column.
        ids: column of the rows' ids, see ``answers``.
        batch: key that all batches' keys begin with, at most 60 characters; None: batches that nobody goes on with.
        url: address of Redis; None: TOKENYARD_REDIS_URL.
        options: as of ``answers``.
    """

    def __init__(
        self,
        column: str,
        *,
        into: str = "answer",
        ids: str | None = None,
        batch: str | None = None,
        url: str | None = None,
        **options: Any,
    ) -> None:
        self._column = column
        self._into = into
        self._ids = ids
        self._batch = batch
        self._url = url
        self._options = options
        self._client: Client | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What another process makes the stage of: all but the connection."""
        return {**self.__dict__, "_client": None}

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """The rows with their answers; ``rows``: a list or an array a column. Errors as of ``answers``."""
        if self._client is None:
            self._client = Client(self._url)
        prompts = [None if _is_nan(value) else value for value in _plain(rows[self._column])]
        names = [str(name) for name in _plain(rows[self._ids])] if self._ids else None
        key = f"{self._batch}-{_digest([prompts, names])}" if self._batch else None
        return {**rows, self._into: answers(self._client, prompts, ids=names, batch=key, **self._options)}

    def close(self) -> None:
        """Disconnect; it connects again when it is called."""
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _plain(values: Any) -> list[Any]:
    """A list of plain values, of a list or an array."""
    return list(values.tolist() if hasattr(values, "tolist") else values)


def _is_nan(value: Any) -> bool:
    """Whether it stands for nothing: as an array, rows that all have no prompt are numbers."""
    return isinstance(value, float) and isnan(value)


def _digest(values: Any) -> str:
    return blake2b(msgspec.json.encode(values), digest_size=12).hexdigest()

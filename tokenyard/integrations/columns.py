"""A column of prompts in, a column of answers out: what all integrations do."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from broker.errors import UsageError
from tokenyard.client.items import Item, RequestError
from tokenyard.client.sync_client import Client


class MissingExtraError(UsageError):
    """A library that is asked for is not installed."""


def need(module: str, extra: str) -> Any:
    """An optional library.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.partition(".")[0]
        raise MissingExtraError(f"{name} is not installed: pip install 'tokenyard[{extra}]'") from None


def answers(
    client: Client,
    values: Iterable[Item | None],
    *,
    ids: Sequence[str] | None = None,
    batch: str | None = None,
    strict: bool = False,
    system: str = "",
    **options: Any,
) -> list[str | None]:
    """The model's text for each value, in their order; None where the value is None, and where a request failed.

    Args:
        client: connected.
        values: prompts, or bodies of OpenAI's API.
        ids: their custom_ids: under the same ``batch`` a row with the same id is not run again, wherever it stands.
            None: place and content tell.
        batch: key of the batch, for a step that can be repeated.
        strict: a failed request is an error.
        system: system message before each prompt.
        options: as of ``Client.submit``.

    Raises:
        RequestFailedError: one failed, and ``strict`` is asked for.
        TokenyardError: as of ``Client.map``.
    """
    rows = list(values)
    if ids is not None and len(ids) != len(rows):
        raise RequestError(f"{len(rows)} values have {len(ids)} ids: give one for each")
    named = [str(name) for name, row in zip(ids, rows, strict=True) if row is not None] if ids is not None else None
    items = [row for row in rows if row is not None]
    if named is not None:
        items = [_named(name, item, system) for name, item in zip(named, items, strict=True)]
    results = client.map(items, batch=batch, order="input" if named is None else named, system=system, **options)
    texts = iter([(result.check() if strict else result).text for result in results])
    return list(in_rows(rows, texts))


def in_rows(rows: Iterable[object], texts: Iterator[str | None]) -> Iterator[str | None]:
    """The next text for each row that is not None."""
    for row in rows:
        yield None if row is None else next(texts)


def _named(name: str, item: Item, system: str) -> Item:
    if not isinstance(item, str):
        return {**item, "custom_id": name}
    before = [{"role": "system", "content": system}] if system else []
    return {"custom_id": name, "messages": [*before, {"role": "user", "content": item}]}

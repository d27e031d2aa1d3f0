"""Hugging Face datasets: a column of prompts in, a dataset with a column of answers out."""

from __future__ import annotations

from typing import Any

from tokenyard.integrations.columns import need
from tokenyard.integrations.stage import ColumnStage


def map_dataset(
    dataset: Any,
    column: str,
    *,
    into: str = "answer",
    batch_size: int = 1000,
    num_proc: int | None = None,
    **options: Any,
) -> Any:
    """A ``datasets.Dataset`` with one more column of texts (or with that one replaced).

    The library's own cache is not asked: it would keep what failed. Under a ``batch`` key the queue knows what has run.

    Args:
        dataset: a Dataset; rows without a prompt get no answer, nor do those that fail.
        column: the prompts.
        into: name of the new column.
        batch_size: rows a call, each of which is a batch of the queue.
        num_proc: processes that submit and wait, a connection each; None: this one.
        options: as of ``ColumnStage``.

    Raises:
        MissingExtraError: datasets is not installed.
        TokenyardError: as ``answers``.
    """
    datasets = need("datasets", "datasets")
    stage = ColumnStage(column, into=into, **options)
    # Without its type, a first batch that has no answers would make it a column of nothing.
    features = datasets.Features({**dataset.features, into: datasets.Value("string")})
    try:
        return dataset.map(
            stage,
            batched=True,
            batch_size=batch_size,
            num_proc=num_proc,
            features=features,
            load_from_cache_file=False,
        )
    finally:
        stage.close()

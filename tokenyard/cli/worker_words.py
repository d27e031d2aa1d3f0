"""Whether ``tokenyard worker`` would take some words, without running it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import typer

from broker.errors import UsageError


def words_checker(group: Any) -> Callable[[Sequence[str]], None]:
    """What raises UsageError where ``tokenyard worker`` refuses these words.

    Args:
        group: the whole command line, as typer built it.
    """
    command: Any = group.get_command(typer.Context(group), "worker")

    def check(words: Sequence[str]) -> None:
        try:
            command.make_context("worker", list(words))
        except Exception as error:
            said: Callable[[], str] | None = getattr(error, "format_message", None)  # click's, or typer's own of it
            if said is None:
                raise
            raise UsageError(said()) from None

    return check

"""Dead letters as a person reads them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.table import Table

from broker.dead_letters import DeadLetter
from tokenyard.views.text import counted, name_cell, printable

#: Names that a line shows, and how much of each.
_SHOWN = 5
_SHOWN_CHARS = 200


def letters_view(letters: Iterable[DeadLetter]) -> Table:
    """Jobs that failed for good, one a line."""
    table = Table(box=None, pad_edge=False)
    for title in ("job", "custom_id", "died", "attempts", "why"):
        table.add_column(title, no_wrap=title != "why")
    for letter in letters:
        why = printable(letter.why)
        table.add_row(
            printable(letter.job_id), name_cell(letter.custom_id), _time(letter.died), str(len(letter.attempts)), why
        )
    return table


def letter_lines(letter: DeadLetter) -> list[str]:
    """One letter, with every attempt: where, when, why, how long."""
    lines = [
        f"job {letter.job_id}, custom_id {letter.custom_id}, batch {letter.batch}",
        f"submitted {_time(letter.submitted)}, given up {_time(letter.died)}: {letter.why}",
    ]
    for attempt in letter.attempts:
        since = f"until {_time(attempt.ended)}"
        if attempt.started:
            since = f"from {_time(attempt.started)} for {attempt.seconds:.1f} s"
        lines.append(f"attempt {attempt.attempt} on {attempt.worker}, {since}: {attempt.why}")
    if not letter.has_body:
        lines.append("its request is too long to be kept here: submit its line again from its file")
    return [printable(" ".join(line.split())) for line in lines]


def without_letter_line(jobs: Sequence[str]) -> str:
    """Jobs on the list that have no letter: how many, the first of them, and what to do."""
    have, them = ("has", "it") if len(jobs) == 1 else ("have", "them")
    first = ", ".join(printable(job[:_SHOWN_CHARS]) for job in jobs[:_SHOWN])
    rest = f" and {len(jobs) - _SHOWN:,} more" if len(jobs) > _SHOWN else ""
    return (
        f"{counted(len(jobs), 'job')} on the list {have} no letter that can be read, deleted or overwritten by hand: "
        f"{first}{rest}; `tokenyard dead drop JOB` takes {them} off the list"
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S") if 0 < seconds < 1e11 else "-"

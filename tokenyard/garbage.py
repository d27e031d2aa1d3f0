"""When Python looks for garbage in cycles."""

from __future__ import annotations

import gc

#: Objects made between two looks at the youngest, and such looks between two at the next older ones.
_THRESHOLDS = 50_000, 20, 100


def leave_it() -> None:
    """For a process that is about to end: the system takes all its memory, whoever refers to whom in there.

    Else Python looks through everything that was ever imported, which takes seconds where that is vLLM.
    """
    gc.freeze()


def collect_rarely() -> None:
    """For a process that holds jobs by the hundred thousand, and makes no cycles to speak of.

    By default Python looks through all of them again and again, which takes a good part of a busy scheduler's time and
    finds nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)

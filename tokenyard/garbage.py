"""How often Python looks for garbage in cycles."""

from __future__ import annotations

import gc

#: Objects made between two looks at the youngest, and such looks between two at the next older ones.
_THRESHOLDS = 50_000, 20, 100


def collect_rarely() -> None:
    """For a process that holds jobs by the hundred thousand, and makes no cycles to speak of.

    By default Python looks through all of them again and again, which takes a good part of a busy scheduler's time and
    finds nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)

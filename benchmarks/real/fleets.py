"""The unequal workers, on two cores."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.cluster import BenchmarkError
from tokenyard.local_cluster import WorkerSpec

#: Name of a worker -> its options but for the core, and which of the two cores is its own or shared. ``half`` is 16 bit
#: where the CPU has instructions for that.
_WORKERS = {
    "fast": ("--dtype {half} --seats 32 --kv-gib 0.5", 0),
    "slow": ("--dtype float32 --seats 8 --kv-gib 0.125", 1),
    "small": ("--dtype {half} --seats 4 --kv-gib 0.0625", 1),
}
_COMMON = "--context 1024 --eager"


def fleet(count: int, cores: Sequence[int], *, bfloat16: bool) -> list[WorkerSpec]:
    """So many unequal workers: the first alone on a core, the others on a second one, which three share.

    Args:
        count: 2 or 3.
        cores: that may be used.
        bfloat16: whether they have instructions for it; without, all compute in float32.

    Raises:
        BenchmarkError: there is one core alone.
    """
    if len(cores) < 2:
        raise BenchmarkError("this benchmark needs two cores: a worker on each, at least")
    ends = cores[0], cores[-1]
    half = "bfloat16" if bfloat16 else "float32"
    found: list[WorkerSpec] = []
    for name, (options, place) in list(_WORKERS.items())[:count]:
        words = f"{options.format(half=half)} {_COMMON} --cores {ends[place]}"
        found.append(WorkerSpec(name, tuple(words.split())))
    return found

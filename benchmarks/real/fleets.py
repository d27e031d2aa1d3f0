"""The unequal workers, on two cores."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.cluster import BenchmarkError
from tokenyard.local_cluster import WorkerSpec

#: Name of a worker -> its options but for the core, and which of the two cores is its own or shared.
_WORKERS = {
    "fast": ("--dtype {dtype} --seats 32 --kv-gib 0.5", 0),
    "slow": ("--dtype float32 --seats 8 --kv-gib 0.125", 1),
    "small": ("--dtype {dtype} --seats 4 --kv-gib 0.0625", 1),
}
_COMMON = "--context 1024 --eager"


def fleet(count: int, cores: Sequence[int], dtype: str) -> list[WorkerSpec]:
    """So many unequal workers: the first alone on a core, the others on a second one, which three share.

    Args:
        count: 2 or 3.
        cores: that may be used.
        dtype: that they compute fastest; the slow one computes in float32 whatever it is.

    Raises:
        BenchmarkError: there is one core alone.
    """
    if len(cores) < 2:
        raise BenchmarkError("this benchmark needs two cores: a worker on each, at least")
    ends = cores[0], cores[-1]
    found: list[WorkerSpec] = []
    for name, (options, place) in list(_WORKERS.items())[:count]:
        words = f"{options.format(dtype=dtype)} {_COMMON} --cores {ends[place]}"
        found.append(WorkerSpec(name, tuple(words.split())))
    return found

"""Kernel times of public devices, from the optional package aiconfigurator-core (NVIDIA, Apache-2.0).

Its files are read with pyarrow, and nothing of it is imported. As of its version 0.12 they are
``systems/data/SYSTEM/gemm/vllm/VERSION/gemm_perf.parquet``, with the columns device, gemm_dtype, m, n, k and latency
(milliseconds).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from planner.kernel_rates import KernelRates, KernelTime, kernel_rates

log = logging.getLogger(__name__)

PACKAGE = "aiconfigurator_core"
#: What to install for it.
EXTRA = "pip install 'tokenyard[aiconfigurator]'"
_TABLE = "gemm_perf.parquet"
_COLUMNS = ("device", "gemm_dtype", "m", "n", "k", "latency")
_DTYPE = "bfloat16"


def is_installed() -> bool:
    """Whether there is a database to read."""
    return find_spec(PACKAGE) is not None


@cache
def known_rates() -> tuple[KernelRates, ...]:
    """The rates of all devices of the database; none where it is not installed, or cannot be read (then with a
    warning: estimates are from specifications, as without it)."""
    spec = find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    return tuple(rate for folder in folders for rate in _read(Path(folder) / "systems" / "data"))


def _read(data: Path) -> Iterator[KernelRates]:
    tables = [table for system in sorted(data.glob("*/gemm/vllm")) if (table := _newest(system))]
    if not tables:
        log.warning("%s has no times of vLLM's kernels that are known here: %s is passed over", data, PACKAGE)
    for table in tables:
        source = f"kernel times of {PACKAGE.replace('_', '-')} (vLLM {table.parent.name})"
        try:
            yield from kernel_rates(_rows(table), source)
        except Exception as error:  # pyarrow's own kinds of errors, or a file of another form
            log.warning("cannot read %s (%s): passed over", table, error)


def _rows(table: Path) -> Iterator[KernelTime]:
    parquet: Any = import_module("pyarrow.parquet")  # comes with the package
    found: Any = parquet.read_table(table, columns=list(_COLUMNS), filters=[("gemm_dtype", "=", _DTYPE)])
    columns = [found.column(name).to_pylist() for name in _COLUMNS]
    for device, dtype, m, n, k, milliseconds in zip(*columns, strict=True):
        yield KernelTime(str(device), str(dtype), int(m), int(n), int(k), float(milliseconds) / 1e3)


def _newest(system: Path) -> Path | None:
    """The table of the newest version of vLLM of which there is one."""
    return max(system.glob(f"*/{_TABLE}"), key=lambda table: _version(table.parent.name), default=None)


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", name))

"""Rows of a linear program, put together one by one, as HiGHS takes them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import highspy
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.intp]


@dataclass(slots=True)
class Rows:
    """A sparse matrix in the making, with the bounds of its rows."""

    rows: list[Index] = field(default_factory=list[Index])
    cols: list[Index] = field(default_factory=list[Index])
    values: list[Array] = field(default_factory=list[Array])
    lower: list[float] = field(default_factory=list[float])
    upper: list[float] = field(default_factory=list[float])

    def add(self, cols: Sequence[int] | Index, values: Sequence[float] | Array, low: float, up: float) -> None:
        """One more row: ``low <= values . x[cols] <= up``."""
        self.rows.append(np.full(len(cols), len(self.lower), dtype=np.intp))
        self.cols.append(np.asarray(cols, dtype=np.intp))
        self.values.append(np.asarray(values, dtype=float))
        self.lower.append(low)
        self.upper.append(up)


def fill(lp: highspy.HighsLp, rows: Rows, extra: Rows) -> None:
    """Both sets of rows, one below the other, column by column as HiGHS takes them."""
    lp.num_row_ = len(rows.lower) + len(extra.lower)
    at = np.concatenate([*rows.rows, *(part + len(rows.lower) for part in extra.rows)])
    cols = np.concatenate([*rows.cols, *extra.cols])
    values = np.concatenate([*rows.values, *extra.values])
    order = np.argsort(cols, kind="stable")
    lp.row_lower_ = np.array([*rows.lower, *extra.lower])
    lp.row_upper_ = np.array([*rows.upper, *extra.upper])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.concatenate([[0], np.cumsum(np.bincount(cols, minlength=lp.num_col_))]).astype(np.int32)
    lp.a_matrix_.index_, lp.a_matrix_.value_ = at[order].astype(np.int32), values[order]

"""A linear program with whole numbers as plain arrays, put together row by row, and as HiGHS takes it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import highspy
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Mask = NDArray[np.bool_]


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

    def matrix(self, columns: int) -> Matrix:
        """All of it, column by column."""
        at, cols, values = np.concatenate(self.rows), np.concatenate(self.cols), np.concatenate(self.values)
        order = np.argsort(cols, kind="stable")
        start = np.concatenate([[0], np.cumsum(np.bincount(cols, minlength=columns))])
        return Matrix(start, at[order], cols[order], values[order], np.array(self.lower), np.array(self.upper))


@dataclass(frozen=True, slots=True)
class Matrix:
    """A sparse matrix column by column, with the bounds of its rows.

    Attributes:
        start: of each column its first entry; one more at the end.
        row: of each entry.
        column: of each entry.
        value: of each entry.
        lower: of each row.
        upper: of each row.
    """

    start: Index
    row: Index
    column: Index
    value: Array
    lower: Array
    upper: Array

    def some(self, columns: Index) -> tuple[Index, Index, Array]:
        """Of these columns where each starts, and rows and values of their entries."""
        lengths = self.start[columns + 1] - self.start[columns]
        start = np.concatenate([[0], np.cumsum(lengths)])
        at = np.repeat(self.start[columns] - start[:-1], lengths) + np.arange(start[-1])
        return start, self.row[at], self.value[at]

    def with_row(self, columns: Index, values: Array, low: float, up: float) -> Matrix:
        """The same with one more row."""
        row = np.concatenate([self.row, np.full(len(columns), len(self.lower))])
        column, value = np.concatenate([self.column, columns]), np.concatenate([self.value, values])
        order = np.argsort(column, kind="stable")
        start = np.concatenate([[0], np.cumsum(np.bincount(column, minlength=len(self.start) - 1))])
        lower, upper = np.append(self.lower, low), np.append(self.upper, up)
        return Matrix(start, row[order], column[order], value[order], lower, upper)


@dataclass(frozen=True, slots=True)
class Model:
    """A program: ``costs . x`` is to be as small as can be.

    Attributes:
        costs: of each column.
        lower: least value of each column.
        upper: largest value of each column.
        integer: columns whose values are whole numbers.
        matrix: the rows.
    """

    costs: Array
    lower: Array
    upper: Array
    integer: Mask
    matrix: Matrix

    def lp(self, columns: Index) -> highspy.HighsLp:
        """The program of these columns alone, without whole numbers."""
        return linear(self.costs[columns], self.lower[columns], self.upper[columns], self.matrix.some(columns), self)


def linear(
    costs: Array, lower: Array, upper: Array, entries: tuple[Index, Index, Array], model: Model
) -> highspy.HighsLp:
    """A program of some columns and all rows of a model, as HiGHS takes it."""
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(costs), len(model.matrix.lower)
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = costs, lower, upper
    lp.row_lower_, lp.row_upper_ = model.matrix.lower, model.matrix.upper
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_, lp.a_matrix_.index_ = entries[0].astype(np.int32), entries[1].astype(np.int32)
    lp.a_matrix_.value_ = entries[2]
    return lp

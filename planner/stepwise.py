"""A large mixed-integer program by way of smaller ones. Pure.

Of a large program most time goes into columns that no good solution uses. So its linear relaxation is solved first
(``planner.relaxation``): its value bounds what any solution can reach, and its reduced costs tell how much a column
would have to become cheaper to be of use. Then the program is solved with ever more of its columns: with the counts
that the relaxation uses, to be rounded; with all counts that are not too dear; with all columns. What one of these
finds is proven for the whole where it comes near enough to the bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from planner.mixed_integer import NoTimeError, Solution, Terms, solve_columns
from planner.relaxation import Relaxed, Sharing, near
from planner.sparse_rows import Index, Mask, Model

#: A count below this is none.
_ZERO = 1e-6
#: Columns of a step: so many of each class and each kind (0: all) that cost no more than this share beyond their worth.
_FIRST, _NEXT, _LAST = (4, 0.03), (12, 0.03), (0, 0.03)
#: Some counts are looked at for so long (seconds).
_SOME_S = 1.0
#: So many columns that share jobs out need no choice of those nearest.
_FEW = 15_000


def solve_relaxed(
    model: Model, sharing: Sharing, relaxed: Relaxed, terms: Terms, best: Solution | None = None
) -> Solution | None:
    """The best solution, or the best found in time; None where there is none.

    Args:
        model: the program.
        sharing: its columns that share the jobs out.
        relaxed: its relaxation; the seconds that took do not count.
        terms: when to end.
        best: a solution that is known.

    Raises:
        NoTimeError: the time ran out before anything was found.
    """
    spent, bound = 0.0, max(relaxed.bound, best.bound if best is not None else relaxed.bound)
    if best is not None and best.short <= terms.allowed(best.objective):
        return replace(best, seconds=0.0, stopped=False)
    for step in _steps(model, sharing, relaxed):
        left = terms.after(spent)
        limit_s = left.prove_s if best is not None and terms.useful(best) else left.limit_s
        if best is not None and limit_s <= 0:
            break
        # A whole number of what costs more than is missing to the bound is in no better solution.
        worse = model.integer & (relaxed.costs > (np.inf if best is None else best.short))
        columns, whole = np.flatnonzero(step & ~worse), bool(step.all())
        try:
            found = solve_columns(model, columns, terms, limit_s, None if best is None else best.values)
        except NoTimeError:
            if best is None and whole:
                raise
            spent += limit_s
            continue
        spent += found.seconds if found is not None else 0.0
        if found is not None and not whole:
            found = _with_all_sharing(model, sharing, found, terms)
            spent += found.seconds
        best = _better(best, found, bound, whole=whole)
        if best is not None and best.short <= terms.allowed(best.objective):
            break
    if best is None:
        return None
    return replace(best, seconds=spent, stopped=best.short > terms.allowed(best.objective))


def solve_some(model: Model, sharing: Sharing, relaxed: Relaxed, terms: Terms, counts: Index) -> Solution | None:
    """The best solution, or the best found in time, that has none but these counts; None where none was found."""
    some = ~model.integer
    some[counts] = True
    columns = _near(model, sharing, relaxed, some, _NEXT)
    try:
        found = solve_columns(model, np.flatnonzero(columns), terms, min(terms.limit_s, _SOME_S))
    except NoTimeError:
        return None
    if found is None:
        return None
    shared = _with_all_sharing(model, sharing, found, terms)
    return replace(shared, seconds=found.seconds + shared.seconds)


def _with_all_sharing(model: Model, sharing: Sharing, found: Solution, terms: Terms) -> Solution:
    """The same whole numbers with the best way to share the jobs out, of all columns."""
    pairs = len(sharing.classes)
    counts = np.where(model.integer, np.round(found.values), 0.0)
    columns = ~model.integer | (counts > 0)
    columns[:pairs] = _kinds(model, sharing, columns)[sharing.kinds]
    fixed = np.flatnonzero(model.integer)
    lower, upper = model.lower.copy(), model.upper.copy()
    lower[fixed] = upper[fixed] = counts[fixed]
    linear = replace(model, lower=lower, upper=upper, integer=np.zeros(len(lower), dtype=bool))
    try:
        shared = solve_columns(linear, np.flatnonzero(columns), terms, terms.limit_s)
    except NoTimeError:
        return replace(found, seconds=terms.limit_s)
    if shared is None or shared.objective >= found.objective:
        return replace(found, seconds=0.0 if shared is None else shared.seconds)
    return replace(found, values=shared.values, objective=shared.objective, seconds=shared.seconds)


def _near(model: Model, sharing: Sharing, relaxed: Relaxed, counts: Mask, limits: tuple[int, float]) -> Mask:
    """Some counts with the columns that are likely to share the jobs out."""
    columns = counts.copy()
    kinds = _kinds(model, sharing, counts)
    if int(kinds[sharing.kinds].sum()) <= _FEW:
        limits = _LAST
    worth = relaxed.prices[: len(sharing.shares)]
    columns[: len(sharing.classes)] = near(sharing, relaxed.costs, kinds, *limits, worth)
    return columns


def _steps(model: Model, sharing: Sharing, relaxed: Relaxed) -> Iterator[Mask]:
    """Ever more columns."""
    pairs = len(sharing.classes)
    used = np.ones(len(model.costs), dtype=bool)
    used[pairs:] = (relaxed.values > _ZERO) | ~model.integer[pairs:]
    every = np.ones(len(model.costs), dtype=bool)
    for counts, limits in ((used, _FIRST), (every, _NEXT), (every, _LAST)):
        yield _near(model, sharing, relaxed, counts, limits)
    yield every


def _kinds(model: Model, sharing: Sharing, columns: Mask) -> Mask:
    """Kinds of engines that some of these columns bring."""
    matrix, classes = model.matrix, len(sharing.shares)
    brought = (matrix.value < 0) & model.integer[matrix.column] & columns[matrix.column] & (matrix.row >= classes)
    kinds = np.zeros(int(sharing.kinds.max()) + 1, dtype=bool)
    number = (matrix.row[brought] - classes) // 4
    kinds[number[number < len(kinds)]] = True
    return kinds


def _better(best: Solution | None, found: Solution | None, bound: float, *, whole: bool) -> Solution | None:
    """The better of two, with what is known of all: of the whole program, what was left out cannot be better than
    ``best``."""
    least = best.objective if best is not None else float("inf")
    if whole:
        bound = max(bound, min(least, found.bound if found is not None else float("inf")))
    if found is None or found.objective >= least:
        return best if best is None else replace(best, bound=bound)
    return replace(found, bound=bound)

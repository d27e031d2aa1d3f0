"""The step-time model fitted to measured times by least squares. Pure.

The model is that of ``broker.throughput.Profile`` and ``broker.batching``: linear in its six coefficients, but for
steps that both prefill and decode, which pay the larger of the two fixed costs a and d once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from broker.profiles import FitErrors, KindError
from broker.throughput import Profile

#: What was timed: a step that only prefills, one that only decodes, one that does both, or whole requests.
Kind = Literal["prefill", "decode", "mixed", "whole"]

#: A point counts as disturbed from this many standard deviations on (estimated from the median deviation), ...
_OUTLIER_SIGMAS = 4.0
#: ... but never below this relative error: that far off, a model this simple may well be.
_OUTLIER_LEAST = 0.15
#: At most this share of a kind's points is left out.
_OUTLIER_SHARE = 0.2
#: Least absolute errors are found by this many rounds of least squares; errors below the small one count the same.
_REWEIGHTINGS = 8
_SMALL_ERROR = 0.005
#: A token of a prompt costs at most this share more for each two tokens of context (c over b). By the operations it is
#: a twelfth of one over the model's width, and attention is no more than some times slower than the rest: no measured
#: GPU is above half of this. Few and short prompts do not tell c from b, and a guess ruins what is predicted.
_MOST_SQUARES = 1e-3
#: A decode step's fixed time d reads the weights, and f a token's keys and values: f is at most this share of d. By the
#: bytes it is 2e-6 (Llama 70B) to 1e-4 (SmolLM2 135M), and no measured GPU is above 5e-5.
_MOST_CONTEXT = 4e-4
#: The standard deviation of a normal distribution over the median of the absolute deviations.
_SIGMA_PER_MEDIAN = 1.4826

_Matrix = NDArray[np.float64]


class Terms(NamedTuple):
    """What each coefficient is multiplied by, summed over the steps that were timed together.

    Attributes:
        prefills: steps that only prefill (a).
        decodes: steps that only decode (d).
        mixed: steps that do both (the larger of a and d).
        prompt: prompt tokens computed (b).
        squares: for each prefill of c tokens behind q, ``(q + c)^2 - q^2`` (c).
        running: requests that decoded, in every step (e).
        context: tokens of context these held, in every step (f).
    """

    prefills: float = 0.0
    decodes: float = 0.0
    mixed: float = 0.0
    prompt: float = 0.0
    squares: float = 0.0
    running: float = 0.0
    context: float = 0.0

    def seconds(self, profile: Profile) -> float:
        """What the profile predicts."""
        fixed = self.prefills * profile.prefill_a + self.decodes * profile.decode_d
        fixed += self.mixed * max(profile.prefill_a, profile.decode_d)
        prefill = profile.prefill_b * self.prompt + profile.prefill_c * self.squares
        return fixed + prefill + profile.decode_e * self.running + profile.decode_f * self.context


class Point(NamedTuple):
    """A measured time, seconds."""

    kind: Kind
    terms: Terms
    seconds: float


class Fit(NamedTuple):
    """The profile that fits best, and how well it does.

    Attributes:
        profile: the times.
        errors: of what was fitted.
        overhead: what a full engine took over what its single steps promise, which is in the times; 1 where it was not
            kept full.
    """

    profile: Profile
    errors: FitErrors
    overhead: float = 1.0


def fit_profile(points: Iterable[Point], *, kv_tokens: int, seats: int) -> Fit:
    """Least squares of the relative errors, no coefficient below zero (Lawson and Hanson's NNLS), c bounded by b
    and f by d.

    Repeated points count once, by their median; each kind of point weighs the same, however many there are. A first
    fit is of least absolute errors (by iterated reweighting), which few disturbed points do not pull; what lies far
    from it is taken for disturbed, and left out of the second, of least squares.

    Args:
        kv_tokens: tokens the KV cache holds, for the profile.
        seats: most requests at once, for the profile.

    Raises:
        ValueError: there is no point that took any time.
    """
    merged = _merge_repeats(points)
    if not merged:
        raise ValueError("no point took any time: there is nothing to fit")
    kept = _without_outliers(merged, _least_absolute(merged, kv_tokens, seats))
    profile = _solve(kept, _weights(kept), kv_tokens, seats)
    return Fit(profile, _errors(kept, profile, left_out=len(merged) - len(kept)))


def relative_error(point: Point, profile: Profile) -> float:
    """How far the profile's prediction is from the measured time, as a share of this."""
    return point.terms.seconds(profile) / point.seconds - 1


def _merge_repeats(points: Iterable[Point]) -> list[Point]:
    repeats: dict[tuple[Kind, Terms], list[float]] = defaultdict(list)
    for point in points:
        if point.seconds > 0:
            repeats[point.kind, point.terms].append(point.seconds)
    return [Point(kind, terms, median(times)) for (kind, terms), times in repeats.items()]


def _least_absolute(points: Sequence[Point], kv_tokens: int, seats: int) -> Profile:
    weights = _weights(points)
    profile = _solve(points, weights, kv_tokens, seats)
    for _ in range(_REWEIGHTINGS):
        sizes = np.abs([relative_error(point, profile) for point in points])
        profile = _solve(points, weights / np.sqrt(np.maximum(sizes, _SMALL_ERROR)), kv_tokens, seats)
    return profile


def _solve(points: Sequence[Point], weights: _Matrix, kv_tokens: int, seats: int) -> Profile:
    """The best of three linear problems: mixed steps pay a, or pay d, or the two are the same."""
    terms = np.array([point.terms for point in points], dtype=np.float64)
    seconds = np.array([point.seconds for point in points], dtype=np.float64)
    prefills, decodes, mixed, others = terms[:, 0], terms[:, 1], terms[:, 2], terms[:, 3:]
    none = np.zeros_like(mixed)
    solutions = [
        _bounded(prefills + mixed, decodes, others, weights, seconds),
        _bounded(prefills, decodes + mixed, others, weights, seconds),
        _bounded(prefills + decodes + mixed, none, others, weights, seconds),
    ]
    solutions[2][1] = solutions[2][0]
    profiles = [
        Profile(a, b, c, d, e, f, kv_tokens=kv_tokens, seats=seats)
        for a, d, b, c, e, f in (map(float, solution) for solution in solutions)
    ]
    return min(profiles, key=lambda profile: _loss(points, weights * seconds, profile))


def _bounded(a: _Matrix, d: _Matrix, others: _Matrix, weights: _Matrix, seconds: _Matrix) -> _Matrix:
    """Coefficients a, d, b, c, e, f, none of them negative, c and f within their bounds.

    What is solved for is how far b and d are above the least that goes with c and with f.
    """
    b, c, e, f = others.T
    fixed = 1 if d.any() else 0  # where a is d, it is in a's place
    columns = np.column_stack([a, d, b, c + b / _MOST_SQUARES, e, f + (a, d)[fixed] / _MOST_CONTEXT])
    found = _nnls(columns, weights, seconds)
    found[fixed] += found[5] / _MOST_CONTEXT
    found[2] += found[3] / _MOST_SQUARES
    return found


def _nnls(columns: _Matrix, weights: _Matrix, seconds: _Matrix) -> _Matrix:
    """Coefficients that are not negative. Columns are scaled: a token squared and a step differ by ten digits."""
    matrix = columns * weights[:, np.newaxis]
    scale = np.abs(matrix).max(axis=0)
    scale[scale == 0] = 1.0
    solution, _ = nnls(matrix / scale, weights * seconds)
    return np.asarray(solution / scale, dtype=np.float64)


def _weights(points: Sequence[Point]) -> _Matrix:
    """Errors count relative to the time, and kinds alike."""
    counts: dict[Kind, int] = defaultdict(int)
    for point in points:
        counts[point.kind] += 1
    return np.array([1.0 / (point.seconds * counts[point.kind] ** 0.5) for point in points], dtype=np.float64)


def _loss(points: Sequence[Point], importance: _Matrix, profile: Profile) -> float:
    errors = np.array([relative_error(point, profile) for point in points])
    return float(np.sum((importance * errors) ** 2))


def _without_outliers(points: Sequence[Point], profile: Profile) -> list[Point]:
    kept: list[Point] = []
    for of_kind in _by_kind(points).values():
        sizes = [abs(relative_error(point, profile)) for point in of_kind]
        limit = max(_OUTLIER_LEAST, _OUTLIER_SIGMAS * _SIGMA_PER_MEDIAN * median(sizes))
        most = int(len(of_kind) * _OUTLIER_SHARE)
        worst = sorted(range(len(of_kind)), key=sizes.__getitem__, reverse=True)[:most]
        dropped = {index for index in worst if sizes[index] > limit}
        kept.extend(point for index, point in enumerate(of_kind) if index not in dropped)
    return kept


def _errors(points: Sequence[Point], profile: Profile, left_out: int) -> FitErrors:
    found: dict[Kind, KindError] = {}
    for kind, of_kind in _by_kind(points).items():
        sizes = [abs(relative_error(point, profile)) for point in of_kind]
        found[kind] = KindError(points=len(sizes), mean=fmean(sizes), worst=max(sizes))
    return FitErrors(**found, left_out=left_out)


def _by_kind(points: Sequence[Point]) -> dict[Kind, list[Point]]:
    kinds: dict[Kind, list[Point]] = defaultdict(list)
    for point in points:
        kinds[point.kind].append(point)
    return kinds

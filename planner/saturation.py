"""An engine that is kept full, as it is at work: what its steps take then, by the clock on the wall. Pure.

Loads that are run one after another tell what a step costs by itself. At work there is more: requests are read,
tokenized and answered on cores that the engine may need itself, they come and go all the time, and slow steps count,
too. So the last part of a measurement keeps every seat taken for a while, first with requests that mostly read and then
with some that mostly write, and two factors, of the times for prompts and of all others, put the model right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from broker.engine_steps import EngineStep
from broker.profiles import KindError
from broker.throughput import Profile
from planner.fit import Fit, Terms
from planner.measured_steps import EngineLimits, Lengths

#: Requests that mostly read, and some that mostly write: what real ones are lies between.
_READING, _WRITING = Lengths(192, 16), Lengths(64, 64)
#: The first requests have short prompts, so that the seats fill at once (tokens).
_FIRST_PROMPT = 16
#: Requests hold this share of the KV cache at most: nothing may be preempted. Fewer run where each would hold less than
#: so many tokens.
_KV_SHARE, _LEAST_TOKENS = 0.8, 96
#: As a worker does, one more for so many seats: the engine starts it in the very step in which another ends.
_AHEAD = 16
#: A stretch begins when the batch is this full, and is cut into this many parts, of at least so many steps each.
_FULL, _PARTS, _LEAST_STEPS = 0.9, 8, 3
#: How much it takes for the two factors to differ, and how much of either is believed.
_ALIKE, _LEAST_FACTOR, _MOST_FACTOR = 0.1, 0.6, 2.0


class Served(NamedTuple):
    """A request of a stretch.

    Attributes:
        began: when the engine was given it, on the clock of its steps (seconds).
        ended: when it was answered; infinite where that was not waited for.
        prompt: tokens of its prompt.
    """

    began: float
    ended: float
    prompt: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """A time for which an engine was kept full: the requests that it was given and the steps that it made."""

    served: tuple[Served, ...]
    steps: tuple[EngineStep, ...]


@dataclass(frozen=True, slots=True)
class Filling:
    """What an engine is kept full with.

    Attributes:
        together: requests that it is given at once.
        reading: lengths of those in the first half of the time.
        writing: of those in the second.
    """

    together: int
    reading: Lengths
    writing: Lengths

    def first(self, number: int) -> Lengths:
        """The first request of each place: they end one after another, as they do when all goes its way."""
        return Lengths(min(_FIRST_PROMPT, self.reading.prompt), 1 + number * self.reading.output // self.together)

    def next(self, passed: float) -> Lengths:
        """Each further one, when that share of the time has passed."""
        return self.reading if passed < 0.5 else self.writing


def filling(limits: EngineLimits) -> Filling | None:
    """What to keep this engine full with; None where it can hold next to nothing."""
    seats = min(limits.seats, int(_KV_SHARE * limits.kv_tokens / _LEAST_TOKENS))
    if seats < 1 or limits.context_tokens < _LEAST_TOKENS:
        return None
    room = min(limits.context_tokens, int(_KV_SHARE * limits.kv_tokens / seats))
    reading = Lengths(min(_READING.prompt, room // 2), _READING.output)
    writing = Lengths(min(_WRITING.prompt, room // 4), min(_WRITING.output, room // 2))
    ahead = max(1, seats // _AHEAD) if seats == limits.seats else 0  # else there are seats for them, and no room
    return Filling(seats + ahead, reading, writing)


class Part(NamedTuple):
    """A part of a stretch: all that happened in it, and how long it was (seconds)."""

    terms: Terms
    seconds: float


def put_right(fit: Fit, parts: Sequence[Part]) -> Fit:
    """The fit of single steps, with its times as they are in a full engine; as it is where there are no parts.

    Least squares of the parts' relative errors in two factors, that of b and c and that of the others. They are drawn
    to what is missing in the whole, so that parts too much alike do not tell them apart by chance.
    """
    promised = sum(part.terms.seconds(fit.profile) for part in parts)
    if not parts or promised <= 0:
        return fit
    overhead = sum(part.seconds for part in parts) / promised
    reading = [_prompts_alone(part.terms).seconds(fit.profile) / part.seconds for part in parts]
    others = [part.terms.seconds(fit.profile) / part.seconds - r for part, r in zip(parts, reading, strict=True)]
    columns = np.array([*zip(reading, others, strict=True), (_ALIKE, 0.0), (0.0, _ALIKE)])
    wanted = np.array([*([1.0] * len(parts)), *([_ALIKE * overhead] * 2)])
    of_prompts, of_others = np.clip(np.linalg.lstsq(columns, wanted)[0], _LEAST_FACTOR, _MOST_FACTOR)
    profile = _times(fit.profile, float(of_prompts), float(of_others))
    sizes = [abs(part.terms.seconds(profile) / part.seconds - 1) for part in parts]
    error = KindError(points=len(parts), mean=fmean(sizes), worst=max(sizes))
    return Fit(profile, fit.errors.model_copy(update={"saturated": error}), overhead)


def _prompts_alone(terms: Terms) -> Terms:
    return Terms(prompt=terms.prompt, squares=terms.squares)


def _times(p: Profile, of_prompts: float, of_others: float) -> Profile:
    return replace(
        p,
        prefill_a=p.prefill_a * of_others,
        prefill_b=p.prefill_b * of_prompts,
        prefill_c=p.prefill_c * of_prompts,
        decode_d=p.decode_d * of_others,
        decode_e=p.decode_e * of_others,
        decode_f=p.decode_f * of_others,
    )


def parts_of(stretch: Stretch) -> list[Part]:
    """The parts of a stretch, one after another; none where it holds too few steps."""
    at = np.array([step.at for step in stretch.steps])
    contexts = _contexts(stretch.served, stretch.steps, at)
    full = _first_full(stretch.steps)
    steps, at, contexts = stretch.steps[full:], at[full:], contexts[full:]
    parts: list[Part] = []
    for first, last in _edges(at):
        within = slice(first + 1, last + 1)
        prompts = [served.prompt for served in stretch.served if at[first] <= served.began < at[last]]
        terms = _terms(steps[within], float(contexts[within].sum()), prompts or [s.prompt for s in stretch.served])
        parts.append(Part(terms, float(at[last] - at[first])))
    return parts


def _first_full(steps: Sequence[EngineStep]) -> int:
    full = _FULL * max((step.decoding for step in steps), default=0)
    return next((i for i, step in enumerate(steps) if step.decoding >= full), len(steps))


def _edges(at: NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    """Steps between whose ends each part lies: about as long as one another, by the clock."""
    count = min(_PARTS, (len(at) - 1) // _LEAST_STEPS)
    if count < 1:
        return
    edges = np.searchsorted(at, np.linspace(at[0], at[-1], count + 1))
    for first, last in pairwise(edges):
        if last - first >= _LEAST_STEPS:
            yield int(first), int(last)


def _terms(steps: Sequence[EngineStep], context: float, prompts: Sequence[int]) -> Terms:
    """What happened in these steps; prompts of these lengths were computed in them, in one go each."""
    reading = [step.prompt_tokens > 0 for step in steps]
    writing = [step.decoding > 0 for step in steps]
    both = sum(r and w for r, w in zip(reading, writing, strict=True))
    tokens = float(sum(step.prompt_tokens for step in steps))
    return Terms(
        prefills=sum(reading) - both,
        decodes=sum(writing) - both,
        mixed=both,
        prompt=tokens,
        squares=tokens * sum(n * n for n in prompts) / max(sum(prompts), 1),
        running=sum(step.decoding for step in steps),
        context=context,
    )


def _contexts(served: Sequence[Served], steps: Sequence[EngineStep], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tokens of context that the requests held which each step gave a further token.

    Those that have run for longest are the ones that decode; each gets a token in every step after that of its prompt.
    """
    order = sorted(served)
    began, ended = np.array([s.began for s in order]), np.array([s.ended for s in order])
    prompts = np.array([s.prompt for s in order], dtype=float)
    first = np.searchsorted(at, began, side="right")
    found = np.zeros(len(steps))
    for k, step in enumerate(steps):
        live = np.flatnonzero((began < at[k]) & (ended >= at[k]))[: step.decoding]
        found[k] = (prompts[live] + np.maximum(k - first[live] - 1, 0)).sum()
    return found

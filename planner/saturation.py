"""An engine that is kept full, as it is at work: what its steps take then, by the clock on the wall. Pure.

Loads that are run one after another tell what a step costs by itself. At work there is more: requests are read,
tokenized and answered on cores that the engine may need itself, they come and go all the time, and slow steps count,
too. So the last part of a measurement keeps every seat taken for a while, first with requests that mostly read and then
with some that mostly write. Two factors, of the times for prompts and of all others, put the model right, and what a
step takes longer for reading at all, however little: cores that share a step wait for each other more often in it. What
the others lack is put down to the requests that run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from broker.engine_steps import EngineStep
from broker.profiles import KindError
from broker.throughput import Profile
from planner.fit import Fit, Terms
from planner.measured_steps import EngineLimits, Lengths, Load

#: Requests that mostly read, and some that mostly write: what real ones are lies between. In both one prompt is read in
#: a step, or none, as at work: what is spent for each and for each such step is not told apart.
_READING, _WRITING = Lengths(192, 32), Lengths(64, 64)
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
_ALIKE, _LEAST_FACTOR, _MOST_FACTOR = 0.05, 0.6, 2.0
#: What a step takes longer for reading at all is none below this share of a mean step, and at most the other.
_LEAST_EXTRA, _MOST_EXTRA, _NOTHING = 0.02, 1.0, 1e-9


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

    def first_prompts(self) -> Load:
        """What is read until every place is taken."""
        return Load(tuple(Lengths(self.first(n).prompt, 1) for n in range(self.together)), self.together)

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
    """Steps of a stretch, all that read prompts or all that did not: what happened in them, and what they took."""

    terms: Terms
    seconds: float


def put_right(fit: Fit, parts: Sequence[Part]) -> Fit:
    """The fit of single steps, with its times as they are in a full engine; as it is where there are no parts.

    Least squares of the parts' relative errors, each weighed by its time, in two factors, that of b and c and that of
    the others, and in what a step that reads takes longer. They are drawn to what is missing in the whole, so that
    parts too much alike do not tell them apart by chance.
    """
    profile = fit.profile
    promised = sum(part.terms.seconds(profile) for part in parts)
    if not parts or promised <= 0:
        return fit
    total = sum(part.seconds for part in parts)
    overhead = total / promised
    a_step = promised / sum(_steps(part.terms) for part in parts)
    rows = np.array([_columns(part, profile, a_step) for part in parts])
    weights = np.sqrt([part.seconds * len(parts) / total for part in parts])
    columns = np.vstack([rows * weights[:, np.newaxis], _ALIKE * np.eye(3)])
    wanted = np.array([*weights, *(_ALIKE * np.array([overhead, overhead, 0.0]))])
    # A fixed time of prompts above that of other steps is no more than what single steps had.
    spare = max(profile.prefill_a - profile.decode_d, 0.0) / a_step
    least, most = (_LEAST_FACTOR, _LEAST_FACTOR, -spare - _NOTHING), (_MOST_FACTOR, _MOST_FACTOR, _MOST_EXTRA)
    of_prompts, of_others, extra = map(float, lsq_linear(columns, wanted, (least, most)).x)
    extra_s = extra * a_step if abs(extra) > _LEAST_EXTRA else 0.0
    if more := _a_request(profile, of_others, [part.terms for part in parts]):
        found = replace(_times(profile, of_prompts, 1.0, extra_s), decode_e=profile.decode_e + more)
    else:
        found = _times(profile, of_prompts, of_others, extra_s)
    return Fit(found, fit.errors.model_copy(update={"saturated": _error(parts, found)}), overhead)


def _columns(part: Part, profile: Profile, a_step: float) -> tuple[float, float, float]:
    """Shares of a part's time: promised for its prompts, for all else, and that of a mean step for each that reads."""
    reading = _prompts(part.terms).seconds(profile)
    steps = part.terms.prefills + part.terms.mixed
    return (
        reading / part.seconds,
        (part.terms.seconds(profile) - reading) / part.seconds,
        steps * a_step / part.seconds,
    )


def _prompts(terms: Terms) -> Terms:
    return Terms(prompt=terms.prompt, squares=terms.squares)


def _steps(terms: Terms) -> float:
    return terms.prefills + terms.decodes + terms.mixed


def _error(parts: Sequence[Part], profile: Profile) -> KindError:
    sizes = [abs(part.terms.seconds(profile) / part.seconds - 1) for part in parts]
    weights = [part.seconds for part in parts]
    return KindError(points=len(parts), mean=fmean(sizes, weights), worst=max(sizes))


def _times(p: Profile, of_prompts: float, of_others: float, extra: float) -> Profile:
    a = max(p.prefill_a, p.decode_d) * of_others + extra if extra else p.prefill_a * of_others
    return replace(
        p,
        prefill_a=a,
        prefill_b=p.prefill_b * of_prompts,
        prefill_c=p.prefill_c * of_prompts,
        decode_d=p.decode_d * of_others,
        decode_e=p.decode_e * of_others,
        decode_f=p.decode_f * of_others,
    )


def _a_request(p: Profile, factor: float, served: Sequence[Terms]) -> float:
    """Seconds a step for each request that runs, that make all but prompts take so much longer where these were served.

    What comes on top of single steps is the work of reading, tokenizing and answering: it grows with the requests that
    run, so that a smaller batch has less of it.
    """
    running = sum(terms.running for terms in served)
    if factor <= 1 or running <= 0:
        return 0.0
    return (factor - 1) * sum(terms.seconds(p) - _prompts(terms).seconds(p) for terms in served) / running


def parts_of(stretch: Stretch) -> list[Part]:
    """The parts of a stretch, one after another; none where it holds too few steps."""
    at = np.array([step.at for step in stretch.steps])
    contexts = _contexts(stretch.served, stretch.steps, at)
    full = _first_full(stretch.steps)
    steps, at, contexts = stretch.steps[full:], at[full:], contexts[full:]
    parts: list[Part] = []
    for first, last in _edges(at):
        prompts = [served.prompt for served in stretch.served if at[first] <= served.began < at[last]]
        prompts = prompts or [served.prompt for served in stretch.served]
        for reading in (False, True):
            mine = [k for k in range(first + 1, last + 1) if (steps[k].prompt_tokens > 0) == reading]
            if mine:
                terms = _terms([steps[k] for k in mine], float(contexts[mine].sum()), prompts)
                parts.append(Part(terms, float(sum(at[k] - at[k - 1] for k in mine))))
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

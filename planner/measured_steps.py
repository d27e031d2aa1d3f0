"""From what an engine tells of its steps, and what it was asked, to points that a profile is fitted to. Pure.

An engine tells how many tokens a step computed, not whose. Whose they were follows from the requests: all have prompts
of the same length, and the engine serves them first come first served.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from statistics import fmean, median
from typing import NamedTuple

from broker.batching import ContinuousBatch
from broker.engine_steps import EngineStep
from broker.throughput import Profile
from planner.fit import Point, Terms

#: Decode steps of one and the same batch, up to this many, make one point: the median of their times.
_WINDOW = 12
#: Steps that read prompts shorter than this (tokens) make none: what each request takes to come in is more than that.
_LEAST_PROMPT = 16
#: Fewer than this make none: a median of one or two steps is as uncertain as these are.
_WINDOW_LEAST = 3
#: The time between two steps counts as the step's own where it is longer than what the engine tells by this factor:
#: then the engine runs ahead, and tells just how long it waited.
_RUNS_AHEAD = 1.5


class Lengths(NamedTuple):
    """The tokens of a request."""

    prompt: int
    output: int


@dataclass(frozen=True, slots=True)
class Load:
    """Requests to run: ``concurrency`` at once, the rest as these end. All prompts have the same length."""

    requests: tuple[Lengths, ...]
    concurrency: int

    @property
    def together(self) -> bool:
        """Whether all requests start at once."""
        return self.concurrency >= len(self.requests)


@dataclass(frozen=True, slots=True)
class Observation:
    """A load that was run.

    Attributes:
        load: its requests, with the lengths they turned out to have.
        seconds: from the start of the first to the end of the last.
        steps: the engine's steps meanwhile; empty where it does not tell.
    """

    load: Load
    seconds: float
    steps: tuple[EngineStep, ...] = ()


class EngineLimits(NamedTuple):
    """What an engine can hold: see ``workers.engines.base.Capacity``."""

    kv_tokens: int
    seats: int
    context_tokens: int
    max_batched_tokens: int


def points_of(observations: Iterable[Observation], limits: EngineLimits) -> list[Point]:
    """The points of all that was observed: the steps, where the engine told them, else the time of the whole."""
    observed = list(observations)
    host_s = _host_seconds([o.steps for o in observed])
    points: list[Point] = []
    for observation in observed:
        found = _points_of_steps(observation, host_s)
        if not found and observation.load.together:
            found = [Point("whole", terms_of(observation.load, limits), observation.seconds)]
        points.extend(found)
    return points


@lru_cache(maxsize=1024)
def terms_of(load: Load, limits: EngineLimits) -> Terms:
    """The terms of a load whose requests all start together, by the model of continuous batching.

    With nothing arriving in between, which steps there are does not depend on how long they take. So the time of the
    load, with one coefficient 1 and the others 0, is what that coefficient is multiplied by.
    """

    def seconds(a: float = 0, b: float = 0, c: float = 0, d: float = 0, e: float = 0, f: float = 0) -> float:
        profile = Profile(a, b, c, d, e, f, kv_tokens=max(limits.kv_tokens, 16), seats=max(limits.seats, 1))
        batch = ContinuousBatch(profile, max_batched_tokens=limits.max_batched_tokens or 2048)
        for number, request in enumerate(load.requests):
            batch.add(number, request.prompt, request.output, 0.0)
        return max(event.at for event in batch.advance(float("inf")))

    with_prefill, with_decode, all_steps = seconds(a=1), seconds(d=1), seconds(a=1, d=1)
    return Terms(
        prefills=all_steps - with_decode,
        decodes=all_steps - with_prefill,
        mixed=with_prefill + with_decode - all_steps,
        prompt=seconds(b=1),
        squares=seconds(c=1),
        running=seconds(e=1),
        context=seconds(f=1),
    )


def _host_seconds(traces: Sequence[Sequence[EngineStep]]) -> float:
    """What the host adds to a step: the median difference of the time between steps and the time inside."""
    gaps = [max(0.0, step.at - before.at - step.elapsed) for steps in traces for before, step in pairwise(steps)]
    return median(gaps) if gaps else 0.0


def _step_seconds(steps: Sequence[EngineStep], host_s: float) -> list[float]:
    """How long each step kept the engine busy.

    By the engine's own clock where it waits for each step: when its word reaches us is uncertain by some milliseconds.
    """
    if not steps:
        return []
    between = [step.at - before.at for before, step in pairwise(steps)]
    inside = [step.elapsed + host_s for step in steps]
    if between and fmean(between) > _RUNS_AHEAD * fmean(inside[1:]):
        return [inside[0], *between]
    return inside


@dataclass(slots=True)
class _Replay:
    """Which requests an engine served in each step."""

    load: Load
    arrived: int = 0
    position: int = 0  # prompt tokens of the requests in order of arrival that are computed
    decoding: deque[list[int]] = field(default_factory=deque[list[int]])  # [tokens to come, context]
    started: int = 0

    def terms(self, step: EngineStep) -> Terms | None:
        """The terms of the next step; None where the engine did something else."""
        running, context = len(self.decoding), sum(held for _, held in self.decoding)
        for request in self.decoding:
            request[0] -= 1
            request[1] += 1
        self.decoding = deque(request for request in self.decoding if request[0] > 0)
        squares = self._prefill(step.prompt_tokens)
        if step.decoding != running or squares is None:
            return None
        prefills, decodes = step.prompt_tokens > 0, running > 0
        return Terms(
            prefills=float(prefills and not decodes),
            decodes=float(decodes and not prefills),
            mixed=float(prefills and decodes),
            prompt=step.prompt_tokens,
            squares=squares,
            running=running,
            context=context,
        )

    def _prefill(self, tokens: int) -> float | None:
        """Advance through the prompts; None where there are not that many tokens left."""
        squares = 0.0
        prompt = self.load.requests[0].prompt
        while tokens > 0:
            number, behind = divmod(self.position, prompt)
            if number >= len(self.load.requests):
                return None
            chunk = min(tokens, prompt - behind)
            squares += chunk * (2 * behind + chunk)
            self.position += chunk
            tokens -= chunk
            output = self.load.requests[number].output
            if behind + chunk == prompt and output > 1:
                self.decoding.append([output - 1, prompt])
        return squares


def _points_of_steps(observation: Observation, host_s: float) -> list[Point]:
    replay = _Replay(observation.load)
    points: list[Point] = []
    window: list[tuple[Terms, float]] = []
    tells_of_prompts = observation.load.requests[0].prompt >= _LEAST_PROMPT
    times = _step_seconds(observation.steps, host_s)
    for step, seconds in zip(observation.steps, times, strict=True):
        terms = replay.terms(step)
        same_batch = terms is not None and window and terms.running == window[-1][0].running and terms.decodes
        if not same_batch or len(window) == _WINDOW:
            points.extend(_merge(window))
            window = []
        if terms is None:
            continue
        if terms.decodes:
            window.append((terms, seconds))
        elif tells_of_prompts:
            points.append(Point("mixed" if terms.mixed else "prefill", terms, seconds))
    return [*points, *_merge(window)]


def _merge(window: Sequence[tuple[Terms, float]]) -> list[Point]:
    if len(window) < _WINDOW_LEAST:
        return []
    context = fmean(terms.context for terms, _ in window)
    return [Point("decode", window[0][0]._replace(context=context), median(seconds for _, seconds in window))]

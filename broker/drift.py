"""How much slower a device runs than its profile says, learned from heartbeats. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import exp, log
from typing import NamedTuple, Protocol

from broker.throughput import DeviceKind, Work, work_of

#: The slowdown is that of the last looks together, over at least this time (seconds), and this many steps: a single
#: interval is off by a step, which may take most of a second.
_LEAST_S = 2.5
_LEAST_STEPS = 30.0
#: Nor may a single step be a larger part of that time: a prefill of a long prompt ends in one interval or the next.
_FINE = 0.1
#: Looks kept, and those that are enough where steps are few, over so long (seconds): what they show together is not
#: older.
_LOOKS = 32
_ENOUGH_LOOKS, _ENOUGH_S = 4, 8.0
#: A device is taken for another kind only when its slowdown is off by this factor: small errors cost less than new
#: plans.
_TOLERANCE = log(1.4)
#: Slowdowns are told apart in steps of this factor: devices that are slowed down alike are planned for together.
_BUCKET = log(1.1)
#: With fewer requests than this at both ends the device may have idled in between: that would make it look slow.
_LEAST_RUNNING = 3
#: And when the batch grew or shrank by more than this factor its mean over the interval is not known.
_STEADY = 1.5
#: No device is this much slower or faster than its profile: what says so is a broken clock or forged.
_MOST = 1e5


class Account(Protocol):
    """The part of a heartbeat that speaks of work done."""

    @property
    def measured(self) -> float: ...
    @property
    def running(self) -> int: ...
    @property
    def seats(self) -> int: ...
    @property
    def steps_total(self) -> int: ...
    @property
    def prompt_tokens_total(self) -> int: ...
    @property
    def output_tokens_total(self) -> int: ...
    @property
    def kv_tokens_total(self) -> int: ...
    @property
    def kv_tokens_free(self) -> int: ...


class Done(NamedTuple):
    """What was done between two heartbeats: real seconds, seconds by the profile, steps; what had begun at the end.

    A prompt is counted when all of it is computed: until then up to ``begun`` seconds of the work do not show.
    """

    elapsed: float
    expected: float
    steps: float
    begun: float = 0.0


def work_between(
    kind: DeviceKind, before: Account, after: Account, mean_prompt: float = 0.0, next_prompt: float = 0.0
) -> Done | None:
    """What a device did between two heartbeats; None where that says nothing about its speed.

    The batch is taken as constant in between: its mean number of requests, and mean context held. So nothing is said
    where it grew or shrank much, nor where the device may have idled.

    ``mean_prompt`` is that of the prompts, each weighed by its tokens: attention in the prefill grows with it (0: not
    known, about the context held by a request). ``next_prompt`` is the longest of those that may be in progress.
    """
    elapsed = after.measured - before.measured
    prompt = after.prompt_tokens_total - before.prompt_tokens_total
    output = after.output_tokens_total - before.output_tokens_total
    fewer, more = sorted((before.running, after.running))
    least = max(1, min(_LEAST_RUNNING, after.seats))
    if elapsed <= 0 or prompt < 0 or output < 0 or fewer < least or more > _STEADY * fewer:
        return None
    running = (before.running + after.running) / 2
    held = max(before.kv_tokens_total - (before.kv_tokens_free + after.kv_tokens_free) / 2, 0.0)
    context = held / running
    steps = float(after.steps_total - before.steps_total)
    if not after.steps_total:
        steps = max(output / running, (prompt + output) / kind.max_batched_tokens)
    work = Work(prompt, prompt * (mean_prompt or context), output, output * context, prompt + output)
    begun = kind.profile.own_seconds(work_of(next_prompt, 0))
    return Done(elapsed, kind.profile.own_seconds(work) + kind.profile.decode_d * max(steps, 0.0), steps, begun)


@dataclass(slots=True)
class Drift:
    """The slowdown of one device: ``factor`` is what was seen lately, ``calm`` the figure to decide by."""

    factor: float = 1.0
    calm: float = 1.0
    _seen: deque[Done] = field(default_factory=lambda: deque[Done](maxlen=_LOOKS))

    def observe(
        self, kind: DeviceKind, before: Account, after: Account, mean_prompt: float = 0.0, next_prompt: float = 0.0
    ) -> None:
        """Learn from two heartbeats in succession; see ``work_between``."""
        done = work_between(kind, before, after, mean_prompt, next_prompt)
        if done is None:
            self._seen.clear()
            return
        self._seen.append(done)
        elapsed = expected = steps = longest = 0.0
        for looks, look in enumerate(reversed(self._seen), 1):  # the latest that are enough
            elapsed, expected, steps = elapsed + look.elapsed, expected + look.expected, steps + look.steps
            longest = max(longest, look.expected / max(look.steps, 1.0), look.begun)
            enough = looks >= _ENOUGH_LOOKS and elapsed >= _ENOUGH_S
            many = enough or (elapsed >= _LEAST_S and steps >= _LEAST_STEPS)
            if many and longest <= _FINE * elapsed:
                break
        else:
            if len(self._seen) < _ENOUGH_LOOKS or elapsed < _ENOUGH_S:
                return
        self.factor = min(max(elapsed / max(expected, 1e-9), 1 / _MOST), _MOST)
        # A step more or less at either end: that is much where they are few, or one holds a long prefill.
        blur = 2 * longest / max(elapsed, expected)
        if abs(log(self.factor / self.calm)) > _TOLERANCE + blur:
            self.calm = min(max(exp(round(log(self.factor) / _BUCKET) * _BUCKET), 1 / _MOST), _MOST)

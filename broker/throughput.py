"""How long a device takes, as a function of a request's lengths. Pure.

The model of a device: the prefill of a prompt of p tokens takes ``a + b*p + c*p^2`` seconds; one decode step of
B running requests that hold C tokens of context together takes ``d + e*B + f*C`` seconds. The two forms are
those of the fits in Splitwise (ISCA '24) and of step-time models in Vidur (MLSys '24).
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import NamedTuple


class Work(NamedTuple):
    """What a request, or many together, ask of a device: every time of the model is linear in these sums.

    The first token comes with the prefill, so o output tokens are o - 1 decode steps; they find contexts of p, p + 1,
    ... tokens.

    Attributes:
        prompt: prompt tokens to compute.
        prompt_squared: their squares, for attention in the prefill.
        steps: decode steps taken by each request, summed.
        context_steps: tokens of context held in each of these steps, summed.
        tokens: tokens that pass through the model: prompt tokens, and one a step.
    """

    prompt: float
    prompt_squared: float
    steps: float
    context_steps: float
    tokens: float


NO_WORK = Work(0.0, 0.0, 0.0, 0.0, 0.0)


def work_of(prompt_tokens: float, output_tokens: float, cached_tokens: float = 0.0) -> Work:
    """The work of one request, of whose prompt ``cached_tokens`` are in the prefix cache and cost nothing."""
    steps = output_tokens - 1.0 if output_tokens > 1 else 0.0
    computed = prompt_tokens - cached_tokens
    squared = prompt_tokens * prompt_tokens - cached_tokens * cached_tokens
    held = steps * (prompt_tokens + (steps - 1.0) / 2.0) if steps else 0.0
    return Work(computed, squared, steps, held, computed + steps)


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured times and sizes of one engine on one device.

    Attributes:
        prefill_a: seconds a prefill, whatever its length.
        prefill_b: seconds a prompt token.
        prefill_c: seconds a prompt token squared (attention).
        decode_d: seconds a decode step, whatever it holds.
        decode_e: seconds a step for each running request.
        decode_f: seconds a step for each token of context held.
        kv_tokens: tokens the KV cache holds.
        seats: most requests running at once.
    """

    prefill_a: float
    prefill_b: float
    prefill_c: float
    decode_d: float
    decode_e: float
    decode_f: float
    kv_tokens: int
    seats: int

    def slower(self, factor: float) -> Profile:
        """The same sizes, ``factor`` times as long for everything."""
        times = [factor * time for time in astuple(self)[:6]]
        return Profile(*times, kv_tokens=self.kv_tokens, seats=self.seats)

    def prefill_seconds(self, prompt_tokens: float) -> float:
        """Seconds to prefill a prompt alone."""
        return self.prefill_a + self.prefill_b * prompt_tokens + self.prefill_c * prompt_tokens**2

    def decode_step_seconds(self, running: float, context_tokens: float) -> float:
        """Seconds of one decode step of ``running`` requests that hold ``context_tokens`` together."""
        return self.decode_d + self.decode_e * running + self.decode_f * context_tokens

    def own_seconds(self, work: Work) -> float:
        """Seconds that grow with the work itself: all but the fixed cost d of the steps, which a batch shares."""
        prefill = self.prefill_b * work.prompt + self.prefill_c * work.prompt_squared
        return prefill + self.decode_e * work.steps + self.decode_f * work.context_steps

    def steps_needed(self, work: Work) -> float:
        """Steps of a batch that is as full as KV memory and seats allow, the work's share of them."""
        return max(work.context_steps / max(self.kv_tokens, 1), work.steps / max(self.seats, 1))

    def device_seconds(self, prompt_tokens: float, output_tokens: float) -> float:
        """Seconds of the device that one request costs in steady state.

        The fixed cost d of a step is shared in proportion to the KV memory a request holds, or to seats where
        these run out first: ``b*p + c*p^2 + s*e + f*s*m + d*max(s*m/K, s/S)`` with s = o - 1 steps and a mean
        context m of p + (s - 1)/2 tokens.
        """
        work = work_of(prompt_tokens, output_tokens)
        return self.own_seconds(work) + self.decode_d * self.steps_needed(work)

    def alone_seconds(self, prompt_tokens: float, output_tokens: float) -> float:
        """Seconds from start to end of a request that has the device to itself."""
        work = work_of(prompt_tokens, output_tokens)
        return self.prefill_a + self.own_seconds(work) + self.decode_d * work.steps


@dataclass(frozen=True, slots=True)
class DeviceKind:
    """Devices that are alike.

    Attributes:
        profile: their times and sizes.
        count: how many there are.
        slowdown: how much slower they run than the profile says.
        max_batched_tokens: tokens a step may compute.
        context_tokens: longest prompt plus output they take.
        backlog: work they have already, all together.
        backlog_steps: steps that the longest of it still takes.
    """

    profile: Profile
    count: int = 1
    slowdown: float = 1.0
    max_batched_tokens: int = 2048
    context_tokens: int = 2**31
    backlog: Work = NO_WORK
    backlog_steps: float = 0.0

    @property
    def most_tokens(self) -> int:
        """Prompt and output tokens of the longest job that runs there."""
        return min(self.profile.kv_tokens, self.context_tokens)

    def can_hold(self, tokens: int) -> bool:
        """Whether a job that ends with so many tokens runs there at all."""
        return tokens <= self.profile.kv_tokens and tokens <= self.context_tokens

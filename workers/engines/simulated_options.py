"""What a simulated engine simulates. Pure."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

from broker.errors import UsageError
from broker.throughput import Profile

# An engine that takes no time: what is left to measure is everything around it.
INSTANT = Profile(0, 0, 0, 0, 0, 0, kv_tokens=1_048_576, seats=256)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedOptions:
    """What to simulate.

    Attributes:
        profile: times and sizes of the device.
        models: names that requests may use; the first is the one reported.
        context_tokens: longest prompt plus output.
        speed: how many times faster than the profile it runs.
        seed: decides, with the request itself, how long an answer is.
        mean_output_tokens: mean length of answers that nothing else fixes.
        device: kind of the device, as reported.
        max_batched_tokens: tokens a step may compute.
        step_overhead_s: seconds the host adds to each step.
        kv_token_bytes: KV cache bytes a token, for the free memory that is reported.
        prefix_caching: find beginnings of prompts again that are in the KV cache (see ``broker.prefix_cache``).

    Raises:
        UsageError: the options make no sense.
    """

    profile: Profile = INSTANT
    models: tuple[str, ...] = ("simulated",)
    context_tokens: int = 32_768
    speed: float = 1.0
    seed: int = 0
    mean_output_tokens: float = 128.0
    device: str = "simulated"
    max_batched_tokens: int = 2048
    step_overhead_s: float = 0.0
    kv_token_bytes: int = 131_072
    prefix_caching: bool = True

    def __post_init__(self) -> None:
        least = {
            "the number of models": (len(self.models), 1),
            "context_tokens": (self.context_tokens, 2),
            "mean_output_tokens": (self.mean_output_tokens, 1),
            "seats": (self.profile.seats, 1),
            "kv_tokens": (self.profile.kv_tokens, 16),
            "speed": (self.speed, 1e-6),
        }
        for name, (value, bound) in least.items():
            if not value >= bound:
                raise UsageError(f"a simulated engine cannot run with {name} {value}: give at least {bound}")

    @property
    def instant(self) -> bool:
        """Whether nothing takes any time."""
        return not any(astuple(self.profile)[:6]) and not self.step_overhead_s

    @property
    def effective_profile(self) -> Profile:
        """The profile as somebody measures it from outside, speed and overhead of the steps included."""
        profile, overhead = self.profile, self.step_overhead_s
        return replace(
            profile,
            prefill_a=(profile.prefill_a + overhead) / self.speed,
            prefill_b=profile.prefill_b / self.speed,
            prefill_c=profile.prefill_c / self.speed,
            decode_d=(profile.decode_d + overhead) / self.speed,
            decode_e=profile.decode_e / self.speed,
            decode_f=profile.decode_f / self.speed,
        )

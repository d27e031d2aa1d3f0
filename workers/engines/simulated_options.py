"""What a simulated engine simulates, and profiles read from JSON. Pure."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

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


_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _ProfileFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prefill_a: _Seconds
    prefill_b: _Seconds
    prefill_c: _Seconds
    decode_d: _Seconds
    decode_e: _Seconds
    decode_f: _Seconds
    kv_tokens: int = Field(ge=16)
    seats: int = Field(ge=1)


def profile_from_json(text: str | bytes) -> Profile:
    """A profile from a JSON object with the fields of ``Profile``.

    Raises:
        UsageError: it is no such object; the message names the first field that is wrong.
    """
    try:
        return Profile(**_ProfileFile.model_validate_json(text).model_dump())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"{part}: " for part in first["loc"])
        raise UsageError(f"not a valid profile: {place}{first['msg']}") from None

"""How long a device takes, as a function of a request's lengths. Pure.

The model of a device: the prefill of a prompt of p tokens takes ``a + b*p + c*p^2`` seconds; one decode step of
B running requests that hold C tokens of context together takes ``d + e*B + f*C`` seconds. The two forms are
those of the fits in Splitwise (ISCA '24) and of step-time models in Vidur (MLSys '24).
"""

from __future__ import annotations

from dataclasses import dataclass


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

    def prefill_seconds(self, prompt_tokens: float) -> float:
        """Seconds to prefill a prompt alone."""
        return self.prefill_a + self.prefill_b * prompt_tokens + self.prefill_c * prompt_tokens**2

    def decode_step_seconds(self, running: float, context_tokens: float) -> float:
        """Seconds of one decode step of ``running`` requests that hold ``context_tokens`` together."""
        return self.decode_d + self.decode_e * running + self.decode_f * context_tokens

    def device_seconds(self, prompt_tokens: float, output_tokens: float) -> float:
        """Seconds of the device that one request costs in steady state.

        The fixed cost d of a step is shared in proportion to the KV memory a request holds, or to seats where
        these run out first: ``b*p + c*p^2 + o*e + f*o*m + d*max(o*m/K, o/S)`` with m = p + o/2.
        """
        mean_context = prompt_tokens + output_tokens / 2
        own = self.prefill_b * prompt_tokens + self.prefill_c * prompt_tokens**2
        own += output_tokens * (self.decode_e + self.decode_f * mean_context)
        share = max(mean_context / max(self.kv_tokens, 1), 1 / max(self.seats, 1))
        return own + self.decode_d * output_tokens * share

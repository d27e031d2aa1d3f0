"""How many tokens a job will take, learned from the jobs that ended. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from broker.jobs import WaitingJob

#: Where nothing has been seen yet: about 4 bytes a token in English text, and a middling answer.
_FIRST_TOKENS_PER_BYTE = 0.25
_FIRST_OUTPUT_TOKENS = 200.0
#: No tokenizer makes more of a byte; what claims so is wrong or forged.
_MOST_TOKENS_PER_BYTE = 2.0
#: Weight of the newest observation.
_GAIN = 0.02


@dataclass(slots=True)
class LengthModel:
    """Prompt tokens from the body's size, output tokens from what the pool produced so far.

    Attributes:
        tokens_per_byte: prompt tokens a byte of request body.
        output_tokens: mean output tokens.
        observed: jobs seen.
    """

    tokens_per_byte: float = _FIRST_TOKENS_PER_BYTE
    output_tokens: float = _FIRST_OUTPUT_TOKENS
    observed: int = 0

    def predict(self, job: WaitingJob) -> tuple[int, int]:
        """Prompt and output tokens of a job; the output is never above its ``max_tokens``."""
        prompt = max(1, round(job.body_bytes * self.tokens_per_byte))
        output = max(1, round(self.output_tokens))
        return prompt, min(output, job.max_tokens) if job.max_tokens else output

    def observe(self, body_bytes: int, prompt_tokens: int, output_tokens: int) -> None:
        """Learn from a job that ended: its body's size and its true lengths in tokens (0 where it failed)."""
        if prompt_tokens <= 0 or body_bytes <= 0:
            return
        self.observed += 1
        gain = max(_GAIN, 1 / (self.observed + 1))
        self.tokens_per_byte += gain * (min(prompt_tokens / body_bytes, _MOST_TOKENS_PER_BYTE) - self.tokens_per_byte)
        self.output_tokens += gain * (output_tokens - self.output_tokens)

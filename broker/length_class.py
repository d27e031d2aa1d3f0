"""Jobs of about the same lengths, as plans are made for them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from broker.throughput import Work, work_of


@dataclass(frozen=True, slots=True)
class LengthClass:
    """Jobs of about the same lengths.

    Attributes:
        jobs: how many (any unit: a count, a share).
        work: mean work of one.
        longest: most tokens (prompt and output) one of them holds at its end.
    """

    jobs: float
    work: Work
    longest: int

    @classmethod
    def of(cls, prompt_tokens: int, output_tokens: int, jobs: float = 1.0) -> LengthClass:
        """Jobs of exactly these lengths."""
        return cls(jobs, work_of(prompt_tokens, output_tokens), prompt_tokens + output_tokens)

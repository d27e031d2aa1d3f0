"""What ended lately: jobs by length, as the scheduler keeps it for the planner. Pure.

Jobs are counted in classes, each half an octave of prompt tokens by half an octave of output tokens: their sums are
exact, so a class's mean lengths are true ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import log2

from broker.events import EndedTokens
from broker.fluid import LengthClass

#: Most classes in one entry; there are hardly more than a hundred in any mix.
_CLASSES = 1000
#: Nothing said of a class is larger; what is, is forged.
_MOST = 10**12


@dataclass(frozen=True, slots=True)
class MixClass:
    """Jobs of about the same lengths.

    Attributes:
        jobs: how many.
        prompt_tokens: prompt tokens of all together.
        output_tokens: output tokens of all together.
    """

    jobs: int
    prompt_tokens: int
    output_tokens: int

    def __add__(self, other: MixClass) -> MixClass:
        return MixClass(
            self.jobs + other.jobs,
            self.prompt_tokens + other.prompt_tokens,
            self.output_tokens + other.output_tokens,
        )


@dataclass(frozen=True, slots=True)
class RecentMix:
    """Jobs that ended lately, by length."""

    classes: tuple[MixClass, ...] = ()

    @property
    def jobs(self) -> int:
        """How many."""
        return sum(c.jobs for c in self.classes)

    @property
    def tokens(self) -> int:
        """Their prompt and output tokens."""
        return sum(c.prompt_tokens + c.output_tokens for c in self.classes)

    @property
    def tokens_a_job(self) -> float:
        """Mean prompt and output tokens of a job; 0 where there is none."""
        return self.tokens / self.jobs if self.jobs else 0.0

    def length_classes(self) -> list[LengthClass]:
        """The classes as the linear program takes them."""
        return [
            LengthClass.of(max(round(c.prompt_tokens / c.jobs), 1), max(round(c.output_tokens / c.jobs), 1), c.jobs)
            for c in self.classes
        ]


@dataclass(slots=True)
class MixTally:
    """Counts ended jobs until they are written down."""

    _classes: dict[tuple[int, int], MixClass] = field(default_factory=dict[tuple[int, int], MixClass])

    def add(self, ended: Iterable[EndedTokens]) -> None:
        """Count jobs; those that failed have no tokens and tell nothing."""
        for job in ended:
            if job.prompt and job.output:
                _add(self._classes, MixClass(1, job.prompt, job.output))

    def take(self) -> str:
        """What was counted since the last call, as text: ``JOBS:PROMPT:OUTPUT`` for each class; empty where nothing."""
        classes, self._classes = self._classes, {}
        return " ".join(f"{c.jobs}:{c.prompt_tokens}:{c.output_tokens}" for c in list(classes.values())[:_CLASSES])


def parse_mix(texts: Iterable[str]) -> RecentMix:
    """The jobs of these entries together; what is none of ``MixTally`` counts nothing (anyone can write to Redis)."""
    classes: dict[tuple[int, int], MixClass] = {}
    for text in texts:
        for part in text.split(maxsplit=_CLASSES)[:_CLASSES]:
            found = _parse(part)
            if found is not None:
                _add(classes, found)
    return RecentMix(tuple(classes[key] for key in sorted(classes)))


def _parse(part: str) -> MixClass | None:
    numbers = part.split(":")
    if len(numbers) != 3 or not all(number.isascii() and number.isdigit() and len(number) < 14 for number in numbers):
        return None
    jobs, prompt, output = map(int, numbers)
    return MixClass(jobs, prompt, output) if 1 <= jobs <= min(prompt, output) and max(prompt, output) <= _MOST else None


def _add(classes: dict[tuple[int, int], MixClass], new: MixClass) -> None:
    key = _octave(new.prompt_tokens / new.jobs), _octave(new.output_tokens / new.jobs)
    classes[key] = classes.get(key, MixClass(0, 0, 0)) + new


def _octave(tokens: float) -> int:
    return int(2 * log2(max(tokens, 1.0)))

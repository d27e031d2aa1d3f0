"""What ended lately: jobs by length, as the scheduler keeps it for the planner. Pure.

Jobs are counted in classes, each half an octave of prompt tokens by half an octave of output tokens: their sums are
exact, so a class's mean lengths are true ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import log2

from broker.events import EndedTokens
from broker.length_class import LengthClass
from broker.throughput import work_of

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
        cached_tokens: prompt tokens of all together that were in a prefix cache.
    """

    jobs: int
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0

    def __add__(self, other: MixClass) -> MixClass:
        return MixClass(
            self.jobs + other.jobs,
            self.prompt_tokens + other.prompt_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
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

    @property
    def computed_tokens(self) -> int:
        """Those of them that no prefix cache spared."""
        return self.tokens - sum(c.cached_tokens for c in self.classes)

    def computed_classes(self) -> list[LengthClass]:
        """As ``length_classes``, without the work that prefix caches spared."""
        means = [
            (c.jobs, *(n / c.jobs for n in (c.prompt_tokens, c.output_tokens, c.cached_tokens))) for c in self.classes
        ]
        return [LengthClass(jobs, work_of(p, o, cached), round(p + o)) for jobs, p, o, cached in means]

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
                _add(self._classes, MixClass(1, job.prompt, job.output, min(job.cached, job.prompt - 1)))

    def mix(self) -> RecentMix:
        """What was counted since the last ``take``."""
        return RecentMix(tuple(self._classes[key] for key in sorted(self._classes)))

    def take(self) -> str:
        """What was counted since the last call, as text; empty where nothing.

        For each class ``JOBS:PROMPT:OUTPUT``, or ``JOBS:PROMPT:OUTPUT:CACHED``.
        """
        classes, self._classes = self._classes, {}
        return " ".join(map(_text, list(classes.values())[:_CLASSES]))


def parse_mix(texts: Iterable[str]) -> RecentMix:
    """The jobs of these entries together; what is none of ``MixTally`` counts nothing (anyone can write to Redis)."""
    classes: dict[tuple[int, int], MixClass] = {}
    for text in texts:
        for part in text.split(maxsplit=_CLASSES)[:_CLASSES]:
            found = _parse(part)
            if found is not None:
                _add(classes, found)
    return RecentMix(tuple(classes[key] for key in sorted(classes)))


def _text(c: MixClass) -> str:
    cached = f":{c.cached_tokens}" if c.cached_tokens else ""
    return f"{c.jobs}:{c.prompt_tokens}:{c.output_tokens}{cached}"


def _parse(part: str) -> MixClass | None:
    texts = part.split(":")
    if len(texts) not in (3, 4) or not all(text.isascii() and text.isdigit() and len(text) < 14 for text in texts):
        return None
    jobs, prompt, output, cached = [*map(int, texts), 0][:4]
    sound = 1 <= jobs <= min(prompt, output) and max(prompt, output) <= _MOST and cached < prompt
    return MixClass(jobs, prompt, output, cached) if sound else None


def _add(classes: dict[tuple[int, int], MixClass], new: MixClass) -> None:
    key = _octave(new.prompt_tokens / new.jobs), _octave(new.output_tokens / new.jobs)
    classes[key] = classes.get(key, MixClass(0, 0, 0)) + new


def _octave(tokens: float) -> int:
    return int(2 * log2(max(tokens, 1.0)))

"""The work that a device's jobs in flight still need. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from broker.throughput import Work, work_of

#: Never taken as less than this share of the whole: jobs that outlast their prediction are not done.
_LEAST = 0.05


@dataclass(slots=True)
class _Sum:
    """Work that is done evenly over its own steps: what is left of all at a step, from three sums."""

    total: float = 0.0
    rate: float = 0.0  # sum of work / steps
    offset: float = 0.0  # sum of work * first step / steps

    def add(self, work: float, start: float, steps: float) -> None:
        self.total += work
        self.rate += work / steps
        self.offset += work * start / steps

    def left(self, step: float) -> float:
        left = self.total - (step * self.rate - self.offset)
        return max(0.0, min(max(left, _LEAST * self.total), self.total))


class Backlog:
    """O(1) a job, however many there are.

    Prompts are known to be computed by the engine's own count of prompt tokens; the rest is taken to progress a token a
    step. Differences between predicted and true prompts leave with their jobs, so they do not add up.
    """

    __slots__ = ("_computed", "_context", "_decode", "_prompt", "_sent", "_squared")

    def __init__(self) -> None:
        self._decode, self._context = _Sum(), _Sum()
        self._prompt = self._squared = 0.0  # of the jobs in flight
        self._sent = 0.0  # prompt tokens of all jobs so far
        self._computed = 0.0  # those of them that the engine has computed

    def add(self, start: float, prompt_tokens: int, output_tokens: int) -> None:
        """A job goes to the device, at that step of its engine."""
        self._sent += prompt_tokens
        self._count(start, prompt_tokens, output_tokens, 1)

    def remove(self, start: float, prompt_tokens: int, output_tokens: int, computed_tokens: float) -> None:
        """It is gone, and ``computed_tokens`` of its prompt were computed."""
        self._sent += computed_tokens - prompt_tokens
        self._count(start, prompt_tokens, output_tokens, -1)

    def computed(self, prompt_tokens: float) -> None:
        """The engine has computed so many prompt tokens more."""
        self._computed += prompt_tokens

    def left(self, step: float) -> Work:
        """What is left of the work at that step."""
        prompt = max(0.0, min(self._sent - self._computed, self._prompt))
        squared = self._squared * prompt / self._prompt if self._prompt > 0 else 0.0
        steps = self._decode.left(step)
        return Work(prompt, squared, steps, self._context.left(step), prompt + steps)

    def _count(self, start: float, prompt_tokens: int, output_tokens: int, sign: int) -> None:
        work = work_of(prompt_tokens, output_tokens)
        steps = max(output_tokens, 1)
        self._prompt += sign * work.prompt
        self._squared += sign * work.prompt_squared
        self._decode.add(sign * work.steps, start, steps)
        self._context.add(sign * work.context_steps, start, steps)

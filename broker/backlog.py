"""The work that a device's jobs in flight still need. Pure."""

from __future__ import annotations

from broker.throughput import Work

#: Never taken as less than this share of the whole: jobs that outlast their prediction are not done.
_LEAST = 0.05


class Backlog:
    """O(1) a job, however many there are.

    Prompts are known to be computed by the engine's own count of prompt tokens; the rest is taken to progress a token a
    step. Differences between predicted and true prompts leave with their jobs, so they do not add up.
    """

    __slots__ = (
        "_computed",
        "_context",
        "_context_offset",
        "_context_rate",
        "_decode",
        "_decode_offset",
        "_decode_rate",
        "_prompt",
        "_sent",
        "_squared",
    )

    def __init__(self) -> None:
        # Of work that is done evenly over its own steps three sums tell what is left of all at a step: of the work, of
        # work / steps, and of work * first step / steps.
        self._decode = self._decode_rate = self._decode_offset = 0.0
        self._context = self._context_rate = self._context_offset = 0.0
        self._prompt = self._squared = 0.0  # of the jobs in flight
        self._sent = 0.0  # prompt tokens of all jobs so far
        self._computed = 0.0  # those of them that the engine has computed

    def add(self, start: float, prompt_tokens: int, output_tokens: int, *, sign: int = 1) -> None:
        """A job goes to the device, at that step of its engine; with a ``sign`` of -1 it never did."""
        # The sums of ``work_of``, without a tuple: this is done for every job that is placed.
        prompt = sign * prompt_tokens
        self._sent += prompt
        self._prompt += prompt
        self._squared += prompt * prompt_tokens
        if output_tokens > 1:
            decode = output_tokens - 1
            context = decode * (prompt_tokens + (decode - 1) / 2)
            rate = sign * decode / output_tokens
            self._decode += sign * decode
            self._decode_rate += rate
            self._decode_offset += rate * start
            rate = sign * context / output_tokens
            self._context += sign * context
            self._context_rate += rate
            self._context_offset += rate * start

    def remove(self, start: float, prompt_tokens: int, output_tokens: int, computed_tokens: float) -> None:
        """It is gone, and ``computed_tokens`` of its prompt were computed."""
        self.add(start, prompt_tokens, output_tokens, sign=-1)
        self._sent += computed_tokens

    def computed(self, prompt_tokens: float) -> None:
        """The engine has computed so many prompt tokens more."""
        self._computed += prompt_tokens

    @property
    def prompt_left(self) -> float:
        """Prompt tokens that are not computed yet."""
        return max(0.0, min(self._sent - self._computed, self._prompt))

    @property
    def mean_prompt(self) -> float:
        """Tokens of a prompt, each weighed by its tokens; 0 where there is none."""
        return self._squared / self._prompt if self._prompt > 0 else 0.0

    def left(self, step: float) -> Work:
        """What is left of the work at that step."""
        prompt = self.prompt_left
        squared = self._squared * prompt / self._prompt if self._prompt > 0 else 0.0
        steps = _left(self._decode, self._decode_rate, self._decode_offset, step)
        context = _left(self._context, self._context_rate, self._context_offset, step)
        return Work(prompt, squared, steps, context, prompt + steps)


def _left(total: float, rate: float, offset: float, step: float) -> float:
    left = total - (step * rate - offset)
    return max(0.0, min(max(left, _LEAST * total), total))

"""Which loads to measure an engine with, from what it can hold. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from planner.measured_steps import EngineLimits, Lengths, Load

_PROMPTS = (32, 128, 512, 2048, 8192)
_CONTEXTS = (32, 256, 1024, 4096)
_PREFILL_REPEATS = 2
#: Requests of the mixed load at once, at most, and their prompts (tokens).
_MIXED_SEATS = 16
_MIXED_PROMPT = 128
#: A load fills the KV cache to this share at most: nothing may be preempted.
_KV_SHARE = 0.8


def warm_up(limits: EngineLimits) -> list[Load]:
    """Loads to run first and forget: kernels are compiled and memory touched in them."""
    return [load for load in (_alike(1, 32, 2), _alike(min(4, limits.seats), 32, 2)) if _fits(load, limits)]


def first_loads(limits: EngineLimits, output_tokens: int) -> list[Load]:
    """The least that a profile can be fitted to: two lengths of prefill, two batches of decoding."""
    shapes = [(1, 32, 1), (1, 128, 1), (1, 32, output_tokens), (min(4, limits.seats), 32, output_tokens)]
    loads = [_alike(*shape) for shape in shapes]
    return [load for load in loads if _fits(load, limits)] or [_alike(1, 1, 2)]


def further_loads(limits: EngineLimits, output_tokens: int) -> list[Load]:
    """All that is worth measuring where time allows: prefills, small to full batches, short to long contexts, a mix."""
    loads = [_alike(1, prompt, 1) for prompt in _PROMPTS[1:] for _ in range(_PREFILL_REPEATS)]
    loads += [_alike(seats, prompt, output_tokens) for seats in _batches(limits.seats) for prompt in _CONTEXTS]
    loads.append(_mixed(min(_MIXED_SEATS, limits.seats), output_tokens))
    return [load for load in loads if _fits(load, limits)]


def _batches(seats: int) -> Iterator[int]:
    size = 1
    while size < seats:
        yield size
        size *= 4
    yield seats


def _alike(count: int, prompt: int, output: int) -> Load:
    return Load((Lengths(prompt, output),) * count, count)


def _mixed(seats: int, output_tokens: int) -> Load:
    """Requests that end one by one, so that the next ones are prefilled while the others decode."""
    ends = [2 + number * output_tokens // seats for number in range(seats)]
    outputs = [*ends, *[output_tokens] * seats]
    return Load(tuple(Lengths(_MIXED_PROMPT, output) for output in outputs), seats)


def _fits(load: Load, limits: EngineLimits) -> bool:
    longest = max(request.prompt + request.output for request in load.requests)
    if max(request.prompt for request in load.requests) > limits.context_tokens // 2:
        return False
    return longest <= limits.context_tokens and load.concurrency * longest <= _KV_SHARE * limits.kv_tokens

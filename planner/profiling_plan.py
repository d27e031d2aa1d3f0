"""Which loads to measure an engine with, from what it can hold. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from planner.measured_steps import EngineLimits, Lengths, Load

_PROMPTS = (32, 128, 512, 2048, 8192)
_CONTEXTS = (32, 256, 1024, 4096)
_PREFILL_REPEATS = 2
#: The first loads are short: a slow engine may have time for no others. So many tokens are a median's worth of steps.
_FIRST_OUTPUT = 12
#: The full batch among them: its prompts and answers (tokens), and the most and fewest requests.
_BATCH_PROMPT, _BATCH_OUTPUT, _BATCHES = 8, 8, (32, 16, 8, 4, 2)
#: Requests of the mixed load at once, at most, and their prompts (tokens).
_MIXED_SEATS = 16
_MIXED_PROMPT = 128
#: A load fills the KV cache to this share at most: nothing may be preempted.
_KV_SHARE = 0.8


def warm_up(limits: EngineLimits) -> list[Load]:
    """Loads to run first and forget: kernels are compiled and memory touched in them."""
    return [load for load in (_alike(1, 32, 2), _alike(min(4, limits.seats), 32, 2)) if _fits(load, limits)]


def first_loads(limits: EngineLimits) -> list[Load]:
    """The least that a profile can be fitted to, with a batch (see ``first_batch``): two lengths of prefill, decoding
    alone."""
    loads = [_alike(1, 32, 1), _alike(1, 128, 1), _alike(1, 32, _FIRST_OUTPUT)]
    return [load for load in loads if _fits(load, limits)] or [_alike(1, 1, 2)]


def first_batch(limits: EngineLimits, seconds: Callable[[Load], float], most_s: float) -> Load | None:
    """The largest batch there is time for: what a request adds to a step shows where there are many.

    Args:
        limits: what the engine can hold.
        seconds: how long a load will take, as far as that is known.
        most_s: how long it may take; the smallest batch may take longer.
    """
    sizes = {min(size, limits.seats) for size in _BATCHES} - {1}
    batches = [_alike(size, _BATCH_PROMPT, _BATCH_OUTPUT) for size in sorted(sizes, reverse=True)]
    batches = [batch for batch in batches if _fits(batch, limits)]
    return next((batch for batch in batches if seconds(batch) <= most_s), batches[-1] if batches else None)


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

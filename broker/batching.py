"""A step-by-step model of a continuous-batching engine (vLLM's scheduler, first come first served). Pure.

Between two events (an arrival, a finished request, a prefill, no KV block left) the batch only decodes, and all
steps of such a run are computed at once, in closed form: a request costs the same however long it is.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from broker.batch_state import BatchState, Event, EventKind, Request
from broker.decoding import RequestId, StepRun
from broker.prefix_cache import chain_of
from broker.throughput import Profile

__all__ = ["ContinuousBatch", "Event", "EventKind", "RequestId"]


class ContinuousBatch:
    """The batch of one engine, driven by the caller's clock (seconds, any origin).

    A step serves every decoding request one token, then gives what is left of the token budget to prefills in
    order of arrival (chunked prefill). A request is admitted when a seat is free and its whole prompt fits the
    free KV blocks. When a decode step finds no block, the youngest request loses its blocks and goes back to the
    head of the queue; later it is prefilled again with what it had generated (preemption by recompute).

    A step with prefill of c tokens behind q takes the decode part ``e*B + f*C``, plus
    ``b*c + c2*((q+c)^2 - q^2)`` for each prefill, plus the larger of a and d: both are mostly the time to read
    the weights, which a mixed step does once. C counts the KV tokens held when the step starts.

    Requests may declare prefixes they share with others. Full blocks of a prefix that an earlier request computed and
    that are still in memory are free: they take no prefill time, and no memory while another request holds them
    (automatic prefix caching; the part of a prompt that is not declared is never found again).

    Changes take effect at step borders: a step once begun ends. A change at the very instant of a border is in
    time for the step that starts there. Time never runs back: an earlier ``now`` counts as the latest one seen.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        max_batched_tokens: int = 2048,
        block_tokens: int = 16,
        step_overhead_s: float = 0.0,
    ) -> None:
        """Start empty.

        Args:
            profile: times and sizes of the device.
            max_batched_tokens: tokens a step may compute; at least the seats, as vLLM demands.
            block_tokens: tokens a KV block holds.
            step_overhead_s: seconds the host adds to each step (scheduling, sampling, detokenising).

        Raises:
            ValueError: the profile has no seat, or not one KV block.
        """
        if profile.seats < 1 or profile.kv_tokens < block_tokens:
            raise ValueError(f"a batch needs a seat and {block_tokens} KV tokens: {profile}")
        budget = max(max_batched_tokens, profile.seats)
        self._state = BatchState(profile, budget, block_tokens, step_overhead_s)
        self._border = self._clock = float("-inf")  # end of the last step; latest time seen
        self._plan: StepRun | None = None  # the steps to come, with their batch fixed
        self._leaving: list[Request] = []  # cancelled in mid-step

    def add(
        self,
        request_id: RequestId,
        prompt_tokens: int,
        output_tokens: int,
        now: float,
        prefix: Sequence[tuple[Hashable, int]] = (),
    ) -> None:
        """Queue a request. With 0 output tokens it ends with its prefill (an embedding).

        Args:
            request_id: unique in the batch.
            prompt_tokens: tokens of the prompt, prefixes included.
            output_tokens: tokens it will generate.
            now: seconds on the caller's clock.
            prefix: beginnings of the prompt that others may share, short to long: what names each (the same name
                means the same text from the very start), and its tokens.

        Raises:
            ValueError: the id is in the batch, a length makes no sense, or the KV cache could never hold it.
        """
        state = self._state
        if request_id in state.running or request_id in state.waiting:
            raise ValueError(f"request {request_id} is in the batch already")
        if prompt_tokens < 1 or output_tokens < 0:
            raise ValueError(f"request {request_id} needs a prompt token, and 0 or more output tokens")
        if not self.can_hold(prompt_tokens, output_tokens):
            raise ValueError(f"request {request_id} is larger than the KV cache")
        self._see(now)
        if self.idle:
            self._border = self._clock
        chain = chain_of(prefix, state.block_tokens) if prefix else ()
        request = state.waiting[request_id] = Request(request_id, prompt_tokens, output_tokens, chain)
        # Behind others, or without room, it changes nothing before the batch is made anew anyway.
        if self._plan and len(state.waiting) == 1 and state.has_room(request):
            self._cut(self._plan)

    def cancel(self, request_id: RequestId, now: float) -> bool:
        """Take a request out: it has no further events. False where it is not in the batch (any more)."""
        self._see(now)
        state = self._state
        request = state.running.get(request_id) or state.waiting.get(request_id)
        if request is None or request.cancelled:
            return False
        request.cancelled = True
        if self._plan:
            self._cut(self._plan)
        if request_id in state.waiting:
            del state.waiting[request_id]
        elif self._plan:
            self._leaving.append(request)
        else:
            state.release(request)
        return True

    def advance(self, until: float) -> list[Event]:
        """All events up to ``until``, in order. A step under way then goes on with the batch it has."""
        self._clock = max(self._clock, until)
        self._catch_up(begin=True)
        events, self._state.events = self._state.events, []
        return events

    def next_event_at(self) -> float | None:
        """When to call ``advance`` next if nothing arrives: no event comes earlier. None when idle."""
        if self._state.events:
            return self._state.events[0].at
        if self._plan:
            return self._plan.end(self._plan.steps)
        return None if self.idle else self._border

    def next_step_at(self) -> float | None:
        """When the step under way ends, for a caller that follows tokens one by one. None when idle."""
        if self._plan is None or self._state.events:
            return self.next_event_at()
        return self._plan.end(min(self._ended() + 1, self._plan.steps))

    def can_hold(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether the KV cache can hold the request when it runs alone (its last token needs no slot)."""
        return self._state.blocks(prompt_tokens + max(output_tokens - 1, 0)) <= self._state.total_blocks

    @property
    def idle(self) -> bool:
        """Nothing runs, nothing waits."""
        return not self._state.running and not self._state.waiting

    @property
    def running(self) -> int:
        """Requests that hold a seat."""
        return len(self._state.running)

    @property
    def waiting(self) -> int:
        """Requests queued, preempted ones included."""
        return len(self._state.waiting)

    @property
    def steps(self) -> int:
        """Steps done."""
        return self._state.decoders.step + self._ended()

    @property
    def kv_tokens_used(self) -> int:
        """Tokens of the KV blocks that are taken."""
        state = self._state
        free = state.free_blocks - state.decoders.new_blocks(self._ended())
        return (state.total_blocks - free) * state.block_tokens

    @property
    def context_tokens(self) -> int:
        """Tokens whose keys and values are computed and held; a shared one counts for each that shares it."""
        state = self._state
        prefilled = sum(request.prefilled for request in state.prefilling)
        return prefilled + state.decoders.context + len(state.decoders) * self._ended()

    @property
    def prompt_tokens_total(self) -> int:
        """Tokens of the prompts computed so far: neither cached ones, nor what is computed again after a preemption."""
        return self._state.prompt_tokens

    @property
    def output_tokens_total(self) -> int:
        """Tokens generated so far."""
        return self._state.output_tokens + len(self._state.decoders) * self._ended()

    def generated(self, request_id: RequestId) -> int:
        """Tokens generated so far for a request in the batch, 0 for one that is not."""
        state = self._state
        request = state.running.get(request_id) or state.waiting.get(request_id)
        if request is None:
            return 0
        if request_id in state.decoders:
            return request.output - state.decoders.remaining(request_id) + self._ended()
        return request.generated

    def cached_tokens(self, request_id: RequestId) -> int:
        """Prompt tokens that a request in the batch found in the prefix cache; 0 before it is admitted."""
        state = self._state
        request = state.running.get(request_id) or state.waiting.get(request_id)
        return max(request.cached, 0) if request else 0

    def _ended(self) -> int:
        """Steps of the plan that are over, but not yet carried out."""
        return self._plan.ended(self._clock) if self._plan else 0

    def _see(self, now: float) -> None:
        self._clock = max(self._clock, now)
        self._catch_up(begin=False)

    def _catch_up(self, *, begin: bool) -> None:
        """Complete what ends by the clock; with ``begin`` also start the step due at the clock's very instant."""
        while True:
            if self._plan is None:
                if self.idle or self._border > self._clock or (self._border == self._clock and not begin):
                    return
                self._plan = self._state.plan(self._border)
            steps = self._plan.steps
            end = self._plan.end(steps)
            if end > self._clock:
                return
            self._plan, self._border = None, end
            self._state.complete(steps, end)
            if self._leaving:
                self._drop_cancelled()

    def _drop_cancelled(self) -> None:
        for request in self._leaving:
            if self._state.running.get(request.id) is request:
                self._state.release(request)
        self._leaving = []

    def _cut(self, plan: StepRun) -> None:
        """The batch is to be made anew at the next border: keep only the steps that have begun."""
        ended = plan.ended(self._clock)
        begun = ended if plan.end(ended) == self._clock else ended + 1
        plan.steps = min(plan.steps, begun)
        if not begun:
            self._plan = None

"""Who waits, who holds a seat and KV blocks, and what the next step serves: the scheduler of a batch. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

from broker.decoding import DecodeSet, RequestId, StepRun
from broker.prefix_cache import Chain, PrefixCache, Stretch
from broker.throughput import Profile


class EventKind(Enum):
    """What happened to a request."""

    FIRST_TOKEN = auto()
    FINISHED = auto()
    PREEMPTED = auto()


class Event(NamedTuple):
    """Something happened to a request, ``at`` seconds; FINISHED tells how much of its prompt was cached."""

    kind: EventKind
    request_id: RequestId
    at: float
    cached_tokens: int = 0


class Request:
    """A request in the batch. ``generated`` is not kept up to date while it decodes."""

    __slots__ = ("blocks", "cached", "cancelled", "chain", "generated", "id", "output", "prefilled", "prompt", "shared")

    def __init__(self, request_id: RequestId, prompt: int, output: int, chain: Chain = ()) -> None:
        self.id = request_id
        self.prompt = prompt
        self.output = output
        self.generated = 0
        self.prefilled = 0
        self.blocks = 0  # KV blocks held from admission on, shared ones included
        self.chain = chain
        self.shared: Sequence[Stretch] = ()  # blocks of prefixes among them
        self.cached = -1 if chain else 0  # prompt tokens found in the cache at first admission, -1 before it
        self.cancelled = False


class BatchState:
    """Seats, KV blocks and the queue of one engine, from one step border to the next."""

    def __init__(self, profile: Profile, token_budget: int, block_tokens: int, step_overhead_s: float) -> None:
        self.profile = profile
        self.waiting: OrderedDict[RequestId, Request] = OrderedDict()
        self.running: dict[RequestId, Request] = {}  # in order of admission
        self.prefilling: list[Request] = []
        self.decoders = DecodeSet(block_tokens)
        self.prefixes = PrefixCache()
        self.block_tokens = block_tokens
        self.total_blocks = profile.kv_tokens // block_tokens
        self.free_blocks = self.total_blocks  # with those that only the prefix cache holds
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.events: list[Event] = []
        self._budget = token_budget
        self._overhead = step_overhead_s
        self._chunks: list[tuple[Request, int]] = []  # prefill tokens of the latest plan

    def blocks(self, tokens: int) -> int:
        """KV blocks that hold ``tokens`` tokens."""
        return -(-tokens // self.block_tokens)

    def has_room(self, request: Request) -> bool:
        """Whether a seat is free and the whole prompt fits the free blocks, those for the next step left out."""
        if len(self.running) >= self.profile.seats:
            return False
        needed = self.blocks(request.prompt + request.generated)
        if request.chain:
            needed -= self.prefixes.referenced(request.chain, request.prompt // self.block_tokens)
        return needed <= self.free_blocks - self.decoders.new_blocks(1)

    def plan(self, now: float) -> StepRun:
        """Choose the batch of the steps that start ``now``: one step with prefill, or a run of decode steps."""
        self._make_room(now)
        self._chunks = []
        budget = self._budget - len(self.decoders)
        for request in self.prefilling:
            budget -= self._plan_chunk(request, budget)
        if self.waiting and self.prefixes.evictable:
            self.prefixes.evict(self.decoders.new_blocks(1))
        while budget > 0 and self.waiting:
            request = next(iter(self.waiting.values()))
            if not self.has_room(request):
                break
            self._admit(request)
            budget -= self._plan_chunk(request, budget)
        if self._chunks:
            return StepRun(now, 1, self._mixed_step_seconds())
        running = len(self.decoders)
        first = self._overhead + self.profile.decode_step_seconds(running, self.decoders.context)
        return StepRun(now, self.decoders.run_length(self.free_blocks), first, self.profile.decode_f * running)

    def complete(self, steps: int, now: float) -> None:
        """Carry out the first ``steps`` steps of the latest plan, which end ``now``."""
        decoders = self.decoders
        self._take(decoders.new_blocks(steps))
        self.output_tokens += steps * len(decoders)
        decoders.pass_steps(steps)
        for request_id in decoders.finished():
            self._finish(self.running[request_id], now)
        for request, chunk in self._chunks:
            request.prefilled += chunk
            if request.prefilled == request.prompt + request.generated:
                self._end_prefill(request, now)
        self._chunks = []

    def release(self, request: Request) -> None:
        """Take a request off its seat and free its blocks. At a border only."""
        del self.running[request.id]
        blocks = request.blocks
        if request.id in self.decoders:
            context, remaining = self.decoders.leave(request.id)
            request.generated = request.output - remaining
            blocks = self.blocks(context)
        elif request in self.prefilling:
            self.prefilling.remove(request)
        if request.shared:
            blocks -= request.shared[-1].end
        self.free_blocks += blocks
        if self.prefixes.evictable:
            self.prefixes.give(blocks)
        if request.shared:
            computed = request.prefilled // self.block_tokens
            self.free_blocks += self.prefixes.leave(request.shared, computed, self.free_blocks)
            request.shared = ()
        request.prefilled = 0

    def _make_room(self, now: float) -> None:
        """Preempt, youngest first, until the next decode step finds the KV blocks it takes."""
        while self.decoders.new_blocks(1) > self.free_blocks:
            request = self.running[next(reversed(self.running))]
            self.release(request)
            self.waiting[request.id] = request
            self.waiting.move_to_end(request.id, last=False)
            self.events.append(Event(EventKind.PREEMPTED, request.id, now))

    def _admit(self, request: Request) -> None:
        del self.waiting[request.id]
        self.running[request.id] = request
        self.prefilling.append(request)
        request.blocks = self.blocks(request.prompt + request.generated)
        if request.chain:
            self._admit_with_prefix(request)
        else:
            self._take(request.blocks)

    def _admit_with_prefix(self, request: Request) -> None:
        entry = self.prefixes.enter(request.chain, request.prompt // self.block_tokens)
        # Of a prompt that is cached to its end, vLLM computes the last block again, for the first output token.
        most = (request.prompt + request.generated - 1) // self.block_tokens
        request.prefilled = min(entry.hits, most) * self.block_tokens
        request.shared = entry.stretches
        if request.cached < 0:
            request.cached = request.prefilled
        self.free_blocks -= entry.revived
        self._take(request.blocks - entry.referenced - entry.revived)

    def _take(self, blocks: int) -> None:
        self.free_blocks -= blocks
        if self.prefixes.evictable:
            self.prefixes.take(blocks)

    def _plan_chunk(self, request: Request, budget: int) -> int:
        chunk = min(budget, request.prompt + request.generated - request.prefilled)
        if chunk > 0:
            self._chunks.append((request, chunk))
        return chunk

    def _mixed_step_seconds(self) -> float:
        profile, running = self.profile, len(self.decoders)
        seconds = self._overhead + profile.prefill_a
        if running:
            decode = profile.decode_step_seconds(running, self.decoders.context)
            seconds += decode - min(profile.prefill_a, profile.decode_d)
        for request, chunk in self._chunks:
            behind = request.prefilled
            seconds += profile.prefill_b * chunk + profile.prefill_c * chunk * (2 * behind + chunk)
        return seconds

    def _end_prefill(self, request: Request, now: float) -> None:
        self.prefilling.remove(request)
        if not request.generated:
            self.prompt_tokens += request.prompt - request.cached
        if request.output:
            if not request.generated and not request.cancelled:
                self.events.append(Event(EventKind.FIRST_TOKEN, request.id, now))
            request.generated += 1
            self.output_tokens += 1
        if request.generated == request.output:
            self._finish(request, now)
        else:
            self.decoders.join(request.id, request.prefilled, request.output - request.generated)

    def _finish(self, request: Request, now: float) -> None:
        if not request.cancelled:
            self.events.append(Event(EventKind.FINISHED, request.id, now, request.cached))
        self.release(request)

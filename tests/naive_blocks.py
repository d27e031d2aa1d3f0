"""A naive continuous batch with prefix caching: every KV block on its own, in vLLM's queue of free blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

from batch_loads import BLOCK, Op

from broker.batching import Event, EventKind
from broker.throughput import Profile

#: A block of a prefix: the prefix's name and which block of the prompt it is.
Key = tuple[str, int]


@dataclass(eq=False)
class Block:
    key: Key | None = None
    refs: int = 0


@dataclass(eq=False)
class BlockRequest:
    id: int
    prompt: int
    output: int
    keys: list[Key]
    generated: int = 0
    computed: int = 0
    needs: int = 0  # tokens to prefill; 0 while it decodes
    cached: int = -1
    blocks: list[Block] = field(default_factory=list[Block])


def blocks_for(tokens: int) -> int:
    return (tokens + BLOCK - 1) // BLOCK


class BlockEngine:
    """One step, one request and one block at a time, with nothing clever in it."""

    def __init__(self, profile: Profile, budget: int) -> None:
        self.profile = profile
        self.budget = budget
        self.free = [Block() for _ in range(profile.kv_tokens // BLOCK)]  # taken from the head, given to the end
        self.cached: dict[Key, Block] = {}
        self.waiting: list[BlockRequest] = []
        self.running: list[BlockRequest] = []
        self.events: list[Event] = []
        self.steps = 0
        self.computed_prompt = 0

    def replay(self, ops: list[Op]) -> list[Event]:
        now, todo = 0.0, list(ops)
        while True:
            if not self.waiting and not self.running:
                if not todo:
                    return self.events
                now = max(now, todo[0].at)
            while todo and todo[0].at <= now:
                self.apply(todo.pop(0))
            if self.waiting or self.running:
                now = self.step(now, todo)

    def apply(self, op: Op) -> None:
        if op.output is None:
            self.waiting = [r for r in self.waiting if r.id != op.id]
            for r in [r for r in self.running if r.id == op.id]:
                self.leave(r)
            return
        keys: list[Key] = []
        for name, tokens in op.prefix:
            keys += [(name, k) for k in range(len(keys), tokens // BLOCK)]
        self.waiting.append(BlockRequest(op.id, op.prompt, op.output, keys))

    def allocate(self, r: BlockRequest, tokens: int) -> None:
        while len(r.blocks) < blocks_for(tokens):
            block = self.free.pop(0)
            if block.key:
                del self.cached[block.key]
            block.key, block.refs = None, 1
            r.blocks.append(block)

    def leave(self, r: BlockRequest) -> None:
        self.running.remove(r)
        for block in reversed(r.blocks):
            block.refs -= 1
            if not block.refs:
                self.free.append(block)
        r.blocks = []

    def fill(self, r: BlockRequest, tokens: int) -> None:
        """The step computes the request's first tokens: from now on others find the blocks they fill."""
        for block, key in zip(r.blocks[: tokens // BLOCK], r.keys, strict=False):
            if not block.key and key not in self.cached:
                block.key = key
                self.cached[key] = block

    def preempt(self, now: float) -> bool:
        preempted = False
        while True:
            decoding = [r for r in self.running if not r.needs]
            if sum(blocks_for(r.computed + 1) - len(r.blocks) for r in decoding) <= len(self.free):
                return preempted
            preempted, victim = True, self.running[-1]
            self.leave(victim)
            victim.computed = victim.needs = 0
            self.waiting.insert(0, victim)
            self.events.append(Event(EventKind.PREEMPTED, victim.id, now))

    def admit(self) -> BlockRequest | None:
        if not self.waiting or len(self.running) >= self.profile.seats:
            return None
        r = self.waiting[0]
        tokens = r.prompt + r.generated
        hits: list[Block] = []
        for key in r.keys:
            if key not in self.cached:
                break
            hits.append(self.cached[key])
        if blocks_for(tokens) - sum(block.refs > 0 for block in hits) > len(self.free):
            return None
        self.running.append(self.waiting.pop(0))
        for block in hits:
            if not block.refs:
                self.free.remove(block)
            block.refs += 1
        r.blocks = hits
        r.needs, r.computed = tokens, min(len(hits), (tokens - 1) // BLOCK) * BLOCK
        r.cached = r.computed if r.cached < 0 else r.cached
        self.allocate(r, tokens)
        return r

    def step(self, now: float, todo: list[Op]) -> float:
        p = self.profile
        preempted = self.preempt(now)
        decoding = [r for r in self.running if not r.needs]
        seconds = p.decode_e * len(decoding) + p.decode_f * sum(r.computed for r in decoding)
        fixed = p.decode_d if decoding else 0.0
        for r in decoding:
            self.allocate(r, r.computed + 1)
        budget, chunks = self.budget - len(decoding), list[tuple[BlockRequest, int]]()
        queue = [r for r in self.running if r.needs]
        while budget > 0:
            r = queue.pop(0) if queue else (None if preempted else self.admit())
            if r is None:
                break
            chunk = min(budget, r.needs - r.computed)
            self.fill(r, r.computed + chunk)
            chunks.append((r, chunk))
            budget -= chunk
            fixed = max(fixed, p.prefill_a)
            seconds += p.prefill_b * chunk + p.prefill_c * ((r.computed + chunk) ** 2 - r.computed**2)
        self.steps += 1
        self.end_step(now + (fixed + seconds), decoding, chunks, todo)
        return now + (fixed + seconds)

    def end_step(
        self, end: float, decoding: list[BlockRequest], chunks: list[tuple[BlockRequest, int]], todo: list[Op]
    ) -> None:
        cancelled = {op.id for op in todo if op.output is None and op.at < end}
        for r in decoding:
            r.computed += 1
            r.generated += 1
            self.settle(r, end, cancelled)
        for r, chunk in chunks:
            r.computed += chunk
            if r.computed < r.needs:
                continue
            r.needs = 0
            if not r.generated:
                self.computed_prompt += r.prompt - r.cached
            if r.output:
                r.generated += 1
                if r.generated == 1 and r.id not in cancelled:
                    self.events.append(Event(EventKind.FIRST_TOKEN, r.id, end))
            self.settle(r, end, cancelled)

    def settle(self, r: BlockRequest, now: float, cancelled: set[int]) -> None:
        if r.generated == r.output:
            self.leave(r)
            if r.id not in cancelled:
                self.events.append(Event(EventKind.FINISHED, r.id, now, r.cached))

"""The decoding requests of a continuous batch, and runs of decode steps in closed form. Pure."""

from __future__ import annotations

from heapq import heappop, heappush
from math import sqrt

RequestId = int | str

_Entry = tuple[int, int, RequestId, int]  # step at whose end it finishes, order of joining, id, context - step


class StepRun:
    """Steps with the same batch: step i (from 0) takes ``first + i * growth`` seconds.

    In a run of decode steps the context grows by one token a request and a step, so the time grows linearly.
    """

    __slots__ = ("first", "growth", "start", "steps")

    def __init__(self, start: float, steps: int, first: float, growth: float = 0.0) -> None:
        self.start = start
        self.steps = steps
        self.first = first
        self.growth = growth

    def end(self, steps: int) -> float:
        """When the first ``steps`` steps are over."""
        return self.start + (self.first * steps + self.growth * (steps * (steps - 1) // 2))

    def ended(self, now: float) -> int:
        """How many steps are over at ``now``: the arithmetic series solved, then put right for rounding."""
        passed = now - self.start
        linear = self.first - self.growth / 2
        root = linear + sqrt(linear * linear + 2 * self.growth * passed) if passed > 0 else 0.0
        steps = min(self.steps, int(2 * passed / root)) if root > 0 else 0
        while steps and self.end(steps) > now:
            steps -= 1
        while steps < self.steps and self.end(steps + 1) <= now:
            steps += 1
        return steps


class DecodeSet:
    """Requests that get one token a step.

    Nothing is counted down a request: each is filed once under the step at whose end it finishes, and under the
    step, modulo the block size, at which it needs another KV block. A run of any length costs the same.
    """

    def __init__(self, block_tokens: int) -> None:
        self.step = 0  # steps passed
        self.context = 0  # KV tokens held by all together
        self._block = block_tokens
        self._members: dict[RequestId, _Entry] = {}
        self._finishing: list[_Entry] = []  # a heap; entries of those that left lie in it until they come up
        self._joined = 0
        self._due = [0] * block_tokens  # requests by the step, modulo block size, that takes a new block

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._members

    def join(self, request_id: RequestId, context: int, remaining: int) -> None:
        """Take in a request that holds ``context`` KV tokens and has ``remaining`` (1 or more) tokens to go."""
        self._joined += 1
        entry = (self.step + remaining, self._joined, request_id, context - self.step)
        self._members[request_id] = entry
        heappush(self._finishing, entry)
        self.context += context
        self._due[-entry[3] % self._block] += 1

    def leave(self, request_id: RequestId) -> tuple[int, int]:
        """Take a request out: the KV tokens it holds, and the tokens it has to go."""
        finish_step, _, _, offset = self._members.pop(request_id)
        self._due[-offset % self._block] -= 1
        context = offset + self.step
        self.context -= context
        return context, finish_step - self.step

    def remaining(self, request_id: RequestId) -> int:
        """Tokens a member has to go."""
        return self._members[request_id][0] - self.step

    def pass_steps(self, steps: int) -> None:
        """Let steps pass, no more than up to the first finish: see ``finished``."""
        self.step += steps
        self.context += steps * len(self._members)

    def finished(self) -> list[RequestId]:
        """The members that have no token to go, in order of joining. They still have to leave."""
        done: list[RequestId] = []
        heap = self._finishing
        while heap and heap[0][0] <= self.step:
            entry = heappop(heap)
            if self._members.get(entry[2]) is entry:
                done.append(entry[2])
        return done

    def new_blocks(self, steps: int) -> int:
        """KV blocks that the next ``steps`` steps take: a request takes one a block size of tokens."""
        cycles, rest = divmod(steps, self._block)
        at = self.step % self._block
        over = at + rest - self._block
        taken = sum(self._due[at : at + rest])
        if over > 0:
            taken += sum(self._due[:over])
        return cycles * len(self._members) + taken

    def run_length(self, free_blocks: int) -> int:
        """Steps until the first finish, or fewer if the free KV blocks last no longer. Not for an empty set."""
        steps = self._finishing[0][0] - self.step  # of one that left: then the run is shorter than it could be
        if self.new_blocks(steps) <= free_blocks:
            return steps
        steps = free_blocks // len(self._members) * self._block
        while self.new_blocks(steps + 1) <= free_blocks:
            steps += 1
        return steps

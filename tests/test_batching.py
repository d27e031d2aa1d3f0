"""ContinuousBatch against a naive reference that takes one step at a time, and its laws under random loads."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from batch_loads import BLOCK, Op, apply, batch_of, drain, profiles, replay
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.batching import ContinuousBatch, Event, EventKind
from broker.throughput import Profile


@dataclass
class NaiveRequest:
    id: int
    prompt: int
    output: int
    generated: int = 0
    computed: int = 0  # KV tokens
    blocks: int = 0
    needs: int = 0  # tokens to prefill; 0 while it decodes


@dataclass
class NaiveEngine:
    """The same engine, one step and one request at a time, with nothing clever in it."""

    profile: Profile
    budget: int
    waiting: list[NaiveRequest] = field(default_factory=list[NaiveRequest])
    running: list[NaiveRequest] = field(default_factory=list[NaiveRequest])
    events: list[Event] = field(default_factory=list[Event])
    steps: int = 0

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
            self.running = [r for r in self.running if r.id != op.id]
        else:
            self.waiting.append(NaiveRequest(op.id, op.prompt, op.output))

    def free(self) -> int:
        return self.profile.kv_tokens // BLOCK - sum(r.blocks for r in self.running)

    def blocks_for(self, tokens: int) -> int:
        return (tokens + BLOCK - 1) // BLOCK

    def preempt(self, now: float) -> bool:
        preempted = False
        while True:
            wanted = sum(self.blocks_for(r.computed + 1) - r.blocks for r in self.running if not r.needs)
            if wanted <= self.free():
                return preempted
            preempted, victim = True, self.running.pop()
            victim.computed = victim.blocks = victim.needs = 0
            self.waiting.insert(0, victim)
            self.events.append(Event(EventKind.PREEMPTED, victim.id, now))

    def admit(self) -> NaiveRequest | None:
        if not self.waiting or len(self.running) >= self.profile.seats:
            return None
        head = self.waiting[0]
        if self.blocks_for(head.prompt + head.generated) > self.free():
            return None
        head.needs = head.prompt + head.generated
        head.blocks = self.blocks_for(head.needs)
        self.running.append(self.waiting.pop(0))
        return head

    def step(self, now: float, todo: list[Op]) -> float:
        p = self.profile
        preempted = self.preempt(now)
        decoding = [r for r in self.running if not r.needs]
        seconds = p.decode_e * len(decoding) + p.decode_f * sum(r.computed for r in decoding)
        fixed = p.decode_d if decoding else 0.0
        for r in decoding:
            r.blocks = self.blocks_for(r.computed + 1)
        budget, chunks = self.budget - len(decoding), list[tuple[NaiveRequest, int]]()
        queue = [r for r in self.running if r.needs]
        while budget > 0:
            r = queue.pop(0) if queue else (None if preempted else self.admit())
            if r is None:
                break
            chunk = min(budget, r.needs - r.computed)
            chunks.append((r, chunk))
            budget -= chunk
            fixed = max(fixed, p.prefill_a)
            seconds += p.prefill_b * chunk + p.prefill_c * ((r.computed + chunk) ** 2 - r.computed**2)
        self.steps += 1
        self.end_step(now + (fixed + seconds), decoding, chunks, todo)
        return now + (fixed + seconds)

    def end_step(
        self, end: float, decoding: list[NaiveRequest], chunks: list[tuple[NaiveRequest, int]], todo: list[Op]
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
            if r.output:
                r.generated += 1
                if r.generated == 1 and r.id not in cancelled:
                    self.events.append(Event(EventKind.FIRST_TOKEN, r.id, end))
            self.settle(r, end, cancelled)

    def settle(self, r: NaiveRequest, now: float, cancelled: set[int]) -> None:
        if r.generated == r.output:
            self.running.remove(r)
            if r.id not in cancelled:
                self.events.append(Event(EventKind.FINISHED, r.id, now))


@st.composite
def loads(draw: st.DrawFn, cancels: bool = True) -> tuple[Profile, int, list[Op]]:
    """A profile, a token budget, and requests that come (and are cancelled) in order of time."""
    profile = draw(profiles)
    budget = draw(st.integers(profile.seats, 40))
    ops: list[Op] = []
    for key in range(draw(st.integers(1, 14))):
        prompt = draw(st.integers(1, profile.kv_tokens))
        output = draw(st.integers(0, profile.kv_tokens + 1 - prompt))
        at = draw(st.integers(0, 40)) / 64
        ops.append(Op(at, key, prompt, output))
        if cancels and draw(st.integers(0, 3)) == 0:
            ops.append(Op(at + draw(st.integers(0, 40)) / 64, key))
    return profile, budget, sorted(ops, key=lambda op: op.at)


@given(loads())
@settings(max_examples=400, deadline=None)
def test_fast_forward_is_the_naive_engine(load: tuple[Profile, int, list[Op]]) -> None:
    profile, budget, ops = load
    naive, batch = NaiveEngine(profile, budget), batch_of(profile, budget)
    assert replay(batch, ops) == naive.replay(ops)
    assert batch.steps == naive.steps


@given(loads(), st.lists(st.integers(0, 4000), max_size=30))
@settings(max_examples=200, deadline=None)
def test_looking_in_between_changes_nothing(load: tuple[Profile, int, list[Op]], looks: list[int]) -> None:
    """However often the caller advances, and whatever it reads, the events are the same."""
    profile, budget, ops = load
    undisturbed = replay(batch_of(profile, budget), ops)
    batch, events = batch_of(profile, budget), list[Event]()
    # Off the grid of the ops and steps: a look at the very instant of a border starts the step due there.
    times: list[tuple[float, Op | None]] = [((2 * n + 1) / 2**13, None) for n in looks]
    times += [(op.at, op) for op in ops]
    for at, op in sorted(times, key=lambda pair: pair[0]):
        if op:
            apply(batch, op)
        else:
            events += batch.advance(at)
            check_bounds(batch, profile, at)
    assert events + drain(batch) == undisturbed


def check_bounds(batch: ContinuousBatch, profile: Profile, now: float) -> None:
    assert batch.running <= profile.seats
    assert 0 <= batch.context_tokens <= batch.kv_tokens_used <= profile.kv_tokens
    upcoming, step = batch.next_event_at(), batch.next_step_at()
    assert (upcoming is None) == (step is None) == batch.idle
    assert upcoming is None or step is None or now <= step <= upcoming


@given(loads(cancels=False))
@settings(max_examples=200, deadline=None)
def test_every_request_finishes_once_with_all_its_tokens(load: tuple[Profile, int, list[Op]]) -> None:
    profile, budget, ops = load
    batch = batch_of(profile, budget)
    for op in ops:
        apply(batch, op)
    finished: list[object] = []
    outputs = {op.id: op.output or 0 for op in ops}
    while (at := batch.next_step_at()) is not None:
        before = {key: batch.generated(key) for key in outputs}
        events = batch.advance(at)
        assert [event.at for event in events] == sorted(event.at for event in events)
        finished += [event.request_id for event in events if event.kind is EventKind.FINISHED]
        alive = {key: batch.generated(key) for key in outputs if key not in finished}
        assert all(before[key] <= tokens <= outputs[key] for key, tokens in alive.items())
        done = sum(outputs[key] for key in outputs if key in finished)
        assert batch.output_tokens_total == sum(alive.values()) + done
    assert sorted(map(str, finished)) == sorted(map(str, outputs))
    assert batch.prompt_tokens_total == sum(op.prompt for op in ops)
    assert (batch.running, batch.waiting, batch.kv_tokens_used, batch.context_tokens) == (0, 0, 0, 0)


@given(loads(cancels=False))
@settings(max_examples=100, deadline=None)
def test_first_tokens_come_in_order_of_arrival(load: tuple[Profile, int, list[Op]]) -> None:
    profile, budget, ops = load
    events = replay(batch_of(profile, budget), ops)
    firsts = [event.request_id for event in events if event.kind is EventKind.FIRST_TOKEN]
    preempted_before_first = {e.request_id for e in events if e.kind is EventKind.PREEMPTED}
    arrivals = [op.id for op in ops if op.output]
    steady = [key for key in arrivals if key not in preempted_before_first]
    assert [key for key in firsts if key not in preempted_before_first] == steady


PROFILE = Profile(0.25, 0.0, 0.0, 0.5, 0.0, 0.0, kv_tokens=10 * BLOCK, seats=2)


def test_a_request_takes_its_prefill_and_a_decode_step_for_each_further_token() -> None:
    batch = batch_of(PROFILE, 64)
    batch.add("a", 8, 3, now=10.0)
    assert batch.advance(100.0) == [
        Event(EventKind.FIRST_TOKEN, "a", 10.25),
        Event(EventKind.FINISHED, "a", 11.25),
    ]
    assert batch.next_event_at() is None


def test_a_long_prompt_is_prefilled_in_chunks_of_the_token_budget() -> None:
    batch = batch_of(PROFILE, 8)
    batch.add("a", 20, 1, now=0.0)
    assert [event.at for event in batch.advance(9.0)] == [0.75, 0.75]  # 8 + 8 + 4 tokens


def test_a_seat_has_to_be_free() -> None:
    batch = batch_of(PROFILE, 64)
    for key in ("a", "b", "c"):
        batch.add(key, 4, 2, now=0.0)
    batch.advance(0.25)
    assert (batch.running, batch.waiting) == (2, 1)
    events = batch.advance(9.0)
    assert [e.request_id for e in events if e.kind is EventKind.FINISHED] == ["a", "b", "c"]
    assert events[-2] == Event(EventKind.FIRST_TOKEN, "c", 1.0)


def test_the_youngest_is_preempted_when_blocks_run_out_and_finishes_later() -> None:
    batch = batch_of(PROFILE, 64)
    batch.add("old", 16, 20, now=0.0)
    batch.add("young", 16, 20, now=0.0)
    events = batch.advance(1000.0)
    assert [(e.kind, e.request_id) for e in events] == [
        (EventKind.FIRST_TOKEN, "old"),
        (EventKind.FIRST_TOKEN, "young"),
        (EventKind.PREEMPTED, "young"),
        (EventKind.FINISHED, "old"),
        (EventKind.FINISHED, "young"),
    ]
    assert batch.output_tokens_total == 40
    assert batch.prompt_tokens_total == 32


def test_cancel_frees_seat_and_blocks_at_the_next_border() -> None:
    batch = batch_of(PROFILE, 64)
    batch.add("a", 12, 10, now=0.0)
    batch.add("b", 12, 10, now=0.0)
    batch.advance(0.5)
    assert batch.cancel("a", now=0.5)
    assert not batch.cancel("a", now=0.5)
    assert batch.running == 2  # the step under way ends with the batch it has
    assert [e for e in batch.advance(0.75) if e.request_id == "a"] == []
    assert (batch.running, batch.kv_tokens_used) == (1, 16)
    assert not batch.cancel("never there", now=0.75)


def test_a_cancelled_waiting_request_never_starts() -> None:
    batch = batch_of(PROFILE, 64)
    for key in ("a", "b", "c"):
        batch.add(key, 4, 2, now=0.0)
    assert batch.cancel("c", now=0.0)
    assert batch.waiting == 2
    assert {event.request_id for event in batch.advance(50.0)} == {"a", "b"}


def test_a_request_that_came_at_the_instant_of_a_border_is_in_time() -> None:
    batch = batch_of(PROFILE, 64)
    batch.add("a", 4, 20, now=0.0)
    batch.advance(0.25)  # the prefill is over, and the first decode step starts here
    batch.add("b", 4, 1, now=0.25)
    assert batch.advance(0.75)[-1] == Event(EventKind.FINISHED, "b", 0.75)
    batch.add("c", 4, 1, now=0.8)  # a decode step runs from 0.75 to 1.25
    assert batch.advance(1.75)[-1] == Event(EventKind.FINISHED, "c", 1.75)


def test_a_profile_of_zeros_takes_no_time() -> None:
    batch = ContinuousBatch(Profile(0, 0, 0, 0, 0, 0, kv_tokens=1600, seats=4))
    for key in range(20):
        batch.add(key, 100, 50, now=3.0)
    events = batch.advance(3.0)
    assert sum(event.kind is EventKind.FINISHED for event in events) == 20
    assert {event.at for event in events} == {3.0}


def test_host_overhead_is_added_to_every_step() -> None:
    batch = ContinuousBatch(PROFILE, step_overhead_s=0.125)
    batch.add("a", 8, 3, now=0.0)
    assert batch.advance(100.0)[-1].at == 0.25 + 2 * 0.5 + 3 * 0.125


@pytest.mark.parametrize(
    ("key", "prompt", "output", "reason"),
    [
        ("a", 4, 4, "already"),
        ("b", 0, 4, "prompt"),
        ("b", 4, -1, "output"),
        ("b", 30, 12, "larger than the KV cache"),
    ],
)
def test_a_request_that_cannot_be_is_refused(key: str, prompt: int, output: int, reason: str) -> None:
    batch = batch_of(PROFILE, 64)
    batch.add("a", 4, 4, now=0.0)
    with pytest.raises(ValueError, match=reason):
        batch.add(key, prompt, output, now=0.0)
    assert (batch.running, batch.waiting) == (0, 1)


def test_a_batch_needs_a_seat_and_a_block() -> None:
    with pytest.raises(ValueError, match="seat"):
        ContinuousBatch(Profile(0, 0, 0, 0, 0, 0, kv_tokens=8, seats=1))

"""Prefix caching in ContinuousBatch: against a reference that keeps every block, and its laws under random loads."""

from __future__ import annotations

from dataclasses import replace

from batch_loads import BLOCK, Op, apply, batch_of, drain, profiles, replay
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_blocks import BlockEngine

from broker.batching import ContinuousBatch, Event, EventKind
from broker.throughput import Profile


@st.composite
def loads(draw: st.DrawFn, cancels: bool = True) -> tuple[Profile, int, list[Op]]:
    """A profile, a token budget, and requests that share prefixes of a small tree, in order of time."""
    profile = draw(profiles)
    budget = draw(st.integers(profile.seats, 40))
    lengths: dict[str, int] = {}
    ops: list[Op] = []
    for key in range(draw(st.integers(1, 16))):
        prefix: list[tuple[str, int]] = []
        name, tokens = "", 0
        for branch in draw(st.lists(st.sampled_from("xy"), max_size=3)):
            name += branch
            tokens = lengths.setdefault(name, tokens + draw(st.integers(1, 4 * BLOCK)))
            if tokens > profile.kv_tokens:
                break
            prefix.append((name, tokens))
        longest = prefix[-1][1] if prefix else 0
        prompt = draw(st.integers(max(longest, 1), max(longest, min(longest + 3 * BLOCK, profile.kv_tokens), 1)))
        output = draw(st.integers(0, profile.kv_tokens + 1 - prompt))
        at = draw(st.integers(0, 40)) / 64
        ops.append(Op(at, key, prompt, output, prefix))
        if cancels and draw(st.integers(0, 4)) == 0:
            ops.append(Op(at + draw(st.integers(0, 40)) / 64, key))
    return profile, budget, sorted(ops, key=lambda op: op.at)


@given(loads())
@settings(max_examples=600, deadline=None)
def test_it_is_the_engine_that_keeps_every_block(load: tuple[Profile, int, list[Op]]) -> None:
    profile, budget, ops = load
    naive, batch = BlockEngine(profile, budget), batch_of(profile, budget)
    assert replay(batch, ops) == naive.replay(ops)
    assert batch.steps == naive.steps
    assert batch.prompt_tokens_total == naive.computed_prompt
    assert (batch.running, batch.waiting, batch.kv_tokens_used, batch.context_tokens) == (0, 0, 0, 0)


@given(loads(), st.lists(st.integers(0, 4000), max_size=30))
@settings(max_examples=200, deadline=None)
def test_kv_memory_is_never_overdrawn_and_looking_changes_nothing(
    load: tuple[Profile, int, list[Op]], looks: list[int]
) -> None:
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
            assert 0 <= batch.kv_tokens_used <= profile.kv_tokens
            assert batch.running <= profile.seats
    assert events + drain(batch) == undisturbed


@given(loads(cancels=False))
@settings(max_examples=200, deadline=None)
def test_cached_tokens_are_full_blocks_of_a_prefix_and_never_the_whole_prompt(
    load: tuple[Profile, int, list[Op]],
) -> None:
    profile, budget, ops = load
    requests = {op.id: op for op in ops}
    batch = batch_of(profile, budget)
    finished = [event for event in replay(batch, ops) if event.kind is EventKind.FINISHED]
    assert {event.request_id for event in finished} == requests.keys()
    for event in finished:
        op = requests[int(event.request_id)]
        assert 0 <= event.cached_tokens <= op.prompt - 1
        assert event.cached_tokens % BLOCK == 0
        assert event.cached_tokens <= max((tokens for _, tokens in op.prefix), default=0)
    assert batch.prompt_tokens_total == sum(op.prompt for op in ops) - sum(event.cached_tokens for event in finished)


@given(loads(cancels=False))
@settings(max_examples=200, deadline=None)
def test_one_at_a_time_nobody_is_slower_with_the_cache(load: tuple[Profile, int, list[Op]]) -> None:
    """With more seats a request may well wait longer: others, admitted sooner, are in its way."""
    profile, budget, ops = load
    alone = replace(profile, seats=1)
    plain = replay(batch_of(alone, budget), ops, caching=False)
    cached = replay(batch_of(alone, budget), ops)
    assert [event[:2] for event in cached] == [event[:2] for event in plain]
    assert all(sooner.at <= later.at for sooner, later in zip(cached, plain, strict=True))


@given(
    st.lists(
        st.tuples(
            st.integers(1, 40), st.integers(0, 20), st.lists(st.tuples(st.sampled_from("abc"), st.integers(-9, 60)))
        ),
        max_size=12,
    )
)
def test_contradictory_prefixes_break_nothing(requests: list[tuple[int, int, list[tuple[str, int]]]]) -> None:
    """One name for two lengths, prefixes in no order, longer than the prompt: then less is shared, that is all."""
    batch = ContinuousBatch(replace(PROFILE, kv_tokens=16 * BLOCK, seats=3), block_tokens=BLOCK)
    for key, (prompt, output, prefix) in enumerate(requests):
        batch.add(key, prompt, output, 0.0, prefix)
    finished = [event for event in drain(batch) if event.kind is EventKind.FINISHED]
    assert len(finished) == len(requests)
    assert all(event.cached_tokens < requests[int(event.request_id)][0] for event in finished)
    assert (batch.running, batch.waiting, batch.kv_tokens_used) == (0, 0, 0)


PROFILE = Profile(0.0, 1 / 64, 0.0, 0.5, 0.0, 0.0, kv_tokens=16 * BLOCK, seats=4)
SYSTEM = [("system", 2 * BLOCK + 1)]


def finish(batch: ContinuousBatch) -> dict[object, int]:
    return {e.request_id: e.cached_tokens for e in drain(batch) if e.kind is EventKind.FINISHED}


def test_full_blocks_that_were_computed_take_no_prefill_time() -> None:
    batch = batch_of(PROFILE, 64)
    batch.add("a", 12, 1, 0.0, SYSTEM)
    assert batch.advance(1.0)[-1] == Event(EventKind.FINISHED, "a", 12 / 64, 0)
    batch.add("b", 16, 1, 1.0, SYSTEM)
    assert batch.advance(2.0)[-1] == Event(EventKind.FINISHED, "b", 1.0 + 8 / 64, 2 * BLOCK)
    batch.add("c", 16, 1, 2.0)
    assert batch.advance(3.0)[-1] == Event(EventKind.FINISHED, "c", 2.0 + 16 / 64, 0)


def test_requests_of_one_step_share_what_the_first_of_them_computes() -> None:
    batch = batch_of(PROFILE, 64)
    for key in ("a", "b", "c"):
        batch.add(key, 12, 4, 0.0, SYSTEM)
    batch.advance(0.25)  # 12 + 4 + 4 tokens take 20/64 s
    assert batch.kv_tokens_used == (3 + 1 + 1) * BLOCK
    assert [batch.cached_tokens(key) for key in ("a", "b", "c")] == [0, 8, 8]
    assert batch.cached_tokens("nobody") == 0
    assert finish(batch) == {"a": 0, "b": 8, "c": 8}


def test_of_a_prompt_that_is_cached_whole_the_last_block_is_computed_again() -> None:
    batch = batch_of(PROFILE, 64)
    prefix = [("all", 3 * BLOCK)]
    batch.add("a", 3 * BLOCK, 1, 0.0, prefix)
    batch.add("b", 3 * BLOCK, 1, 9.0, prefix)
    assert finish(batch) == {"a": 0, "b": 2 * BLOCK}


def test_what_was_freed_first_is_evicted_first_and_a_prefix_from_its_end() -> None:
    batch = batch_of(PROFILE, 64)
    long = [("first", 3 * BLOCK), ("first, longer", 8 * BLOCK)]
    batch.add("a", 8 * BLOCK + 1, 1, 0.0, long)
    batch.add("b", 4 * BLOCK + 1, 1, 1.0, [("second", 4 * BLOCK)])
    # Freed before the longer prefix: 2 blocks never used and the end of a's prompt. c evicts 2 more, b's new end 1.
    batch.add("c", 5 * BLOCK, 1, 2.0)
    batch.add("b again", 4 * BLOCK + 1, 1, 3.0, [("second", 4 * BLOCK)])
    batch.add("a again", 8 * BLOCK + 1, 1, 3.0, long)
    cached = finish(batch)
    assert cached["b again"] == 4 * BLOCK
    assert cached["a again"] == 5 * BLOCK


def test_a_request_cancelled_in_its_prefill_leaves_only_what_it_computed() -> None:
    batch = batch_of(PROFILE, 8)
    prefix = [("long", 6 * BLOCK)]
    batch.add("a", 7 * BLOCK, 1, 0.0, prefix)
    batch.cancel("a", 1 / 64)  # its first step, of 8 tokens, has begun
    batch.add("b", 7 * BLOCK, 1, 2.0, prefix)
    assert finish(batch) == {"b": 2 * BLOCK}

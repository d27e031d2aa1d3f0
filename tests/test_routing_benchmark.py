"""The parts of ``benchmarks.routers`` that decide: lengths, seats, and the reference that knows all lengths."""

from __future__ import annotations

import random
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cluster import BenchmarkError
from benchmarks.routing.load import longest_first, through_router
from benchmarks.routing.longest_first import LongestFirst
from benchmarks.routing.servers import Server, Watch
from benchmarks.routing.under_tokenyard import seats_of
from benchmarks.routing.workload import (
    MODEL,
    Request,
    conversation_lengths,
    drawn_lengths,
    make_requests,
    trace_lengths,
)
from workers.engines.simulated_options import INSTANT, SimulatedOptions
from workers.engines.simulated_server import SimulatedServer


def requests_of(*lengths: tuple[int, int]) -> list[Request]:
    return make_requests(lengths, 1000, random.Random(0))


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=40),
    st.lists(st.integers(120, 500), min_size=1, max_size=4),
    st.integers(1, 50),
    st.randoms(),
)
def test_the_reference_sends_each_request_once_and_never_overfills(
    lengths: list[tuple[int, int]], kv_tokens: list[int], in_flight: int, rng: random.Random
) -> None:
    scheduler = LongestFirst(requests_of(*lengths), kv_tokens, in_flight)
    running: list[tuple[int, Request]] = []
    seen: list[str] = []
    while scheduler.waiting or running:
        for place, request in scheduler.take():
            running.append((place, request))
            seen.append(request.custom_id)
        assert len(running) <= in_flight
        for place, kv in enumerate(kv_tokens):
            assert sum(request.tokens for at, request in running if at == place) <= kv
        scheduler.ended(*running.pop(rng.randrange(len(running))))  # there is one: any request fits an empty server
    assert sorted(seen, key=int) == [str(number) for number in range(len(lengths))]


def test_the_reference_sends_the_longest_answers_first_and_small_ones_where_these_do_not_fit() -> None:
    requests = requests_of((10, 5), (10, 90), (10, 40), (10, 60))
    scheduler = LongestFirst(requests, [105, 60], 9)
    assert [(place, request.output_tokens) for place, request in scheduler.take()] == [(0, 90), (1, 40)]
    scheduler.ended(0, requests[1])
    assert [(place, request.output_tokens) for place, request in scheduler.take()] == [(0, 60), (0, 5)]


@given(st.lists(st.integers(1000, 10**6), min_size=1, max_size=6), st.integers(64, 4096))
def test_workers_never_send_more_than_is_to_be_in_flight(kv_tokens: list[int], in_flight: int) -> None:
    seats = seats_of(kv_tokens, in_flight)
    for kv, count in zip(kv_tokens, seats, strict=True):
        assert count >= 1
        share = in_flight * kv // sum(kv_tokens)
        assert count + max(1, count // 16) <= max(share, 2)


def test_lengths_come_from_a_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("when,in,out\n0,5,2\n1,7,0\n")
    lengths = trace_lengths(trace, ("in", "out"), 50, 7, random.Random(1))
    assert set(lengths) == {(5, 2), (7, 1)}
    assert lengths == trace_lengths(trace, ("in", "out"), 50, 7, random.Random(1))
    with pytest.raises(BenchmarkError, match="no CSV file with whole numbers in in and other"):
        trace_lengths(trace, ("in", "other"), 1, 9, random.Random(0))
    with pytest.raises(BenchmarkError, match="cannot read the trace"):
        trace_lengths(tmp_path / "none.csv", ("in", "out"), 1, 9, random.Random(0))
    assert set(trace_lengths(trace, ("in", "out"), 50, 6, random.Random(1))) == {(5, 2)}
    with pytest.raises(BenchmarkError, match="has no requests with prompts up to 4 tokens"):
        trace_lengths(trace, ("in", "out"), 1, 4, random.Random(0))


def test_made_up_lengths_have_a_heavy_tail_and_bounded_prompts() -> None:
    lengths = drawn_lengths(2000, 4000, random.Random(0))
    outputs = sorted(output for _, output in lengths)
    assert outputs[1800] > 2.5 * outputs[1000]
    assert outputs[1980] > 1.5 * sorted(out for _, out in conversation_lengths(2000, 4000, random.Random(0)))[1980]
    assert max(prompt for prompt, _ in lengths) == 4000
    assert min(min(pair) for pair in lengths) >= 1


def test_conversations_without_a_trace_are_about_as_long_as_the_traces() -> None:
    lengths = conversation_lengths(20_000, 5000, random.Random(0))
    assert fmean(output for _, output in lengths) == pytest.approx(211, rel=0.05)  # the trace's mean
    assert max(prompt for prompt, _ in lengths) == 5000
    assert min(min(pair) for pair in lengths) >= 1


async def test_the_server_answers_as_long_as_the_requests_say() -> None:
    """Both ways of sending compare the length of every answer with the one that was planned."""
    requests = requests_of((1, 1), (300, 20), (7, 999), (2, 2000))
    assert [request.output_tokens for request in requests] == [1, 20, 999, 1000]
    assert len({request.body for request in requests}) == 4
    async with SimulatedServer(SimulatedOptions(profile=INSTANT, models=(MODEL,))) as server:
        watch = Watch([Server("one", server.url, INSTANT)])
        await through_router(watch, server.url, requests, 2)
        await longest_first(watch, [Server("one", server.url, INSTANT)] * 2, requests, 3)
        load = server.engine.load()
        assert (load.prompt_tokens_total, load.output_tokens_total) == (2 * 310, 2 * 2020)
        assert watch.seconds > 0
        with pytest.raises(BenchmarkError, match="lengths got lost"):
            wrong = Request("0", requests[0].body, 1000, 1, 2)
            await through_router(watch, server.url, [wrong], 1)
        with pytest.raises(BenchmarkError, match="answers with status 400"):
            await through_router(watch, server.url, [Request("0", b"{}", 1, 1, 1)], 1)
    with pytest.raises(BenchmarkError, match="broke off request 0"):
        await through_router(Watch([]), server.url, requests, 1)

"""What real workers are saturated with, and for how long: ``benchmarks.real``."""

from __future__ import annotations

import random

import orjson
import pytest

from benchmarks.real.ceiling import Span
from benchmarks.real.questions import Questions


def questions(*max_tokens: int) -> Questions:
    chats = [[{"role": "user", "content": str(n)}] for n in range(len(max_tokens))]
    return Questions(tuple(chats), max_tokens, model="m")


QUESTIONS = questions(*[64] * 40)


def limits(asked: Questions, at_once: int) -> list[int]:
    requests = asked.backlog("salt", 2, random.Random(0), at_once)
    return [orjson.loads(request.body)["max_tokens"] for request in requests]


@pytest.mark.parametrize("at_once", [0, 1, 8, 32])
def test_the_first_answers_end_one_after_another_and_the_others_are_whole(at_once: int) -> None:
    found = limits(QUESTIONS, at_once)
    assert found[:at_once] == [64 * (2 * n + 1) // (2 * at_once) + 1 for n in range(at_once)]
    assert found[at_once:] == [64] * (80 - at_once)


def test_of_unequal_answers_as_many_end_a_token_as_when_all_is_in_full_swing() -> None:
    asked = questions(*[16] * 20, *[64] * 20)
    cut = limits(asked, 40)[:40]
    # 40 answers of 40 tokens in the mean: one ends at each token. Half of them have at most 16 left to go.
    assert [sum(left <= tokens for left in cut) for tokens in (4, 8, 16)] == [4, 8, 16]
    assert max(cut) == 64


def test_all_questions_are_in_each_copy() -> None:
    requests = QUESTIONS.backlog("salt", 2, random.Random(0), 8)
    assert sorted(request.custom_id for request in requests) == sorted(f"{c}.{n}" for c in range(2) for n in range(40))


@pytest.mark.parametrize(
    ("elapsed_s", "tokens", "jobs", "over"),
    [(4, 900, 9, False), (5, 99, 9, False), (5, 100, 1, False), (5, 100, 2, True), (60, 0, 0, True)],
)
def test_a_span_ends_when_enough_was_done_or_it_took_too_long(
    elapsed_s: float, tokens: int, jobs: int, over: bool
) -> None:
    assert Span(5, tokens=100, jobs=2, most_s=60).is_over(elapsed_s, tokens, jobs) is over

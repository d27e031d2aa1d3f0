"""Marks of how prompts begin: equal as far as prompts are, different beyond, and never a reason to fail."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.openai_batch import RequestLine, parse_line
from broker.prefixes import MAX_CHARS, MIN_BYTES, PrefixMark, format_marks, parse_marks, prefix_marks

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"

Messages = list[dict[str, Any]]
texts = st.builds(lambda text, times: text * times, st.text(min_size=1, max_size=30), st.integers(1, 300))
conversations = st.lists(
    st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from(["system", "user"]), texts),
    min_size=1,
    max_size=6,
)


def chat(messages: Messages, **fields: Any) -> tuple[PrefixMark, ...]:
    return prefix_marks(CHAT, {"model": "m", "messages": messages, **fields})


def completion(prompt: Any, **fields: Any) -> tuple[PrefixMark, ...]:
    return prefix_marks(COMPLETION, {"model": "m", "prompt": prompt, **fields})


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


@given(texts, texts, texts)
def test_a_prompt_has_the_same_marks_as_far_as_it_is_the_same(common: str, one: str, other: str) -> None:
    shared = len(common.encode())
    upto = [mark for mark in completion(common + one) if mark.size <= shared]
    assert upto == [mark for mark in completion(common + other) if mark.size <= shared]
    assert upto == list(completion(common))


@given(conversations, conversations, conversations)
def test_conversations_have_the_same_marks_as_far_as_they_are_the_same(
    common: Messages, one: Messages, other: Messages
) -> None:
    marks = chat(common)
    assert chat(common + one)[: len(marks)] == marks
    assert chat(common + other)[: len(marks)] == marks


@given(texts.filter(lambda text: len(text.encode()) >= MIN_BYTES), st.data())
def test_text_that_differs_before_a_cut_differs_in_its_hash(text: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(text) - 1))
    changed = text[:place] + ("b" if text[place] == "a" else "a") + text[place + 1 :]
    before = len(text[:place].encode())
    hashes = {mark.digest for mark in completion(text) if mark.size > before}
    assert hashes.isdisjoint(mark.digest for mark in completion(changed))


@given(conversations)
def test_marks_are_few_in_order_and_survive_their_text_form(messages: Messages) -> None:
    marks = chat(messages)
    sizes = [mark.size for mark in marks]
    assert sizes == sorted(set(sizes))
    assert all(size >= MIN_BYTES for size in sizes)
    text = format_marks(marks)
    assert len(text) <= MAX_CHARS
    assert parse_marks(text) == marks


@given(conversations)
def test_json_and_parsed_bodies_have_the_same_marks(messages: Messages) -> None:
    body = {"model": "m", "messages": messages}
    assert prefix_marks(CHAT, json.dumps(body).encode()) == prefix_marks(CHAT, body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=700),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
names = st.sampled_from(["model", "messages", "prompt", "tools", "chat_template_kwargs", "echo", "prompt_logprobs"])
odd_messages = st.lists(st.fixed_dictionaries({}, optional={"role": json_values, "content": json_values}) | json_values)


@given(st.sampled_from([CHAT, COMPLETION, "/v1/embeddings", ""]), st.dictionaries(names, json_values | odd_messages))
def test_odd_bodies_never_raise(url: str, body: dict[str, Any]) -> None:
    assert parse_marks(format_marks(prefix_marks(url, body))) == prefix_marks(url, body)


@given(st.binary(max_size=600))
def test_odd_bytes_have_no_marks(raw: bytes) -> None:
    assert prefix_marks(CHAT, raw) == ()


@pytest.mark.parametrize("body", [{1: 2, "messages": [user("x" * 600)], "tools": [object()]}, [], None, "text"])
def test_what_is_no_json_has_no_marks(body: Any) -> None:
    assert prefix_marks(CHAT, body) == ()


@given(st.text(alphabet="0123456789abcdef: ", max_size=220) | st.text(max_size=40))
def test_odd_text_is_no_marks_or_valid_ones(text: str) -> None:
    marks = parse_marks(text)
    assert not marks or format_marks(marks) == text


@pytest.mark.parametrize(
    "text",
    ["0512:0123456789", "512:0123456789 512:0123456789", "600:0123456789 512:0123456789", "100:0123456789"],
)
def test_marks_out_of_form_are_none(text: str) -> None:
    assert parse_marks(text) == ()


def test_the_end_of_the_system_prompt_is_a_mark_and_the_end_of_the_whole_is_not() -> None:
    system = {"role": "system", "content": "s" * 700}
    sizes = [mark.size for mark in chat([system, user("q" * 100)])]
    assert sizes == [512, 700 + len("\x1esystem\x1f")]


def test_cuts_double_up_to_64_kib_and_three_messages_end_in_marks() -> None:
    assert [mark.size for mark in completion("x" * 300_000)] == [512 << n for n in range(8)]
    many = chat([user("x" * 600) for _ in range(300)])
    assert [mark.size for mark in many] == sorted([512 << n for n in range(8)] + [606 * n for n in (1, 2, 3)])
    document = chat([user("x" * 200_000), user("question")])
    assert document[-1].size == 200_006


def test_marks_have_the_longest_text_form_when_all_are_there() -> None:
    marks = chat([user("x" * 300_000) for _ in range(4)])
    assert len(marks) == 11
    assert len(format_marks(marks)) <= MAX_CHARS
    assert parse_marks(format_marks(marks)) == marks


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "other"},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"cache_salt": "mine"},
        {"documents": [{"text": "d"}]},
    ],
)
def test_what_changes_tokens_before_the_text_changes_every_hash(fields: dict[str, Any]) -> None:
    messages = [user("x" * 1100)]
    plain = {mark.digest for mark in chat(messages)}
    assert len(plain) == 2
    assert plain.isdisjoint(mark.digest for mark in chat(messages, **fields))


@pytest.mark.parametrize("fields", [{"temperature": 0.5}, {"max_tokens": 3}, {"tools": None}, {"seed": 1}])
def test_what_changes_no_token_of_the_prompt_changes_nothing(fields: dict[str, Any]) -> None:
    messages = [user("x" * 1100)]
    assert chat(messages, **fields) == chat(messages)


def test_tools_are_part_of_the_text() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "d" * 2000}}]
    one, other = chat([user("a")], tools=tools), chat([user("b")], tools=tools)
    assert one == other
    assert [mark.size for mark in one[:3]] == [512, 1024, 2048]
    assert 2000 < one[3].size < 2100  # the end of the tools


def test_an_image_ends_what_is_compared() -> None:
    text = {"type": "text", "text": "x" * 1100}
    image = {"type": "image_url", "image_url": {"url": "data:1"}}
    assert chat([{"role": "user", "content": [text, image]}]) == chat(
        [{"role": "user", "content": [text, image, text]}]
    )
    assert chat([{"role": "user", "content": [image, text]}]) == ()
    assert chat([{"role": "user", "content": [text]}]) == chat([user("x" * 1100)])


def test_no_marks_where_the_cache_is_not_asked() -> None:
    assert completion("x" * 600, echo=True) == ()
    assert completion("x" * 600, prompt_logprobs=1) == ()
    assert prefix_marks("/v1/embeddings", {"model": "m", "input": "x" * 600}) == ()


def test_tokens_as_a_prompt_have_marks() -> None:
    one, other = completion([7, *range(1000)]), completion([7, *range(600), 3])
    assert one[:2] == other[:2]
    assert one[0] != completion([8, *range(1000)])[0]
    assert completion([1, "a"] * 400) != ()  # whatever it is, the engine will refuse it


def test_a_line_of_a_batch_file_carries_its_marks() -> None:
    def line(body: dict[str, Any]) -> RequestLine:
        raw = json.dumps({"custom_id": "a", "method": "POST", "url": CHAT, "body": body}).encode()
        parsed = parse_line(raw, line=1, source="f", max_bytes=10**6)
        assert isinstance(parsed, RequestLine)
        return parsed

    short = {"model": "m", "messages": [user("hello")]}
    long = {"model": "m", "messages": [user("hello" * 300)]}
    assert line(short).prefix == ""
    assert line(long).prefix == format_marks(prefix_marks(CHAT, long)) != ""

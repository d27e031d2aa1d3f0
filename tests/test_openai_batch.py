"""Reading and writing the lines of OpenAI Batch files."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion

from broker.openai_batch import (
    LineError,
    RequestLine,
    custom_id_of,
    failure_line,
    output_line,
    parse_line,
    read_output_line,
)

LIMIT = 1 << 20
CHAT = "/v1/chat/completions"
CHAT_BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}


def request(**changes: Any) -> dict[str, Any]:
    """A good line with some of its fields changed; None takes a field away."""
    line: dict[str, Any] = {"custom_id": "a-1", "method": "POST", "url": CHAT, "body": CHAT_BODY} | changes
    return {key: value for key, value in line.items() if value is not None}


def parse(raw: bytes | dict[str, Any], max_bytes: int = LIMIT) -> RequestLine | LineError:
    raw = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    return parse_line(raw, line=7, source="in.jsonl", max_bytes=max_bytes)


def good(raw: bytes | dict[str, Any]) -> RequestLine:
    parsed = parse(raw)
    assert isinstance(parsed, RequestLine), parsed
    return parsed


def bad(raw: bytes | dict[str, Any], max_bytes: int = LIMIT) -> LineError:
    parsed = parse(raw, max_bytes)
    assert isinstance(parsed, LineError), parsed
    return parsed


def in_prompt(text: bytes) -> bytes:
    """A good line with these raw bytes as the prompt."""
    return (
        b'{"custom_id": "a-1", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": '
        + text
        + b"}}"
    )


def test_a_good_line() -> None:
    assert parse(request()) == RequestLine("a-1", CHAT, "m", json.dumps(CHAT_BODY).encode(), 5, 7)


def test_the_body_is_kept_byte_for_byte() -> None:
    body = b'{ "z":1.50 ,\t"model" : "m", "prompt":"caf\xc3\xa9 \\u00e9 \\ud83d\\ude00", "seed":12345678901234567890}'
    raw = b'{"body":' + body + b' , "url":"/v1/completions","method":"POST","custom_id":"a","extra":[1]} \r\n'
    assert good(raw).body == body


@pytest.mark.parametrize(
    ("url", "field"),
    [(CHAT, {"messages": []}), ("/v1/completions", {"prompt": [1, 2]}), ("/v1/embeddings", {"input": "x"})],
)
def test_every_endpoint(url: str, field: dict[str, Any]) -> None:
    assert good(request(url=url, body={"model": "m"} | field)).url == url
    missing = bad(request(url=url, body={"model": "m"}))
    assert missing.code == "missing_required_parameter"
    assert next(iter(field)) in missing.message


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 0),
        ({"max_tokens": 9}, 9),
        ({"max_completion_tokens": 8}, 8),
        ({"max_tokens": 9, "max_completion_tokens": 8}, 8),
        ({"max_tokens": 9, "max_completion_tokens": None}, 9),
        ({"max_tokens": 10**9}, 10**9),
        ({"max_tokens": 0}, 0),
        ({"max_tokens": -3}, 0),
        ({"max_tokens": True}, 0),
        ({"max_tokens": 2.5}, 0),
        ({"max_tokens": "12"}, 0),
        ({"max_tokens": None}, 0),
    ],
)
def test_max_tokens(limits: dict[str, Any], expected: int) -> None:
    assert good(request(body={"model": "m", "messages": []} | limits)).max_tokens == expected


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"custom_id": None}, "missing_required_parameter", "custom_id"),
        ({"custom_id": ""}, "missing_required_parameter", "custom_id"),
        ({"custom_id": 12}, "invalid_type", "custom_id"),
        ({"custom_id": "x" * 513}, "string_above_max_length", "512"),
        ({"method": None}, "missing_required_parameter", "method"),
        ({"method": "GET"}, "invalid_method", "POST"),
        ({"method": ["POST"]}, "invalid_type", "method"),
        ({"url": None}, "missing_required_parameter", "url"),
        ({"url": "/v1/responses"}, "invalid_url", "/v1/responses"),
        ({"url": "https://api.openai.com/v1/chat/completions"}, "invalid_url", "/v1/embeddings"),
        ({"url": "x" * 9000}, "invalid_url", "…"),
        ({"body": None}, "missing_required_parameter", "body"),
        ({"body": []}, "invalid_type", "body"),
        ({"body": "{}"}, "invalid_type", "body"),
        ({"body": {"messages": []}}, "missing_required_parameter", "body.model"),
        ({"body": {"messages": [], "model": ""}}, "missing_required_parameter", "body.model"),
        ({"body": {"messages": [], "model": 3}}, "invalid_type", "body.model"),
        ({"body": {"model": "m"}}, "missing_required_parameter", "body.messages"),
        ({"body": {"model": "m", "messages": "hi"}}, "invalid_type", "body.messages"),
        ({"body": CHAT_BODY | {"stream": True}}, "unsupported_value", "body.stream"),
        ({"body": CHAT_BODY | {"stream": "true"}}, "unsupported_value", "body.stream"),
        ({"body": CHAT_BODY | {"max_tokens": 10**30}}, "integer_above_max_value", "body.max_tokens"),
    ],
)
def test_a_bad_field_is_named(changes: dict[str, Any], code: str, said: str) -> None:
    line = request() | changes
    error = bad({key: value for key, value in line.items() if value is not None})
    assert error.code == code
    assert said.replace("…", "\\u2026") in error.message
    assert error.message.startswith("in.jsonl:7: ")
    assert len(error.message) < 300
    assert error.line == 7


def test_stream_false_is_no_stream() -> None:
    assert good(request(body=CHAT_BODY | {"stream": False})).custom_id == "a-1"


def test_the_custom_id_of_a_bad_line_is_kept_where_it_can_be_read() -> None:
    assert bad(request(url="/v2")).custom_id == "a-1"
    assert bad(request(custom_id=5)).custom_id is None
    assert good(request(custom_id="é" * 512)).custom_id == "é" * 512


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "truncated"),
        (b"hello", "malformed"),
        (b"[1, 2]", "array"),
        (b"null", "null"),
        (b'{"custom_id": "a"', "truncated"),
        (json.dumps(request()).encode() + b" x", "trailing"),
        (json.dumps(request()).encode() + b"\x00", "trailing"),
        (in_prompt(b'"\xff"'), "UTF-8"),
        (in_prompt(b'"\xed\xa0\x80"'), "UTF-8"),
        (in_prompt(b'"\xc0\x80"'), "UTF-8"),
        (in_prompt(b'"a\x00b"'), "invalid character"),
        (in_prompt(b'"a\nb"'), "invalid character"),
        (in_prompt(b'"\\ud800 and more text"'), "surrogate"),
        (in_prompt(b'"\\udfff"'), "surrogate"),
        (in_prompt(b'"\\x"'), "escape"),
        (in_prompt(b"NaN"), "invalid character"),
        (in_prompt(b"-Infinity"), "invalid character"),
        (in_prompt(b"1e999"), "out of range"),
        (in_prompt(b"9" * 5000), "out of range"),
        (in_prompt(b"[" * 100_000 + b"]" * 100_000), "nested"),
        (in_prompt(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nested"),
        (in_prompt(b"[" * 100_000), "nested"),
        (b'{"extra": "\xff", ' + json.dumps(request()).encode()[1:], "UTF-8"),
    ],
)
def test_what_is_no_json_object(raw: bytes, said: str) -> None:
    error = bad(raw)
    assert error.code == "invalid_json_line"
    assert said in error.message
    assert error.custom_id is None


def test_a_line_that_is_too_long_is_not_read() -> None:
    raw = json.dumps(request()).encode()
    assert isinstance(parse(raw, max_bytes=len(raw)), RequestLine)
    error = bad(raw, max_bytes=len(raw) - 1)
    assert (error.code, error.custom_id) == ("line_too_long", None)


def test_the_last_of_doubled_keys_counts_for_the_checks_and_for_the_body() -> None:
    refused, fine = b'{"model": "m", "messages": [], "stream": true}', b'{"model": "m", "messages": []}'
    head = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", '
    assert good(head + b'"body": ' + refused + b', "bod\\u0079": ' + fine + b"}").body == fine
    assert bad(head + b'"body": ' + fine + b', "body": ' + refused + b"}").code == "unsupported_value"


def test_a_message_is_one_line_of_utf8_whatever_the_file_is_called() -> None:
    error = parse_line(b"x", line=1, source="a\nb\udcff.jsonl", max_bytes=9)
    assert isinstance(error, LineError)
    assert "\n" not in error.message
    assert json.loads(failure_line(job_id=None, custom_id=None, code=error.code, message=error.message))


def test_a_message_shows_no_prompt() -> None:
    secret = request(body={"model": "m", "messages": "the secret prompt"})
    assert "secret" not in bad(secret).message
    assert "secret" not in bad(json.dumps(secret).encode()[:-1]).message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
json_lines = st.fixed_dictionaries(
    {},
    optional={
        "custom_id": json_values | st.text(min_size=1),
        "method": json_values | st.just("POST"),
        "url": json_values | st.sampled_from([CHAT, "/v1/completions", "/v1/embeddings"]),
        "body": json_values
        | st.fixed_dictionaries(
            {"model": json_values | st.just("m")},
            optional={
                "messages": json_values | st.just([]),
                "prompt": json_values,
                "input": json_values,
                "max_tokens": json_values,
                "stream": json_values,
            },
        ),
    },
)


@given(st.binary(max_size=300))
def test_any_bytes_give_an_answer(raw: bytes) -> None:
    error = parse(raw)
    assert isinstance(error, LineError)
    assert "\n" not in error.message


@given(json_values | json_lines, st.booleans())
def test_any_json_gives_an_answer(value: Any, ascii_only: bool) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    parsed = parse(raw)
    if isinstance(parsed, RequestLine):
        assert json.loads(parsed.body) == value["body"]
        assert parsed.custom_id == value["custom_id"]
        assert parsed.max_tokens >= 0


@given(st.data())
def test_a_damaged_line_gives_an_answer(data: st.DataObject) -> None:
    raw = bytearray(json.dumps(request()).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    parsed = parse(bytes(raw))
    if isinstance(parsed, RequestLine):
        assert json.loads(raw)["body"] == json.loads(parsed.body)


# --- output

CHAT_RESPONSE = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Paris.\n"}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}
TEXT_RESPONSE = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "length", "text": " gas", "logprobs": None}],
}
EMBEDDING_RESPONSE = {
    "object": "list",
    "model": "m",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}],
    "usage": {"prompt_tokens": 3, "total_tokens": 3},
}


@pytest.mark.parametrize(
    ("kind", "body"),
    [(ChatCompletion, CHAT_RESPONSE), (Completion, TEXT_RESPONSE), (CreateEmbeddingResponse, EMBEDDING_RESPONSE)],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_response_parses_with_the_openai_types(kind: Any, body: dict[str, Any], indent: int | None) -> None:
    raw = json.dumps(body, indent=indent).encode()
    line = output_line(job_id="b1.x", custom_id='a "1"\né', status_code=200, body=raw)
    assert b"\n" not in line
    read = json.loads(line)
    assert list(read) == ["id", "custom_id", "response", "error"]
    assert list(read["response"]) == ["status_code", "request_id", "body"]
    assert read["id"] == "batch_req_b1.x"
    assert read["custom_id"] == 'a "1"\né'
    assert (read["response"]["status_code"], read["response"]["request_id"], read["error"]) == (200, "b1.x", None)
    assert kind.model_validate(read["response"]["body"], strict=True).to_dict(exclude_unset=True) == body


def test_a_response_is_written_as_openai_writes_it() -> None:
    line = output_line(job_id="j", custom_id="request-1", status_code=400, body=b'{"error": {"code": "x"}}')
    assert line == (
        b'{"id": "batch_req_j", "custom_id": "request-1", "response": {"status_code": 400, "request_id": "j", '
        b'"body": {"error": {"code": "x"}}}, "error": null}'
    )


def test_a_failure_is_written_as_openai_writes_it() -> None:
    line = failure_line(job_id="j", custom_id="request-3", code="batch_expired", message="Too late.")
    assert line == (
        b'{"id": "batch_req_j", "custom_id": "request-3", "response": null, '
        b'"error": {"code": "batch_expired", "message": "Too late."}}'
    )


def test_refused_input_lines_are_told_apart_from_jobs() -> None:
    refused = [
        failure_line(job_id=None, custom_id=None, code="invalid_json_line", message=f"in.jsonl:{n}: bad")
        for n in (1, 2)
    ]
    read = [read_output_line(line) for line in refused]
    assert [line.had_job for line in read if line] == [False, False]
    assert len({line.id for line in read if line}) == 2
    job = read_output_line(failure_line(job_id="j", custom_id="a", code="c", message="m"))
    assert job
    assert job.had_job


@given(st.text(min_size=1), st.text(), st.text(), st.sampled_from([200, 400, 500]))
def test_any_custom_id_goes_out_and_comes_back(custom_id: str, code: str, message: str, status: int) -> None:
    answered = output_line(job_id="b.j", custom_id=custom_id, status_code=status, body=b'{"a": [1]}')
    failed = failure_line(job_id=None, custom_id=custom_id, code=code, message=message)
    assert json.loads(answered)["custom_id"] == custom_id_of(answered) == custom_id
    assert json.loads(failed)["error"] == {"code": code, "message": message}
    assert custom_id_of(failed) == custom_id


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"notes",
        b"{}",
        b'{"id": "x", "custom_id": "a"}',
        b'{"id": 5, "custom_id": "a", "response": null, "error": null}',
        b'{"id": "x", "custom_id": "\xff", "response": null, "error": null}',
        b"[" * 100_000,
        json.dumps(request()).encode(),
    ],
)
def test_what_is_no_output_line_has_no_custom_id(line: bytes) -> None:
    assert custom_id_of(line) is None
    assert read_output_line(line) is None

"""What the Python client makes of items and answers, and how it brings results into the order of the input."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.openai_batch import RequestLine
from tokenyard.client import BatchResult, RequestError
from tokenyard.client.batch_result import RequestFailedError
from tokenyard.client.input_order import InputOrder, Place
from tokenyard.client.items import RequestMaker, made_id, only_model, position_of


class TestItems:
    def body(self, item: Any, **options: Any) -> tuple[RequestLine, dict[str, Any]]:
        request = RequestMaker("m", **options).request(3, item)
        return request, msgspec.json.decode(request.body)

    def test_a_prompt_becomes_a_chat(self) -> None:
        request, body = self.body("Hi.", system="Be short.", parameters={"max_tokens": 7})
        assert (request.url, request.model, request.max_tokens) == ("/v1/chat/completions", "m", 7)
        system, user = {"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi."}
        assert body == {"model": "m", "max_tokens": 7, "messages": [system, user]}
        assert request.custom_id == made_id(3, request.body)

    @pytest.mark.parametrize(
        ("item", "url"),
        [
            ({"messages": []}, "/v1/chat/completions"),
            ({"prompt": "x"}, "/v1/completions"),
            ({"input": "x"}, "/v1/embeddings"),
        ],
    )
    def test_the_field_of_a_body_tells_its_endpoint(self, item: dict[str, Any], url: str) -> None:
        request, body = self.body({**item, "custom_id": "mine", "model": "own"})
        assert (request.url, request.custom_id, request.model) == (url, "mine", "own")
        assert body == {**item, "model": "own"}

    def test_a_line_of_a_batch_file_stays_as_it_is_and_what_it_says_wins(self) -> None:
        line = {"custom_id": "q", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", "max_tokens": 2}}
        request, body = self.body(line, parameters={"max_tokens": 9, "temperature": 0})
        assert (request.custom_id, request.url) == ("q", "/v1/completions")
        assert body == {"model": "m", "prompt": "x", "max_tokens": 2, "temperature": 0}

    @pytest.mark.parametrize(
        ("item", "said"),
        [
            (7, "item 3 is of type int: give a prompt"),
            ({"messages": "no list"}, "item 3: body.messages must be a list"),
            ({"custom_id": 5, "prompt": "x"}, "item 3: custom_id must be a text"),
            ({"prompt": "x", "stream": True}, "item 3: body.stream cannot be used"),
            ({"prompt": object()}, "item 3 cannot be written as JSON"),
            ({"url": "/v1/odd", "body": {"prompt": "x"}}, "item 3: url '/v1/odd' is unknown"),
        ],
    )
    def test_what_is_no_request_is_named(self, item: Any, said: str) -> None:
        with pytest.raises(RequestError, match=said):
            RequestMaker("m").request(3, item)

    def test_a_request_without_a_model(self) -> None:
        assert only_model({"b": "pool", "a": "pool"}) == "a"
        assert only_model({"a": "pool", "b": "other"}) == only_model({}) == ""
        for item in ("x", {"prompt": "x"}, {"custom_id": "q", "url": "/v1/completions", "body": {"prompt": "x"}}):
            with pytest.raises(RequestError, match="item 3 names no model, and not just one is served: give model="):
                RequestMaker("").request(3, item)

    def test_a_made_id_changes_with_place_and_content_and_nothing_else(self) -> None:
        maker = RequestMaker("m")
        ids = [maker.request(at, text).custom_id for at in (0, 1) for text in ("a", "b")]
        assert len(set(ids)) == 4
        assert ids == [maker.request(at, text).custom_id for at in (0, 1) for text in ("a", "b")]
        assert [position_of(name) for name in ids] == [0, 0, 1, 1]

    @pytest.mark.parametrize("name", ["q1", "7", "7-abc", "x7-0123456789ab", "7-0123456789ab-", "-0123456789ab"])
    def test_other_ids_name_no_position(self, name: str) -> None:
        assert position_of(name) is None


@given(st.permutations(range(30)), st.sets(st.integers(0, 29)), st.integers(1, 7))
def test_places_come_in_order_none_before_its_turn(came: list[int], gaps: set[int], limit: int) -> None:
    order = InputOrder()
    given_out: list[int] = []
    there: set[int] = set()
    for position in came:
        if position in gaps:
            continue
        order.add(Place(position, "p", "1-1"))
        there.add(position)
        while due := order.due(limit):
            assert len(due) <= limit
            given_out += [place.position for place in due]
        assert set(range(given_out[-1] + 1) if given_out else ()) <= there  # nobody overtook one that is to come
        turn = len(given_out)
        assert turn not in there or turn in gaps
    while due := order.due(limit, is_end=True):
        given_out += [place.position for place in due]
    assert given_out == sorted(there)
    assert len(order) == 0


class TestResultValues:
    def result(self, body: Any, status_code: int = 200) -> BatchResult:
        raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return BatchResult("q", status_code, raw, "", "", 1, 2, "w", 1, "b.x")

    def test_text_and_embedding(self) -> None:
        assert self.result({"choices": [{"message": {"content": "Paris"}}]}).text == "Paris"
        assert self.result({"choices": [{"text": "Paris"}]}).text == "Paris"
        assert self.result({"data": [{"embedding": [0.5]}]}).embedding == [0.5]

    @pytest.mark.parametrize("body", [b"", b"no json", b"\xff", {}, [], {"choices": []}, {"choices": [{"message": 1}]}])
    def test_where_there_is_none(self, body: Any) -> None:
        result = self.result(body)
        assert (result.text, result.embedding) == (None, None)

    def test_a_failure_says_why(self) -> None:
        failed = self.result({"error": {"message": "too long"}}, 400)
        assert "400" in failed.why
        assert "too long" in failed.why
        with pytest.raises(RequestFailedError, match=r"tokenyard explain b\.x"):
            failed.check()
        assert self.result({}).check().why == ""

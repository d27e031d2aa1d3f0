"""Reading batch files: every line is a request or says what is wrong with it."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from batch_lines import request, without_root
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter

from broker.errors import InputFileError
from broker.openai_batch import LineError, RequestLine
from tokenyard.batch_files import read_requests

LIMIT = 1 << 20
EXAMPLES = Path(__file__).parent.parent / "examples" / "questions.jsonl"


def read(path: Path, max_line_bytes: int = LIMIT) -> list[RequestLine | LineError]:
    return list(read_requests(path, max_line_bytes=max_line_bytes))


@pytest.fixture
def nobody() -> Iterator[None]:
    with without_root():
        yield


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last_end", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_line_ends_marks_and_compression(
    tmp_path: Path, line_end: bytes, mark: bytes, last_end: bool, packed: bool
) -> None:
    content = mark + line_end.join([request("a"), b"", b"  ", request("b", "x" * 9000), request("c")])
    content += line_end if last_end else b""
    path = tmp_path / ("in.jsonl.gz" if packed else "in.jsonl")
    path.write_bytes(gzip.compress(content) if packed else content)
    lines = read(path)
    assert [(line.custom_id, line.line) for line in lines] == [("a", 1), ("b", 4), ("c", 5)]
    assert all(isinstance(line, RequestLine) for line in lines)


def test_bad_lines_do_not_stop_the_good_ones(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join([b"hello", request("a"), b'{"custom_id": "b"}', b"\xff", request("c")]))
    lines = read(path)
    assert [type(line) for line in lines] == [LineError, RequestLine, LineError, LineError, RequestLine]
    assert [line.message for line in lines if isinstance(line, LineError)][1].startswith(f"{path}:3: ")


def test_a_doubled_custom_id_names_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join([request("a"), request("b"), request("a"), request("a")]))
    first, second, third, fourth = read(path)
    assert isinstance(first, RequestLine)
    assert isinstance(second, RequestLine)
    for line, number in ((third, 3), (fourth, 4)):
        assert isinstance(line, LineError)
        assert (line.code, line.custom_id, line.line) == ("duplicate_custom_id", "a", number)
        assert f"{path}:{number}: custom_id 'a' was used on line 1" in line.message


@pytest.mark.parametrize("packed", [True, False])
def test_a_line_that_is_too_long_is_never_held(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "in.jsonl"
    content = b"\n".join([request("a"), request("b", "x" * 20_000_000), request("c"), b"y" * 20_000_000])
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    del content
    tracemalloc.start()
    lines = read(path, max_line_bytes=100_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(line.custom_id, line.line) for line in lines] == [("a", 1), (None, 2), ("c", 3), (None, 4)]
    assert [line.code for line in lines if isinstance(line, LineError)] == ["line_too_long"] * 2
    assert peak < 2_000_000


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_the_limit_counts_the_whole_line(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "in.jsonl"
    line = request("a") + end
    path.write_bytes(line + (request("b") if end else b""))
    assert isinstance(read(path, max_line_bytes=len(line))[0], RequestLine)
    assert [type(found) for found in read(path, max_line_bytes=len(line) - 1)][:1] == [LineError]
    assert len(read(path, max_line_bytes=len(line) - 1)) == (2 if end else 1)


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\n", b"\xef\xbb\xbf", gzip.compress(b"", mtime=0)])
def test_an_empty_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputFileError, match=r"in\.jsonl is empty"):
        read(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"nowhere\.jsonl: No such file"):
        read_requests(tmp_path / "nowhere.jsonl", max_line_bytes=LIMIT)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="is a folder"):
        read_requests(tmp_path, max_line_bytes=LIMIT)


def test_a_file_that_may_not_be_read(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = tmp_path / "in.jsonl"
    path.touch(mode=0o000)
    request.getfixturevalue("nobody")
    with pytest.raises(InputFileError, match="Permission denied"):
        read_requests(path, max_line_bytes=LIMIT)


def test_utf_16_is_named(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(request("a").decode().encode("utf-16"))
    with pytest.raises(InputFileError, match="UTF-16"):
        read(path)


def test_a_damaged_archive_gives_its_lines_and_then_says_so(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    content = gzip.compress(b"\n".join(request(f"r{n}", os.urandom(99).hex()) for n in range(3000)))
    path.write_bytes(content[: len(content) // 2])
    found: list[RequestLine | LineError] = []
    with pytest.raises(InputFileError, match=r"is damaged after line \d+") as raised:
        found.extend(read_requests(path, max_line_bytes=LIMIT))
    assert "\n" not in str(raised.value)


def test_the_example_is_a_varied_batch() -> None:
    lines = [line for line in read(EXAMPLES) if isinstance(line, RequestLine)]
    assert len(lines) == len(read(EXAMPLES)) >= 96
    assert {line.model for line in lines} == {"smollm2-135m-instruct"}
    assert {line.max_tokens for line in lines} >= {16, 64, 160}
    assert all(16 <= line.max_tokens <= 160 for line in lines)
    bodies = [json.loads(line.body) for line in lines]
    assert sum(line.url == "/v1/completions" for line in lines) >= 2
    assert sum(body.get("response_format", {}).get("type") == "json_schema" for body in bodies) >= 2
    assert sum(body["temperature"] == 0 for body in bodies) > len(lines) * 0.8
    assert max(len(line.body) for line in lines) > 10 * min(len(line.body) for line in lines)


def test_the_example_fits_the_openai_types() -> None:
    chat = TypeAdapter(CompletionCreateParamsNonStreaming)
    bodies = [json.loads(r.body) for r in read(EXAMPLES) if isinstance(r, RequestLine) and "chat" in r.url]
    assert bodies
    for body in bodies:
        assert chat.validate_python(body)["model"] == "smollm2-135m-instruct"

"""Batch files on disk: reading requests, appending results, going on after a crash."""

from __future__ import annotations

import errno
import fcntl
import gzip
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter

from broker.errors import InputFileError, UsageError
from broker.openai_batch import LineError, RequestLine, custom_id_of, failure_line, output_line
from tokenyard.batch_files import (
    BatchOutput,
    IdTable,
    errors_path_of,
    read_requests,
    remove_sidecar,
    sidecar_batch_id,
    write_sidecar,
)

LIMIT = 1 << 20
EXAMPLES = Path(__file__).parent.parent / "examples" / "questions.jsonl"


def request(custom_id: str, prompt: str = "hi") -> bytes:
    body = {"model": "m", "prompt": prompt}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}
    return json.dumps(line).encode()


def result(custom_id: str, text: str = "ok") -> bytes:
    return output_line(job_id=f"b.{custom_id}", custom_id=custom_id, status_code=200, body=json.dumps(text).encode())


def failure(custom_id: str) -> bytes:
    return failure_line(job_id=f"b.{custom_id}", custom_id=custom_id, code="batch_expired", message="Too late.")


def refused(custom_id: str | None) -> bytes:
    return failure_line(job_id=None, custom_id=custom_id, code="invalid_url", message="in.jsonl:3: bad")


def ids_in(path: Path) -> list[str | None]:
    return [custom_id_of(line) for line in path.read_bytes().splitlines()]


def read(path: Path, max_line_bytes: int = LIMIT) -> list[RequestLine | LineError]:
    return list(read_requests(path, max_line_bytes=max_line_bytes))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def nobody() -> Iterator[None]:
    """Run without root's right to read and write everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# --- requests in


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


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\n", b"\xef\xbb\xbf", gzip.compress(b"")])
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


def test_the_table_of_ids_is_small() -> None:
    tracemalloc.start()
    table = IdTable()
    for number in range(100_000):
        table.first_line(f"request-{number}", number + 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table) == 100_000
    assert peak / 100_000 < 70  # bytes an id: 2 million under 140 MB even while the table grows
    assert table.first_line("request-4711", 5) == 4712
    assert "request-100000" not in table


@given(st.lists(st.text(max_size=3), max_size=60))
def test_the_table_of_ids_agrees_with_a_dict(ids: list[str]) -> None:
    table, expected = IdTable(), dict[str, int]()
    for line, custom_id in enumerate(ids, 1):
        assert table.first_line(custom_id, line) == expected.setdefault(custom_id, line)
    assert len(table) == len(expected)
    assert all(custom_id in table for custom_id in expected)
    assert not table.add(ids[0]) if ids else table.add("new")


# --- results out


def test_results_and_failures_go_to_their_files(out: Path) -> None:
    with BatchOutput.open(out) as batch:
        batch.write([result("a"), result("b")], [failure("c")])
        batch.sync()
        assert out.read_bytes() == result("a") + b"\n" + result("b") + b"\n"
        assert errors_path_of(out).read_bytes() == failure("c") + b"\n"
        assert (batch.written, batch.failed, len(batch.finished)) == (2, 1, 3)
    batch.close()


def test_the_error_file_is_named_after_the_output() -> None:
    assert errors_path_of(Path("x/out.v1.jsonl")) == Path("x/out.v1.errors.jsonl")
    assert errors_path_of(Path("out")) == Path("out.errors")


def test_a_batch_without_failures_leaves_no_error_file(out: Path) -> None:
    with BatchOutput.open(out) as batch:
        batch.write([result("a")], [])
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]


def test_an_error_file_of_ones_own(out: Path) -> None:
    with BatchOutput.open(out, out.parent / "bad.jsonl") as batch:
        batch.write([], [failure("a")])
    assert ids_in(out.parent / "bad.jsonl") == ["a"]


def test_going_on_knows_what_is_finished(out: Path) -> None:
    with BatchOutput.open(out) as batch:
        batch.write([result("a")], [failure("b")])
    with BatchOutput.open(out) as batch:
        assert "a" in batch.finished
        assert "b" in batch.finished
        assert "c" not in batch.finished
        assert (batch.written, batch.failed, len(batch.finished)) == (0, 0, 2)
        batch.write([result("c")], [])
    assert ids_in(out) == ["a", "c"]
    assert ids_in(errors_path_of(out)) == ["b"]


def test_a_result_delivered_again_is_dropped(out: Path) -> None:
    with BatchOutput.open(out) as batch:
        batch.write([result("a"), result("a")], [failure("a")])
        batch.write([result("a"), result("b")], [])
        assert (batch.written, batch.failed) == (2, 0)
    with BatchOutput.open(out) as batch:
        batch.write([result("b", "again")], [])
    assert out.read_bytes() == result("a") + b"\n" + result("b") + b"\n"


def test_refused_input_lines_are_no_finished_requests(out: Path) -> None:
    """A doubled custom_id is refused; the request that used it first must run all the same."""
    with BatchOutput.open(out) as batch:
        batch.write([], [refused("a"), refused(None), failure("b"), refused(None)])
        assert "a" not in batch.finished
        batch.write([result("c")], [])
    assert ids_in(errors_path_of(out)) == ["a", None, "b", None]
    with BatchOutput.open(out) as batch:
        assert ids_in(errors_path_of(out)) == ["b"]
        assert "a" not in batch.finished
        assert "b" in batch.finished
        batch.write([result("a")], [refused(None)])
    assert ids_in(out) == ["c", "a"]
    assert ids_in(errors_path_of(out)) == ["b", None]


def test_retry_failed_forgets_the_failures(out: Path) -> None:
    with BatchOutput.open(out) as batch:
        batch.write([result("a")], [failure("b")])
    with BatchOutput.open(out, retry_failed=True) as batch:
        assert errors_path_of(out).read_bytes() == b""
        assert "a" in batch.finished
        assert "b" not in batch.finished
        batch.write([result("b")], [])
    assert ids_in(out) == ["a", "b"]
    assert not errors_path_of(out).exists()


@pytest.mark.parametrize("kept", range(1, len(result("b")) + 1))
def test_a_torn_last_line_is_cut_and_run_again(out: Path, kept: int) -> None:
    out.write_bytes(result("a") + b"\n" + result("b")[:kept])
    whole = kept == len(result("b"))
    with BatchOutput.open(out) as batch:
        assert "a" in batch.finished
        assert ("b" in batch.finished) == whole
        batch.write([result("b"), result("c")], [])
    assert out.read_bytes() == b"".join(result(i) + b"\n" for i in "abc")


@pytest.mark.parametrize("torn", [result("a")[:3], result("a")[:30], result("a")[:-1] + b"\n", b"\0" * 4096])
@pytest.mark.parametrize("where", [lambda path: path, errors_path_of])
def test_a_torn_only_line_is_cut(out: Path, torn: bytes, where: Any) -> None:
    where(out).write_bytes(torn)
    with BatchOutput.open(out) as batch:
        assert len(batch.finished) == 0
        batch.write([result("a")], [failure("b")])
    assert ids_in(out) == ["a"]
    assert ids_in(errors_path_of(out)) == ["b"]


FOREIGN = [
    b"my notes, no newline",
    b"my notes\n",
    b"{}\n",
    b'{"id": 1}',
    request("a") + b"\n",
    request("a"),
    result("a") + b"\nnotes at the end",
    result("a") + b"\n" + request("b") + b"\n",
    b"\nnotes\n" + result("a") + b"\n",
    result("a")[:20] + b"\n" + result("b") + b"\n",
    b"\x89PNG\r\n\x1a\n\0\0",
    b"\xff",
]


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("where", [lambda path: path, errors_path_of])
@pytest.mark.parametrize("retry_failed", [True, False])
def test_somebody_elses_file_is_refused_and_kept(out: Path, content: bytes, where: Any, retry_failed: bool) -> None:
    where(out).write_bytes(content)
    with pytest.raises(UsageError, match=r":\d: not a line of a batch output"):
        BatchOutput.open(out, retry_failed=retry_failed)
    assert where(out).read_bytes() == content
    assert [path.name for path in out.parent.iterdir()] == [where(out).name]


def test_an_output_with_blank_lines_is_fine(out: Path) -> None:
    out.write_bytes(b"\n" + result("a") + b"\r\n\n")
    with BatchOutput.open(out) as batch:
        batch.write([result("b")], [])
    assert [i for i in ids_in(out) if i] == ["a", "b"]


def test_two_runs_do_not_share_an_output(out: Path) -> None:
    with BatchOutput.open(out) as batch:
        with pytest.raises(UsageError, match="another run is writing"):
            BatchOutput.open(out)
        with pytest.raises(UsageError, match="another run is writing"):
            BatchOutput.open(out.parent / "other.jsonl", errors_path_of(out))
        assert not (out.parent / "other.jsonl").exists()
        batch.write([result("a")], [])
    with BatchOutput.open(out) as batch:
        assert "a" in batch.finished


def test_the_lock_holds_after_the_error_file_was_rewritten(out: Path) -> None:
    errors_path_of(out).write_bytes(failure("a") + b"\n")
    with (
        BatchOutput.open(out, retry_failed=True),
        pytest.raises(UsageError, match=r"another run is writing to .*errors"),
    ):
        BatchOutput.open(out.parent / "other.jsonl", errors_path_of(out))


def test_a_file_put_in_place_while_waiting_for_the_lock_is_not_written(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock

    def replace_then_lock(fd: int, how: int) -> None:
        other = out.parent / "other"
        other.touch()
        other.replace(out)
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", replace_then_lock)
    with pytest.raises(UsageError, match="another run is writing"):
        BatchOutput.open(out)


WRITE_AND_DIE = """
import os, sys
from pathlib import Path
from tokenyard.batch_files import BatchOutput
batch = BatchOutput.open(Path(sys.argv[1]))
batch.write([sys.argv[2].encode()], [sys.argv[3].encode()])
os.kill(os.getpid(), 9)
"""


def test_what_was_written_survives_a_kill(out: Path) -> None:
    root = Path(__file__).parent.parent
    arguments = [str(out), result("a").decode(), failure("b").decode()]
    died = subprocess.run([sys.executable, "-c", WRITE_AND_DIE, *arguments], cwd=root, check=False)
    assert died.returncode == -9
    with BatchOutput.open(out) as batch:
        assert "a" in batch.finished
        assert "b" in batch.finished


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    for path, said in [
        (tmp_path / "no" / "out.jsonl", f"create the folder {tmp_path / 'no'}"),
        (tmp_path, "Is a directory"),
        (Path(), "Is a directory"),
        (Path("/dev/null"), "no regular file"),
        (tmp_path / "out.jsonl.gz", "without .gz"),
        (tmp_path / ("x" * 300), "too long"),
    ]:
        with pytest.raises(UsageError, match=said) as raised:
            BatchOutput.open(path)
        assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match="another error file"):
        BatchOutput.open(tmp_path / "out.jsonl", tmp_path / "." / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nobody")
def test_a_folder_that_may_not_be_written() -> None:
    with pytest.raises(UsageError, match="Permission denied"):
        BatchOutput.open(Path("/etc/out.jsonl"))
    with pytest.raises(UsageError, match="Permission denied"):
        write_sidecar(Path("/etc/out.jsonl"), "b")


def test_a_full_disk_leaves_whole_lines(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    room = [len(result("a")) + 20]

    def write_until_full(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(fd, data[: min(room[0], 50)])
        room[0] -= written
        return written

    with BatchOutput.open(out) as batch:
        monkeypatch.setattr(os, "write", write_until_full)
        batch.write([result("a")], [])
        with pytest.raises(UsageError, match="No space left on device: free some space"):
            batch.write([result("b"), result("c")], [])
        monkeypatch.undo()
    assert out.read_bytes() == result("a") + b"\n"


def test_a_body_that_is_no_json_is_not_written(out: Path) -> None:
    broken = output_line(job_id="b.a", custom_id="a", status_code=502, body=b"<html>")
    with BatchOutput.open(out) as batch, pytest.raises(ValueError, match="response body"):
        batch.write([], [broken])
    assert out.read_bytes() == b""


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=12), st.integers(0, 400), st.booleans())
def test_cut_anywhere_and_run_again_every_id_is_there_once(
    tmp_path_factory: pytest.TempPathFactory, done: list[tuple[str, bool]], cut: int, cut_errors: bool
) -> None:
    out = tmp_path_factory.mktemp("run") / "out.jsonl"
    with BatchOutput.open(out) as batch:
        for custom_id, fine in done:
            batch.write([result(custom_id)] if fine else [], [] if fine else [failure(custom_id)])
    torn = errors_path_of(out) if cut_errors else out
    if torn.exists():
        torn.write_bytes(torn.read_bytes()[:-cut] if cut else torn.read_bytes())
    with BatchOutput.open(out) as batch:
        batch.write([result(i) for i in "abcdef" if i not in batch.finished], [])
    errors = errors_path_of(out)
    assert sorted(ids_in(out) + (ids_in(errors) if errors.exists() else []), key=str) == list("abcdef")


# --- the batch of an unfinished run


def test_the_sidecar(out: Path) -> None:
    assert sidecar_batch_id(out) is None
    write_sidecar(out, "batch_1")
    write_sidecar(out, "batch_2")
    assert sidecar_batch_id(out) == "batch_2"
    assert [path.name for path in out.parent.iterdir()] == [".out.jsonl.batch"]
    remove_sidecar(out)
    remove_sidecar(out)
    assert sidecar_batch_id(out) is None


def test_a_sidecar_that_cannot_be_used(out: Path) -> None:
    sidecar = out.parent / ".out.jsonl.batch"
    sidecar.write_bytes(b"")
    assert sidecar_batch_id(out) is None
    sidecar.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="remove it"):
        sidecar_batch_id(out)
    with pytest.raises(UsageError, match="create the folder"):
        write_sidecar(out.parent / "no" / "out.jsonl", "b")
    assert sidecar_batch_id(out.parent / "no" / "out.jsonl") is None


# --- the example


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

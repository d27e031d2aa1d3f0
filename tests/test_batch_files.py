"""Results on disk: appending them, going on after a crash, one run at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_lines import failure, ids_in, refused, request, result, without_root
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import UsageError
from broker.openai_batch import output_line
from tokenyard.batch_files import BatchOutput, errors_path_of


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def nobody() -> Iterator[None]:
    with without_root():
        yield


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

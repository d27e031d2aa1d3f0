"""Batch files on disk: requests in, results out."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from io import BufferedIOBase, BufferedReader
from pathlib import Path

from broker.errors import InputFileError, UsageError
from broker.openai_batch import (
    LineError,
    OutputLine,
    RequestLine,
    line_error,
    parse_line,
    read_output_line,
    shown,
)
from tokenyard.id_table import IdTable
from tokenyard.line_file import LineFile

_BOM = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_GZIP_MARK = b"\x1f\x8b"
_DRAIN_BYTES = 1 << 16


# --- requests in


def read_requests(path: Path, *, max_line_bytes: int) -> Iterator[RequestLine | LineError]:
    """Read a batch file line by line, plain or gzip, whatever its size.

    Blank lines are skipped, and counted in the line numbers. A custom_id used before is a LineError.

    Args:
        path: the file.
        max_line_bytes: a longer line (its end included) becomes a LineError and is never held.

    Raises:
        InputFileError: at once where the file cannot be opened; while reading where it is empty or damaged.
    """
    try:
        file = path.open("rb")
        packed = file.peek(2).startswith(_GZIP_MARK)
    except OSError as error:
        raise _unreadable(path, error) from None
    return _requests(path, file, gzip.GzipFile(fileobj=file) if packed else file, max_line_bytes)


def _requests(
    path: Path, file: BufferedReader, lines: BufferedIOBase, max_line_bytes: int
) -> Iterator[RequestLine | LineError]:
    source = str(path)
    seen = IdTable()
    found = False
    with file:
        for number, line in _numbered_lines(path, lines, max_line_bytes):
            if not line or line.isspace():
                continue
            found = True
            request = parse_line(line, line=number, source=source, max_bytes=max_line_bytes)
            if isinstance(request, RequestLine):
                first = seen.first_line(request.custom_id, number)
                if first != number:
                    request = _duplicate(request, first, source)
            yield request
    if not found:
        raise InputFileError(f"{path} is empty: give a file with one request a line")


def _numbered_lines(path: Path, lines: BufferedIOBase, max_line_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Each line as it stands; of a line that is too long, just enough to see that."""
    number = 0
    try:
        while line := lines.readline(max_line_bytes + 1):
            number += 1
            yield number, _without_mark(path, line) if number == 1 else line
            while line and not line.endswith(b"\n"):  # the rest of a line that is too long
                line = lines.readline(_DRAIN_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise InputFileError(f"{path} is damaged after line {number} ({error}): make it again") from None


def _without_mark(path: Path, line: bytes) -> bytes:
    if line.startswith(_UTF16_MARKS):
        raise InputFileError(f"{path} is UTF-16: save it as UTF-8")
    return line.removeprefix(_BOM)


def _duplicate(request: RequestLine, first: int, source: str) -> LineError:
    custom_id = request.custom_id
    problem = f"custom_id {shown(custom_id)} was used on line {first} already: make it unique"
    return line_error("duplicate_custom_id", problem, line=request.line, source=source, custom_id=custom_id)


def _unreadable(path: Path, error: OSError) -> InputFileError:
    if isinstance(error, IsADirectoryError):
        return InputFileError(f"{path} is a folder: give a batch file")
    return InputFileError(f"cannot read {path}: {error.strerror}: check the path and its permissions")


# --- results out


def errors_path_of(path: Path) -> Path:
    """The error file that goes with an output file: ``out.jsonl`` -> ``out.errors.jsonl``."""
    return path.parent / f"{path.stem}.errors{path.suffix}"


class BatchOutput:
    """The output file and the error file of one batch, held by one run at a time.

    Each custom_id is kept once: a result delivered again is dropped. A failure that never became a job (an input
    line that was refused) is forgotten when the files are opened again: whoever reads the input finds it again.

    Attributes:
        finished: custom_ids that have their result, from earlier runs and this one; ask with ``in``.
        written: lines this run wrote to the output file.
        failed: lines this run wrote to the error file.
    """

    def __init__(self, output: LineFile, errors: LineFile) -> None:
        self._output = output
        self._errors = errors
        self.finished = IdTable()
        self.written = 0
        self.failed = 0

    @classmethod
    def open(cls, path: Path, errors_path: Path | None = None, *, retry_failed: bool = False) -> BatchOutput:
        """Open both files, lock them, cut a line that a crash left torn, and learn what is finished.

        Args:
            path: the output file; its folder must exist.
            errors_path: the error file; None: beside the output (``errors_path_of``).
            retry_failed: empty the error file, so that its requests are not finished.

        Raises:
            UsageError: a file cannot be written, another run holds it, or it holds something else.
        """
        errors_path = errors_path or errors_path_of(path)
        if os.path.realpath(path) == os.path.realpath(errors_path):
            raise UsageError(f"{path} cannot take results and errors both: choose another error file")
        if path.suffix == ".gz":
            raise UsageError(f"{path}: output is not compressed: choose a name without .gz")
        with ExitStack() as undo:
            output = LineFile(path)
            undo.callback(output.close, remove_empty=True)
            errors = LineFile(errors_path)
            undo.callback(errors.close, remove_empty=True)
            batch = cls(output, errors)
            batch._recover(retry_failed)
            undo.pop_all()
        return batch

    def __enter__(self) -> BatchOutput:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, lines: Iterable[bytes], errors: Iterable[bytes]) -> None:
        """Append lines (without line ends) to the output and the error file; a kill -9 does not undo it.

        Raises:
            UsageError: a file cannot be written (a full disk). It ends in a whole line; close and start again.
            ValueError: something is not a line of a batch output.
        """
        self.written += self._output.append(self._new(lines))
        self.failed += self._errors.append(self._new(errors))

    def sync(self) -> None:
        """Make what was written survive a loss of power."""
        self._output.sync()
        self._errors.sync()

    def close(self) -> None:
        """Let go of both files; an empty error file goes away. Safe to call twice."""
        self._output.close(remove_empty=False)
        self._errors.close(remove_empty=True)

    def _recover(self, retry_failed: bool) -> None:
        def kept(failure: OutputLine) -> bool:
            return failure.had_job and not retry_failed

        for _, output in self._output.scan():
            if output.custom_id:
                self.finished.add(output.custom_id)
        forget = False
        for _, failure in self._errors.scan():
            if not kept(failure):
                forget = True
            elif failure.custom_id:
                self.finished.add(failure.custom_id)
        if forget:
            self._errors.keep_only(kept)

    def _new(self, lines: Iterable[bytes]) -> list[bytes]:
        new: list[bytes] = []
        for line in lines:
            output = read_output_line(line)
            if output is None or b"\n" in line:
                raise ValueError("not a line of a batch output: is the response body JSON?")
            if not output.had_job or not output.custom_id or self.finished.add(output.custom_id):
                new.append(line)
        return new

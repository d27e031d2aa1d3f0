"""Batch files on disk: requests in, results out, and what lets a run go on where another stopped."""

from __future__ import annotations

import errno
import fcntl
import gzip
import os
import stat
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from hashlib import blake2b
from io import BufferedIOBase, BufferedReader
from pathlib import Path

from broker.errors import InputFileError, UsageError
from broker.openai_batch import (
    ID_PREFIX,
    LineError,
    OutputLine,
    RequestLine,
    line_error,
    parse_line,
    read_output_line,
    shown,
)

_BOM = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_GZIP_MARK = b"\x1f\x8b"
_DRAIN_BYTES = 1 << 16
_OUTPUT_HEAD = b'{"id": "' + ID_PREFIX.encode()


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


class IdTable:
    """Where each custom_id was first seen: 64-bit hashes in an open-addressing table, 12 bytes a slot.

    Among 2 million ids the chance that any two share a hash is about 1 in 10 million (n^2 / 2^65).
    """

    def __init__(self) -> None:
        self._used = 0
        self._keys, self._lines = _slots(1 << 10)

    def __len__(self) -> int:
        return self._used

    def __contains__(self, custom_id: str) -> bool:
        return self._keys[self._slot(_id_hash(custom_id))] != 0

    def add(self, custom_id: str) -> bool:
        """Take in ``custom_id``, and say whether it is new."""
        before = self._used
        self.first_line(custom_id, 0)
        return self._used > before

    def first_line(self, custom_id: str, line: int) -> int:
        """The line that ``custom_id`` was first given with: ``line`` itself where it is new."""
        key = _id_hash(custom_id)
        slot = self._slot(key)
        if self._keys[slot]:
            return self._lines[slot]
        self._keys[slot], self._lines[slot] = key, line
        self._used += 1
        if self._used * 3 > len(self._keys) * 2:
            self._grow()
        return line

    def _slot(self, key: int) -> int:
        keys, mask = self._keys, len(self._keys) - 1
        slot = key & mask
        while keys[slot] and keys[slot] != key:
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        keys, lines = self._keys, self._lines
        self._keys, self._lines = _slots(len(keys) * 2)
        for key, line in zip(keys, lines, strict=True):
            if key:
                slot = self._slot(key)
                self._keys[slot], self._lines[slot] = key, line


def _slots(count: int) -> tuple[array[int], array[int]]:
    return array("Q", bytes(8 * count)), array("I", bytes(4 * count))


def _id_hash(custom_id: str) -> int:
    digest = blake2b(custom_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1  # 0 marks a free slot


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

    def __init__(self, output: _LineFile, errors: _LineFile) -> None:
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
            output = _LineFile(path)
            undo.callback(output.close, remove_empty=True)
            errors = _LineFile(errors_path)
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


class _LineFile:
    """A file of output lines that one process at a time appends to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = _open_locked(path)

    def scan(self) -> Iterator[tuple[bytes, OutputLine]]:
        """Every line of the file; a torn last line is cut off, a missing last line end is put there."""
        offset = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(iter(lines.readline, b""), 1):
                output = read_output_line(line)
                if output is not None:
                    yield line, output
                    if not line.endswith(b"\n"):
                        os.write(self._fd, b"\n")
                elif not line.isspace():
                    if lines.peek(1) or not _looks_torn(line):
                        raise _foreign(self.path, number)
                    os.ftruncate(self._fd, offset)
                    return
                offset += len(line)

    def keep_only(self, wanted: Callable[[OutputLine], bool]) -> None:
        """Put a file with only the wanted lines in this one's place, in one step."""
        _replace(Path(os.path.realpath(self.path)), (line for line, output in self.scan() if wanted(output)))
        held, self._fd = self._fd, _open_locked(self.path)
        os.close(held)

    def append(self, lines: list[bytes]) -> int:
        """Append lines, all or none, and say how many."""
        data = memoryview(b"".join(part for line in lines for part in (line, b"\n")))
        before = os.fstat(self._fd).st_size
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            os.ftruncate(self._fd, before)
            raise _unwritable(self.path, error) from None
        return len(lines)

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self, *, remove_empty: bool) -> None:
        if self._fd < 0:
            return
        if remove_empty and os.fstat(self._fd).st_size == 0:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1


def _open_locked(path: Path) -> int:
    try:
        with ExitStack() as undo:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            undo.callback(os.close, fd)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise UsageError(f"{path} is no regular file: choose another output file")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between opening and locking, the run that held it may have put another file in its place.
            if not path.exists() or not os.path.samestat(os.fstat(fd), path.stat()):
                raise BlockingIOError
            undo.pop_all()
            return fd
    except BlockingIOError:
        busy = f"another run is writing to {path}: wait for its end or choose another output file"
        raise UsageError(busy) from None
    except OSError as error:
        raise _unwritable(path, error) from None


def _looks_torn(line: bytes) -> bool:
    """Whether a crash may have left this: the beginning of a line of ours, or a hole of NULs.

    Anything else is somebody's own text, which must not be cut.
    """
    return line.startswith(_OUTPUT_HEAD) or _OUTPUT_HEAD.startswith(line) or not line.strip(b"\0")


def _foreign(path: Path, number: int) -> UsageError:
    return UsageError(f"{path}:{number}: not a line of a batch output: move the file or choose another output")


def _unwritable(path: Path, error: OSError) -> UsageError:
    advice = "choose another output file"
    if error.errno == errno.ENOENT:
        advice = f"create the folder {path.parent}"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "free some space and start again"
    return UsageError(f"cannot write {path}: {error.strerror}: {advice}")


def _replace(path: Path, content: Iterable[bytes]) -> None:
    """Give a file new content in one step: a reader, and a crash, sees the old or the new."""
    temporary = path.parent / f".{path.name}.tmp"
    try:
        with temporary.open("wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from None


# --- the batch that an unfinished run left


def _sidecar(path: Path) -> Path:
    return path.parent / f".{path.name}.batch"


def sidecar_batch_id(path: Path) -> str | None:
    """The batch whose run into the output file ``path`` has not ended; None where there is none.

    Raises:
        UsageError: the note that remembers it cannot be read.
    """
    try:
        return _sidecar(path).read_text(encoding="utf-8").strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"cannot read {_sidecar(path)}: remove it to start over") from None


def write_sidecar(path: Path, batch_id: str) -> None:
    """Remember, beside the output file ``path``, the batch that runs into it.

    Raises:
        UsageError: the folder cannot be written.
    """
    _replace(_sidecar(path), [f"{batch_id}\n".encode()])


def remove_sidecar(path: Path) -> None:
    """Forget the batch: its run has ended. Nothing happens where none is remembered."""
    _sidecar(path).unlink(missing_ok=True)

"""A file of output lines that survives crashes and is held by one process at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from broker.errors import UsageError
from broker.openai_batch import ID_PREFIX, OutputLine, read_output_line

_OUTPUT_HEAD = b'{"id": "' + ID_PREFIX.encode()


class LineFile:
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
        replace_file(Path(os.path.realpath(self.path)), (line for line, output in self.scan() if wanted(output)))
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


def replace_file(path: Path, content: Iterable[bytes]) -> None:
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

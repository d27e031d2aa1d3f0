"""Lines of a batch file that cannot run: shown, counted, and written to a file where one is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from broker.openai_batch import LineError, RequestLine, failure_line
from tokenyard.line_file import LineFile
from tokenyard.views.text import counted

_SHOWN = 10
_TELL_EVERY_S = 5.0


class RefusedLines:
    """Keeps bad lines apart from good ones. A context manager.

    Args:
        path: file for the bad lines, in the form of OpenAI's error files; refused lines of an earlier run go.
        say: how to tell a person.

    Attributes:
        passed: lines that can run, as far as the file was read.
        count: lines that cannot.

    Raises:
        UsageError: the file cannot be written, or holds something else.
    """

    def __init__(self, path: Path | None, say: Callable[[str], None]) -> None:
        self.passed = 0
        self.count = 0
        self._say = say
        self._file = LineFile(path) if path else None
        if self._file:
            self._file.keep_only(lambda failure: failure.had_job)

    def __enter__(self) -> RefusedLines:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close(remove_empty=True)

    def without(self, lines: Iterable[RequestLine | LineError]) -> Iterator[RequestLine]:
        """The requests among ``lines``; says now and then how many there were."""
        told_at = time.monotonic()
        for line in lines:
            if isinstance(line, LineError):
                self.add(line)
                continue
            self.passed += 1
            yield line
            if time.monotonic() - told_at >= _TELL_EVERY_S:
                self._say(f"{self.passed:,} requests read")
                told_at = time.monotonic()

    def add(self, error: LineError) -> None:
        """Count a line that cannot run."""
        self.count += 1
        if self.count <= _SHOWN:
            self._say(error.message)
        if self._file:
            line = failure_line(job_id=None, custom_id=error.custom_id, code=error.code, message=error.message)
            self._file.append([line])

    def say_how_many(self) -> None:
        """Tell how many lines cannot run, where there are any."""
        if self.count:
            where = f"; all are in {self._file.path}" if self._file else ""
            more = f", the first {_SHOWN} are above" if self.count > _SHOWN else ""
            self._say(f"{counted(self.count, 'line')} cannot run{more}{where}")

"""The head of the request streams: waiting jobs by priority, and among these by length. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from math import log
from typing import TypeVar

from broker.jobs import Priority, WaitingJob
from broker.policies.base import Candidate

#: Lengths within this factor fall into one class: narrow enough that a class costs each device much the same a job.
_CLASS_WIDTH = 1.5
_PER_LOG = 1 / log(_CLASS_WIDTH)

Jobs = OrderedDict[str, Candidate]
ClassKey = tuple[int, int]


def class_of(candidate: Candidate) -> ClassKey:
    """The length class of a job; what it shares with others is left out of its prompt: it is computed once for all."""
    return length_class(candidate.prompt_tokens - candidate.shared_tokens, candidate.output_tokens)


def length_class(prompt_tokens: int, output_tokens: int) -> ClassKey:
    """The class of these lengths: their place on a logarithmic scale."""
    return int(log(max(prompt_tokens, 1)) * _PER_LOG), int(log(max(output_tokens, 1)) * _PER_LOG)


def typical_lengths(key: ClassKey) -> tuple[float, float]:
    """Prompt and output tokens in the middle of a class."""
    return _CLASS_WIDTH ** (key[0] + 0.5), _CLASS_WIDTH ** (key[1] + 0.5)


class Line:
    """The waiting jobs of one priority. Those that came back go before those that never left."""

    __slots__ = ("_classes", "by_class", "by_prefix", "fresh", "returned")

    def __init__(self) -> None:
        self.returned: Jobs = OrderedDict()
        self.fresh: Jobs = OrderedDict()
        self.by_class: dict[ClassKey, Jobs] = {}
        self.by_prefix: dict[tuple[ClassKey, str], Jobs] = {}
        self._classes: dict[str, ClassKey] = {}  # by job: two logarithms need to be taken only once

    def add(self, candidate: Candidate, *, first: bool = False) -> None:
        """Take a job up, at the end or at the front of its kind."""
        job_id = candidate.job.job_id
        if job_id in self._classes:  # anyone can write a job into a stream twice
            self.pop(job_id)
        returned = candidate.job.level == "returned"
        _insert(self.returned if returned else self.fresh, candidate, first=first)
        key = self._classes[job_id] = class_of(candidate)
        jobs = self.by_class.get(key)
        if jobs is None:
            jobs = self.by_class[key] = OrderedDict()
        _insert(jobs, candidate, first=first or returned)
        if candidate.prefix:
            group = self.by_prefix.setdefault((key, candidate.prefix), OrderedDict())
            _insert(group, candidate, first=first or returned)

    def pop(self, job_id: str) -> Candidate | None:
        """Take a job out; None where it is not here."""
        key = self._classes.pop(job_id, None)
        if key is None:
            return None
        candidate = self.fresh.pop(job_id, None) or self.returned.pop(job_id)
        _remove(self.by_class, key, job_id)
        if candidate.prefix:
            _remove(self.by_prefix, (key, candidate.prefix), job_id)
        return candidate

    def __iter__(self) -> Iterator[Candidate]:
        yield from self.returned.values()
        yield from self.fresh.values()

    def __len__(self) -> int:
        return len(self._classes)


class Window:
    """What the scheduler sees of the backlog, in the order in which it should go."""

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {priority.value: Line() for priority in Priority}

    def add(self, candidate: Candidate) -> None:
        """Take a job up at the end of its line."""
        self._line(candidate.job).add(candidate)

    def put_back(self, candidates: Iterable[Candidate]) -> None:
        """Jobs that could not be dispatched go to the front of their lines, in their order."""
        for candidate in reversed(list(candidates)):
            self._line(candidate.job).add(candidate, first=True)

    def remove(self, job: WaitingJob) -> None:
        """Take a job out."""
        line = self.lines.get(job.priority)  # a line without jobs counts as false
        (line if line is not None else self._line(job)).pop(job.job_id)

    def of_batch(self, batch_id: str) -> list[WaitingJob]:
        """The jobs of one batch."""
        return [candidate.job for candidate in self if candidate.job.batch_id == batch_id]

    def count(self, level: str) -> int:
        """Jobs held of one request stream."""
        if level == "returned":
            return sum(len(line.returned) for line in self.lines.values())
        return len(self.lines[level].fresh)

    def predict_anew(self, predict: Callable[[WaitingJob], Candidate]) -> None:
        """File every job under the lengths that are predicted now."""
        for priority, line in self.lines.items():
            anew = Line()
            for candidate in line:
                anew.add(predict(candidate.job))
            self.lines[priority] = anew

    def _line(self, job: WaitingJob) -> Line:
        return self.lines[job.priority if job.priority in self.lines else Priority.NORMAL.value]

    def __iter__(self) -> Iterator[Candidate]:
        """All jobs in the order in which they should go."""
        for line in self.lines.values():
            yield from line

    def __len__(self) -> int:
        return sum(map(len, self.lines.values()))


_Key = TypeVar("_Key")


def _remove(shelves: dict[_Key, Jobs], key: _Key, job_id: str) -> None:
    jobs = shelves[key]
    del jobs[job_id]
    if not jobs:
        del shelves[key]


def _insert(jobs: Jobs, candidate: Candidate, *, first: bool) -> None:
    jobs[candidate.job.job_id] = candidate
    if first:
        jobs.move_to_end(candidate.job.job_id, last=False)

"""What the scheduler believes each device's prefix cache holds, and which prefixes jobs share. Pure.

A device evicts the least recently used blocks of its KV memory, and every job that runs there uses some: those of its
prefix, which it may share, and others, which are its own. So a prefix is gone once other prefixes used since and own
tokens written since are together more than the memory. What engines report puts right the rest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from itertools import islice

from broker.prefixes import PrefixMark

_BLOCK_TOKENS = 16  # vLLM caches full blocks
#: Marks whose jobs are counted; the one not met for longest is forgotten.
_MOST_MARKS = 100_000
#: Weight of the newest report in how far a device's cache is believed in.
_GAIN = 0.1


class _Mark:
    """What is known of a mark, on whichever device."""

    __slots__ = ("holders", "jobs", "tokens")

    def __init__(self) -> None:
        self.jobs = 0
        self.tokens = 0.0  # from the start of the prompt to the mark; 0: not known yet
        self.holders: dict[str, None] = {}


class _Device:
    """Marks believed to be in memory, least recently used first, a longer one before those it contains."""

    __slots__ = ("marks", "tokens", "trust", "written")

    def __init__(self) -> None:
        self.marks: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens beyond the next shorter; `written`
        self.tokens = 0.0  # of all marks
        self.written = 0.0  # tokens of no mark, since the beginning
        self.trust = 1.0  # share of the predicted tokens that the engine says it found


class PrefixIndex:
    """Which prefixes jobs share, and where these are cached. Every call costs in proportion to the job's marks.

    Only what two jobs have in common is kept a device: a prefix of one job alone would only fill memory here.
    """

    def __init__(self, most_marks: int = _MOST_MARKS) -> None:
        self._marks: OrderedDict[str, _Mark] = OrderedDict()
        self._devices: dict[str, _Device] = {}
        self._most_marks = most_marks

    def seen(self, marks: Sequence[PrefixMark]) -> None:
        """Count a job among those that have these marks: once, when it comes into sight."""
        known = self._marks
        for _, digest in reversed(marks):  # a longer one is forgotten before those it contains
            mark = known.get(digest)
            if mark is None:
                mark = known[digest] = _Mark()
            else:
                known.move_to_end(digest)
            mark.jobs += 1
        while len(known) > self._most_marks:
            digest, mark = known.popitem(last=False)
            for device in mark.holders:
                self._drop(self._devices[device], digest)

    def shared(self, marks: Sequence[PrefixMark]) -> PrefixMark | None:
        """The longest mark that another job seen lately has, too."""
        for mark in reversed(marks):
            if self.jobs_with(mark) > 1:
                return mark
        return None

    def jobs_with(self, mark: PrefixMark) -> int:
        """Jobs seen that have this mark, ended ones included."""
        known = self._marks.get(mark.digest)
        return known.jobs if known else 0

    def holders(self, mark: PrefixMark) -> Collection[str]:
        """Devices believed to have this mark cached."""
        known = self._marks.get(mark.digest)
        return known.holders.keys() if known else ()

    def held(self, device: str, most: int) -> list[str]:
        """The digests of the marks that a device is believed to have cached, at most so many, the latest first."""
        state = self._devices.get(device)
        return list(islice(reversed(state.marks), most)) if state else []

    def holders_of(self, prefix: str) -> Collection[str]:
        """Devices believed to have the mark of that digest cached."""
        known = self._marks.get(prefix)
        return known.holders.keys() if known else ()

    def mark_tokens(self, mark: PrefixMark, prompt_tokens: int, prompt_bytes: int) -> int:
        """Tokens up to a mark in a prompt of these sizes: as reported, else in proportion."""
        known = self._marks.get(mark.digest)
        tokens = known.tokens if known and known.tokens else prompt_tokens * mark.size / max(prompt_bytes, mark.size)
        return int(min(tokens, max(prompt_tokens - 1, 0)))

    def cached_tokens(self, device: str, marks: Sequence[PrefixMark], prompt_tokens: int, prompt_bytes: int) -> int:
        """Tokens of a job's prompt that the device will find in its cache: full blocks, never the whole prompt.

        Args:
            device: name of the device.
            marks: the job's, short to long.
            prompt_tokens: of the job, predicted.
            prompt_bytes: size of the job's text or body; its tokens spread evenly over it until a report knows better.
        """
        state = self._devices.get(device)
        if state is None or not marks or not state.marks:
            return 0
        return self._found(state, marks, prompt_tokens, prompt_bytes, state.trust)

    def placed(
        self,
        device: str,
        marks: Sequence[PrefixMark],
        *,
        prompt_tokens: int,
        prompt_bytes: int,
        kv_tokens: int,
        cache_tokens: int,
    ) -> int:
        """A job was dispatched to the device: its prefix will be there, and older ones may have to go.

        Args:
            device: name of the device.
            marks: the job's, short to long.
            prompt_tokens: of the job, predicted.
            prompt_bytes: as for ``cached_tokens``.
            kv_tokens: prompt and output tokens of the job, predicted.
            cache_tokens: the device's KV memory, or the share of it to count on. Jobs that run are in it: each
                counts with all its tokens from its dispatch on, as it does in the engine.

        Returns:
            Tokens that should be found there if the engine caches as believed; see ``observe``.
        """
        state = self._devices.get(device)
        if state is None:
            state = self._devices[device] = _Device()
        found = self._found(state, marks, prompt_tokens, prompt_bytes, 1.0) if state.marks else 0
        ends = self._ends(marks, prompt_tokens, prompt_bytes)
        state.written += max(kv_tokens - (ends[-1][1] if ends else 0.0), 0.0)
        before = [0.0, *(end for _, end in ends)]
        for (digest, end), start in zip(reversed(ends), reversed(before[:-1]), strict=True):
            self._hold(device, state, digest, end - start)
        self._shrink(device, state, cache_tokens)
        return found

    def observe(self, device: str, marks: Sequence[PrefixMark], predicted_tokens: int, cached_tokens: int) -> None:
        """A job ended on the device, and its engine says how much of the prompt it found in its cache.

        Args:
            device: name of the device.
            marks: the job's.
            predicted_tokens: what ``placed`` returned for the job; 0 where it is not known.
            cached_tokens: what the engine reported.
        """
        state = self._devices.get(device)
        if state is None or predicted_tokens <= 0:
            return
        state.trust += _GAIN * (min(max(cached_tokens, 0) / predicted_tokens, 1.0) - state.trust)
        if cached_tokens <= 0:
            for _, digest in marks:
                self._let_go(device, state, digest)
            return
        known = [mark for _, digest in marks if (mark := self._marks.get(digest)) and mark.tokens and mark.jobs > 1]
        if not known:
            return
        meant = min(range(len(known)), key=lambda index: abs(known[index].tokens - predicted_tokens))
        told = cached_tokens + _BLOCK_TOKENS / 2  # it told full blocks
        if meant + 1 < len(known):
            told = min(told, known[meant + 1].tokens)
        known[meant].tokens += (told - known[meant].tokens) / 2

    def forget(self, device: str) -> None:
        """The device left, or its engine started anew: nothing is cached there."""
        state = self._devices.pop(device, None)
        for digest in state.marks if state else ():
            self._marks[digest].holders.pop(device, None)

    def tokens_held(self, device: str) -> int:
        """Tokens of the prefixes that the device is believed to have cached."""
        state = self._devices.get(device)
        return round(state.tokens) if state else 0

    def _found(
        self, state: _Device, marks: Sequence[PrefixMark], prompt_tokens: int, prompt_bytes: int, trust: float
    ) -> int:
        for size, digest in reversed(marks):
            if digest in state.marks:
                tokens = self._marks[digest].tokens or prompt_tokens * size / max(prompt_bytes, size)
                most = max(prompt_tokens - 1, 0)
                return int(min(tokens, most) * trust) // _BLOCK_TOKENS * _BLOCK_TOKENS
        return 0

    def _ends(self, marks: Sequence[PrefixMark], prompt_tokens: int, prompt_bytes: int) -> list[tuple[str, float]]:
        """The marks that other jobs have, too, and the tokens up to each."""
        ends: list[tuple[str, float]] = []
        end = 0.0
        for size, digest in marks:
            mark = self._marks.get(digest)
            if mark is None or mark.jobs < 2:
                break
            if not mark.tokens:
                mark.tokens = prompt_tokens * size / max(prompt_bytes, size)
            end = max(end, mark.tokens)
            ends.append((digest, end))
        return ends

    def _hold(self, device: str, state: _Device, digest: str, tokens: float) -> None:
        old = state.marks.pop(digest, None)
        state.tokens += tokens - (old[0] if old else 0.0)
        state.marks[digest] = (tokens, state.written)
        self._marks[digest].holders[device] = None

    def _let_go(self, device: str, state: _Device, digest: str) -> None:
        if digest in state.marks:
            self._drop(state, digest)
            self._marks[digest].holders.pop(device, None)

    def _shrink(self, device: str, state: _Device, cache_tokens: int) -> None:
        while state.marks:
            oldest = next(iter(state.marks))
            written_since = state.written - state.marks[oldest][1]
            if state.tokens + written_since <= cache_tokens:
                break
            self._let_go(device, state, oldest)

    @staticmethod
    def _drop(state: _Device, digest: str) -> None:
        tokens, _ = state.marks.pop(digest)
        state.tokens = state.tokens - tokens if state.marks else 0.0

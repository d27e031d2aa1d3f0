"""The prefix cache of a simulated batch, as vLLM has it: which blocks of prefixes are in memory, who is evicted. Pure.

Blocks of a prefix are held once while requests refer to them. When none does they count as free and stay where they
are, in the queue of free blocks: whoever needs a block takes the one that was freed first, and with it what it held.
A request frees its last block first, so a prefix is evicted from its end. All other blocks lie in the same queue,
counted, not listed: no request but their own could use them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

#: Prefixes of one prompt, short to long: what names each, and the full blocks from the start of the prompt to its end.
Chain = Sequence[tuple[Hashable, int]]


def chain_of(prefixes: Sequence[tuple[Hashable, int]], block_tokens: int) -> Chain:
    """Prefixes given in tokens as a chain; those that fill no block more than a shorter one are left out."""
    chain: list[tuple[Hashable, int]] = []
    end = 0
    for name, tokens in prefixes:
        if tokens // block_tokens > end:
            end = tokens // block_tokens
            chain.append((name, end))
    return chain


class Stretch:
    """Neighbouring blocks: those between the end of the next shorter prefix and of this one, or blocks of no prefix."""

    __slots__ = ("held", "id", "refs", "size", "start")

    def __init__(self, stretch_id: Hashable | None, start: int, size: int) -> None:
        self.id = stretch_id
        self.start = start
        self.size = size
        self.held = size  # blocks that are (being) computed; fewer where the end was evicted
        self.refs = 0

    @property
    def end(self) -> int:
        """Blocks from the start of the prompt to the end."""
        return self.start + self.size


class Entry(NamedTuple):
    """What an admitted request finds: its stretches, and how many of their blocks were computed before.

    ``referenced`` of the blocks are in use by other requests, ``revived`` were taken out of the queue of free blocks.
    """

    stretches: Sequence[Stretch]
    hits: int
    referenced: int
    revived: int


class PrefixCache:
    """Prefixes in memory. The number of free blocks is the caller's: it counts unreferenced stretches, too.

    Attributes:
        evictable: stretches that no request refers to. While there are none, it does not matter which blocks are
            taken, and ``take``, ``give`` and ``evict`` are not to be called.
    """

    def __init__(self) -> None:
        self._stretches: dict[Hashable, Stretch] = {}
        # Free blocks in the order in which they are taken. Kept only while there is a prefix among them.
        self._queue: OrderedDict[Stretch, None] = OrderedDict()
        self.evictable = 0

    def referenced(self, chain: Chain, most: int) -> int:
        """Blocks of the prefixes that requests hold already: one more request needs no memory for them."""
        end = 0
        for stretch_id, _ in chain:
            stretch = self._stretches.get(stretch_id)
            if stretch is None or not stretch.refs or stretch.start != end or stretch.end > most:
                break
            end = stretch.end
        return end

    def enter(self, chain: Chain, most: int) -> Entry:
        """Refer to a request's prefixes, as far as they fit ``most`` blocks; what is not in memory, it will compute."""
        found: list[Stretch] = []
        end = hits = referenced = revived = 0
        whole = True
        for stretch_id, wanted_end in chain:
            stretch = self._stretches.get(stretch_id)
            if stretch is None:
                if not end < wanted_end <= most:
                    break
                stretch = self._stretches[stretch_id] = Stretch(stretch_id, end, wanted_end - end)
                whole = False
            elif not whole or stretch.start != end or stretch.end > most:
                break
            else:
                hits += stretch.held
                whole = stretch.held == stretch.size
                if stretch.refs:
                    referenced += stretch.size
                else:
                    revived += stretch.held
                    self._unqueue(stretch)
                    stretch.held = stretch.size
            stretch.refs += 1
            found.append(stretch)
            end = stretch.end
        return Entry(found, hits, referenced, revived)

    def leave(self, stretches: Sequence[Stretch], computed: int, free: int) -> int:
        """Give up a request's stretches; only the first ``computed`` blocks of its prompt hold anything.

        Args:
            stretches: from ``enter``.
            computed: full blocks of the prompt that were computed.
            free: free blocks so far.

        Returns:
            Blocks that are free now and were not.
        """
        freed = 0
        for stretch in reversed(stretches):
            stretch.refs -= 1
            if stretch.refs:
                continue
            freed += stretch.size
            stretch.held = min(stretch.size, max(computed - stretch.start, 0))
            if self.evictable:
                self.give(stretch.size - stretch.held)
            if not stretch.held:
                del self._stretches[stretch.id]
                continue
            if not self.evictable:
                self._queue[Stretch(None, 0, free + freed - stretch.held)] = None
            self._queue[stretch] = None
            self.evictable += 1
        return freed

    def take(self, blocks: int) -> None:
        """Free blocks were taken: those at the head of the queue."""
        queue = self._queue
        while blocks > 0 and self.evictable:
            first = next(iter(queue))
            gone = min(blocks, first.held)
            first.held -= gone
            blocks -= gone
            if first.held:
                break
            if first.id is None:
                del queue[first]
            else:
                del self._stretches[first.id]
                self._unqueue(first)

    def give(self, blocks: int) -> None:
        """Blocks of no prefix became free: they go to the end of the queue."""
        if blocks > 0:
            last = next(reversed(self._queue))
            if last.id is None:
                last.held += blocks
            else:
                self._queue[Stretch(None, 0, blocks)] = None

    def evict(self, blocks: int) -> None:
        """Empty the blocks at the head of the queue: somebody will take them before anybody looks for a prefix."""
        self.take(blocks)
        if self.evictable and blocks > 0:
            empty = Stretch(None, 0, blocks)
            self._queue[empty] = None
            self._queue.move_to_end(empty, last=False)

    def _unqueue(self, stretch: Stretch) -> None:
        del self._queue[stretch]
        self.evictable -= 1
        if not self.evictable:
            self._queue.clear()

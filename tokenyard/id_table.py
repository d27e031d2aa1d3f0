"""A set of custom_ids that stays small with millions of them. Pure."""

from __future__ import annotations

from array import array
from hashlib import blake2b


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
    return array("Q", (0,)) * count, array("I", (0,)) * count


def _id_hash(custom_id: str) -> int:
    digest = blake2b(custom_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1  # 0 marks a free slot

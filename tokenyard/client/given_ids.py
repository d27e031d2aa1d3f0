"""Which custom_ids a submission was given, millions of them in little memory. Pure."""

from __future__ import annotations

from tokenyard.client.items import DIGEST_BYTES, digest_of, position_of
from tokenyard.id_table import IdTable


class GivenIds:
    """An id that was made of its item's position and content takes 6 bytes here, one of the caller's own 12 to 36."""

    def __init__(self) -> None:
        self._digests = bytearray()  # of made ids, by position
        self._others = IdTable()

    def __contains__(self, custom_id: str) -> bool:
        return self._is_made(custom_id) or custom_id in self._others

    def first_position(self, custom_id: str, position: int) -> int:
        """Where an id was given first: ``position`` itself where it is new, and is known from then on."""
        made_at = position_of(custom_id)
        if made_at is not None and self._is_made(custom_id):
            return made_at
        if made_at != position or (self._others and custom_id in self._others):
            return self._others.first_line(custom_id, position)
        digests, start = self._digests, position * DIGEST_BYTES
        if len(digests) < start:  # those between have ids of their own
            digests.extend(bytes(start - len(digests)))
        digests[start : start + DIGEST_BYTES] = digest_of(custom_id)
        return position

    def _is_made(self, custom_id: str) -> bool:
        position = position_of(custom_id)
        if position is None:
            return False
        start = position * DIGEST_BYTES
        return bytes(self._digests[start : start + DIGEST_BYTES]) == digest_of(custom_id)

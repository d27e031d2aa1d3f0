"""The gateway's folder: files and batches of every tenant, each with a small JSON beside it.

``DIR/TENANT/files/ID`` is a file's content and ``ID.json`` what is known of it; ``DIR/TENANT/batches/ID.json`` a batch.
Each JSON is replaced in one step, so a crash leaves the old one or the new one.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import msgspec

from broker.errors import UsageError
from broker.tenant_names import is_tenant
from tokenyard.gateway.objects import StoredBatch, StoredFile
from tokenyard.gateway.turns import alone

_FILE_ID = re.compile(r"file-[0-9a-f]{24}")
_BATCH_ID = re.compile(r"batch_[0-9a-f]{24}")
_T = TypeVar("_T")


class Shelf:
    """One tenant's files and batches on disk.

    Raises:
        UsageError: the folder cannot be made.
    """

    def __init__(self, root: Path, tenant: str) -> None:
        self.tenant = tenant
        self._files = root / tenant / "files"
        self._batches = root / tenant / "batches"
        try:
            self._files.mkdir(parents=True, exist_ok=True)
            self._batches.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make {self._files} ({error.strerror}): choose a folder of yours") from None

    @property
    def incoming(self) -> Path:
        """Folder of what is not complete yet, on the same file system."""
        return self._files

    def new_file_id(self) -> str:
        """An id that nobody can guess."""
        return f"file-{secrets.token_hex(12)}"

    def content(self, file_id: str) -> Path:
        """Where a file's content lies."""
        return self._files / file_id

    def add_file(self, source: Path, file: StoredFile) -> None:
        """Take a complete file in: it is moved here, then known."""
        source.replace(self.content(file.id))
        _write(self._files / f"{file.id}.json", file)

    def file(self, file_id: str) -> StoredFile | None:
        """What is known of a file; None where there is none of that id."""
        return _read(self._files / f"{file_id}.json", StoredFile) if _FILE_ID.fullmatch(file_id) else None

    def files(self) -> list[StoredFile]:
        """All files."""
        return list(_all(self._files, StoredFile))

    def delete_file(self, file_id: str) -> bool:
        """Delete a file; whether there was one."""
        if self.file(file_id) is None:
            return False
        (self._files / f"{file_id}.json").unlink(missing_ok=True)
        self.content(file_id).unlink(missing_ok=True)
        return True

    def keep_batch(self, batch: StoredBatch) -> None:
        """Write a batch down, new or changed."""
        _write(self._batches / f"{batch.id}.json", batch)

    def batch(self, batch_id: str) -> StoredBatch | None:
        """A batch; None where there is none of that id."""
        return _read(self._batches / f"{batch_id}.json", StoredBatch) if _BATCH_ID.fullmatch(batch_id) else None

    def batches(self) -> list[StoredBatch]:
        """All batches."""
        return list(_all(self._batches, StoredBatch))

    def lock_path(self, batch_id: str) -> Path:
        """Whoever runs a batch holds this file's lock."""
        return self._batches / f"{batch_id}.lock"

    def alone(self) -> AbstractContextManager[None]:
        """Nobody else changes a batch for the length of the block: read it and write it there."""
        return alone(self._batches / ".lock")

    def output_path(self, batch_id: str) -> Path:
        """Where a batch's responses are gathered until it has ended; its errors lie beside it."""
        return self._batches / f"{batch_id}.out.jsonl"


def tenants_of(root: Path) -> list[str]:
    """Tenants that have a shelf."""
    return sorted(path.name for path in root.glob("*") if path.is_dir() and is_tenant(path.name))


def _write(path: Path, value: msgspec.Struct) -> None:
    new = path.with_suffix(f".{secrets.token_hex(4)}.new")  # another gateway may write the same
    with new.open("wb") as file:
        file.write(msgspec.json.encode(value))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _read(path: Path, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.DecodeError):  # what somebody else put there is none of ours
        return None


def _all(folder: Path, kind: type[_T]) -> Iterator[_T]:
    for path in folder.glob("*.json"):
        if (found := _read(path, kind)) is not None:
            yield found

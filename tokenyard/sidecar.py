"""The note beside an output file that names the batch an unfinished run left."""

from __future__ import annotations

from pathlib import Path

from broker.errors import UsageError
from tokenyard.line_file import replace_file


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
    replace_file(_sidecar(path), [f"{batch_id}\n".encode()])


def remove_sidecar(path: Path) -> None:
    """Forget the batch: its run has ended. Nothing happens where none is remembered."""
    _sidecar(path).unlink(missing_ok=True)

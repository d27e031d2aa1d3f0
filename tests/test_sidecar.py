"""The note that names the batch of an unfinished run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from batch_lines import without_root

from broker.errors import UsageError
from tokenyard.sidecar import remove_sidecar, sidecar_batch_id, write_sidecar


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def nobody() -> Iterator[None]:
    with without_root():
        yield


def test_the_sidecar(out: Path) -> None:
    assert sidecar_batch_id(out) is None
    write_sidecar(out, "batch_1")
    write_sidecar(out, "batch_2")
    assert sidecar_batch_id(out) == "batch_2"
    assert [path.name for path in out.parent.iterdir()] == [".out.jsonl.batch"]
    remove_sidecar(out)
    remove_sidecar(out)
    assert sidecar_batch_id(out) is None


def test_a_sidecar_that_cannot_be_used(out: Path) -> None:
    sidecar = out.parent / ".out.jsonl.batch"
    sidecar.write_bytes(b"")
    assert sidecar_batch_id(out) is None
    sidecar.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="remove it"):
        sidecar_batch_id(out)
    with pytest.raises(UsageError, match="create the folder"):
        write_sidecar(out.parent / "no" / "out.jsonl", "b")
    assert sidecar_batch_id(out.parent / "no" / "out.jsonl") is None


@pytest.mark.usefixtures("nobody")
def test_a_folder_that_may_not_be_written() -> None:
    with pytest.raises(UsageError, match="Permission denied"):
        write_sidecar(Path("/etc/out.jsonl"), "b")

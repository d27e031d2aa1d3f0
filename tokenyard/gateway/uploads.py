"""A file that is uploaded as a form goes to disk as it comes: of any size, a few MiB in memory."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from tokenyard.gateway.errors import ApiError

#: So much is handed to the parser at once (bytes): a thread for each piece of the network would cost more.
_PIECE_BYTES = 2**20
_MOST_FIELDS = 32
_MOST_FIELD_BYTES = 4096


class Upload(NamedTuple):
    """An uploaded file; whoever wants it moves it away.

    Attributes:
        path: where it lies.
        filename: as the client calls it, without folders.
        fields: the form's other fields.
    """

    path: Path
    filename: str
    fields: dict[str, str]


class _Form:
    """What the parser says."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.files: list[File] = []

    def field(self, field: Field) -> None:
        """A field is complete."""
        self.fields[(field.field_name or b"").decode(errors="replace")] = (field.value or b"").decode(errors="replace")

    def file(self, file: File) -> None:
        """A file is complete."""
        self.files.append(file)


@asynccontextmanager
async def read_upload(request: Request, folder: Path) -> AsyncGenerator[Upload]:
    """Read a form with one field ``file`` into a folder of its own in ``folder``, which is gone after the block.

    Raises:
        ApiError: status 400: the body is no such form.
    """
    place = Path(tempfile.mkdtemp(prefix="upload-", dir=folder))
    form = _Form()
    try:
        try:
            await _feed(request, _parser(request, place, form))
            upload = await asyncio.to_thread(_taken, form)
        except FormParserError as error:
            raise ApiError(400, f"the form cannot be read: {error}") from None
        yield upload
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _parser(request: Request, folder: Path, form: _Form) -> FormParser:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise ApiError(400, "send the file as multipart/form-data with the fields 'file' and 'purpose'", param="file")
    config = {
        "UPLOAD_DIR": str(folder),
        "UPLOAD_DELETE_TMP": False,
        "MAX_MEMORY_FILE_SIZE": 0,
        "MAX_FIELDS": _MOST_FIELDS,
        "MAX_FIELD_SIZE": _MOST_FIELD_BYTES,
    }
    return FormParser(kind.decode(), form.field, form.file, boundary=options[b"boundary"], config=config)


async def _feed(request: Request, parser: FormParser) -> None:
    """The disk is written to in a thread: the loop serves others meanwhile."""
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        pieces.append(piece)
        size += len(piece)
        if size >= _PIECE_BYTES:
            await asyncio.to_thread(parser.write, b"".join(pieces))
            pieces, size = [], 0
    await asyncio.to_thread(_finish, parser, b"".join(pieces))


def _finish(parser: FormParser, rest: bytes) -> None:
    parser.write(rest)
    parser.finalize()


def _taken(form: _Form) -> Upload:
    """The form's one file, on disk."""
    if len(form.files) != 1 or form.files[0].field_name != b"file":
        raise ApiError(400, "the form has to have one file, in the field 'file'", param="file")
    [file] = form.files
    if file.in_memory:  # it is empty
        file.flush_to_disk()
    file.file_object.flush()
    os.fsync(file.file_object.fileno())
    file.close()
    assert file.actual_file_name is not None, "it is on disk"
    name = Path((file.file_name or b"").decode(errors="replace")).name or "upload"
    return Upload(Path(os.fsdecode(file.actual_file_name)), name[:255], form.fields)

"""/v1/files: upload, list, retrieve, content, delete."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse

from tokenyard.gateway.errors import ApiError, not_found
from tokenyard.gateway.objects import StoredFile, list_object, page_of
from tokenyard.gateway.shelf import Shelf
from tokenyard.gateway.state import MyShelf, json_response
from tokenyard.gateway.uploads import read_upload

router = APIRouter(prefix="/v1/files")

_PURPOSES = ("batch", "batch_output", "user_data", "assistants", "fine-tune", "vision", "evals")


@router.post("")
async def create(request: Request, shelf: MyShelf) -> Response:
    """Upload a file: a form with the fields ``file`` and ``purpose``."""
    async with read_upload(request, shelf.incoming) as upload:
        purpose = upload.fields.get("purpose", "")
        if purpose not in _PURPOSES:
            known = ", ".join(_PURPOSES)
            raise ApiError(400, f"purpose {purpose[:64]!r} is unknown: use one of {known}", param="purpose")
        file = StoredFile(
            id=shelf.new_file_id(),
            bytes=upload.path.stat().st_size,
            created_at=int(time.time()),
            filename=upload.filename,
            purpose=purpose,
        )
        shelf.add_file(upload.path, file)
    return json_response(file)


@router.get("")
async def list_files(
    shelf: MyShelf,
    purpose: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """The files there are."""
    files = [file for file in await asyncio.to_thread(shelf.files) if purpose in (None, file.purpose)]
    page, more = page_of(files, after, limit, newest_first=order == "desc")
    return json_response(list_object([msgspec.to_builtins(file) for file in page], more=more))


@router.get("/{file_id}")
async def retrieve(file_id: str, shelf: MyShelf) -> Response:
    """What is known of a file."""
    return json_response(_file(shelf, file_id))


@router.get("/{file_id}/content")
async def content(file_id: str, shelf: MyShelf) -> Response:
    """The file itself."""
    file = _file(shelf, file_id)
    return FileResponse(shelf.content(file.id), media_type="application/octet-stream", filename=file.filename)


@router.delete("/{file_id}")
async def delete(file_id: str, shelf: MyShelf) -> Response:
    """Delete a file. A batch that was checked and submitted goes on without it."""
    _file(shelf, file_id)
    shelf.delete_file(file_id)
    return json_response({"id": file_id, "object": "file", "deleted": True})


def _file(shelf: Shelf, file_id: str) -> StoredFile:
    file = shelf.file(file_id)
    if file is None:
        raise not_found("File object", file_id)
    return file

"""Batches of the gateway on their way: check the file, submit it, gather results, make the output files known.

Gateways may share a folder: one runs a batch, the others wait for their turn, and find it done or go on with it.
Each step may be cut off by a crash: at its next start the gateway goes on with every batch that is not final. A job's
id comes from its batch and custom_id, so what is submitted again runs once; the output keeps each custom_id once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from broker.client import Client, SubmitOptions
from broker.concurrency import cancel_all
from broker.connection import keep_trying
from broker.errors import TokenyardError, UnknownBatchError, UsageError
from broker.jobs import BatchCounts
from broker.settings import Settings
from broker.tenant_names import id_of_tenant
from tokenyard.batch_files import BatchOutput, errors_path_of, read_requests
from tokenyard.collecting import collect
from tokenyard.gateway.checking import check_file, good_lines
from tokenyard.gateway.objects import BatchError, BatchStatus, StoredBatch, StoredFile, with_counts
from tokenyard.gateway.shelf import Shelf
from tokenyard.gateway.turns import turn

log = logging.getLogger(__name__)

#: What the state of a batch in the queue means once all its jobs have ended.
_ENDINGS: dict[str, BatchStatus] = {"cancelled": "cancelled", "expired": "expired"}


class BatchRuns:
    """The batches that run, a task each. Used from one event loop."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, shelf: Shelf, batch: StoredBatch) -> None:
        """Run a batch to its end, or go on with it."""
        queue_id = id_of_tenant(shelf.tenant, batch.id)
        task = asyncio.ensure_future(self._run(shelf, batch.id, queue_id))
        self._tasks[queue_id] = task
        task.add_done_callback(lambda _task: self._tasks.pop(queue_id, None))

    async def cancel(self, shelf: Shelf, batch: StoredBatch) -> StoredBatch:
        """Cancel a batch: what runs is aborted; whoever runs it sees to the rest."""
        with shelf.alone():
            changed = shelf.batch(batch.id) or batch
            if changed.status in ("validating", "in_progress"):
                changed = _now(shelf, changed, "cancelling", "cancelling_at")
        try:
            await self._client.cancel(id_of_tenant(shelf.tenant, batch.id))
        except UnknownBatchError:  # nothing of it was submitted as yet: its task looks before it does
            log.debug("batch %s is cancelled before its first job", batch.id)
        return changed

    async def as_it_is(self, shelf: Shelf, batch: StoredBatch) -> StoredBatch:
        """The batch with the counts of this moment. Where whoever runs it goes, this gateway goes on with it."""
        if batch.is_final:
            return batch
        queue_id = id_of_tenant(shelf.tenant, batch.id)
        if queue_id not in self._tasks:
            self.start(shelf, batch)
        try:
            return with_counts(batch, await self._client.counts(queue_id))
        except UnknownBatchError:
            return batch

    async def close(self) -> None:
        """Leave the batches as they are: the queue goes on with them."""
        await cancel_all(list(self._tasks.values()))

    async def _run(self, shelf: Shelf, batch_id: str, queue_id: str) -> None:
        try:
            async with turn(shelf.lock_path(batch_id)):
                await keep_trying(lambda: self._attempt(shelf, batch_id, queue_id), log.warning)
        except TokenyardError as error:
            log.error("batch %s failed: %s", batch_id, error)
            if (batch := shelf.batch(batch_id)) is not None:
                _fail(shelf, batch, [BatchError(code="server_error", message=str(error))])
        except Exception:
            log.exception("batch %s stopped; the gateway goes on with it when it is started again", batch_id)

    async def _attempt(self, shelf: Shelf, batch_id: str, queue_id: str) -> None:
        """From where it is to its end; Redis may go away at any step."""
        batch = shelf.batch(batch_id)
        if batch is None or batch.is_final:
            return
        source = shelf.content(batch.input_file_id)
        if batch.status == "validating":
            checked = await self._check(shelf, batch, source)
            if checked is None:
                return
            batch = checked
        if batch.status == "in_progress":
            await self._submit(source, queue_id, batch)
            batch = shelf.batch(batch_id) or batch
        if batch.status == "cancelling":  # maybe since before its first job was there
            with suppress(UnknownBatchError):
                await self._client.cancel(queue_id)
        await self._gather(shelf, batch_id, queue_id)

    async def _check(self, shelf: Shelf, batch: StoredBatch, source: Path) -> StoredBatch | None:
        """The batch, in progress; None where it cannot run, or was cancelled meanwhile."""
        models = await self._client.registry.models()
        most = self._settings.max_request_bytes
        total, errors = await asyncio.to_thread(check_file, source, batch.endpoint, models, most)
        with shelf.alone():
            batch = shelf.batch(batch.id) or batch
            if batch.status == "cancelling":
                _now(shelf, batch, "cancelled", "cancelled_at")
                return None
            if errors:
                _fail(shelf, batch, errors)
                return None
            return _now(shelf, msgspec.structs.replace(batch, total=total), "in_progress", "in_progress_at")

    async def _submit(self, source: Path, queue_id: str, batch: StoredBatch) -> None:
        settings = self._settings
        options = SubmitOptions(
            durable=True,
            durable_replicas=settings.durable_replicas,
            max_backlog_jobs=settings.max_backlog_jobs,
            max_backlog_bytes=settings.max_backlog_bytes,
            completion_window_s=max(batch.expires_at - batch.created_at, 1),
            report=lambda text: log.info("batch %s: %s", batch.id, text),
        )
        try:
            if (await self._client.counts(queue_id)).sealed:
                return  # all of it was submitted before
        except UnknownBatchError:
            pass
        lines = read_requests(source, max_line_bytes=settings.max_request_bytes)
        try:
            await self._client.submit(good_lines(lines), queue_id, source="file", options=options)
        except UsageError:
            if (await self._client.counts(queue_id)).state == "open":
                raise
            return  # it was cancelled or expired meanwhile, and takes no more
        await self._client.seal(queue_id)

    async def _gather(self, shelf: Shelf, batch_id: str, queue_id: str) -> None:
        path = shelf.output_path(batch_id)
        with BatchOutput.open(path) as files:
            try:
                await collect(self._client, queue_id, files, lambda _results: None)
                counts = await self._client.counts(queue_id)
            except UnknownBatchError:  # cancelled before its first job
                counts = BatchCounts(state="cancelled")
            files.sync()
        with shelf.alone():
            batch = shelf.batch(batch_id)
            if batch is None:
                return
            batch = _now(shelf, with_counts(batch, counts), "finalizing", "finalizing_at")
        output = _publish(shelf, path, f"{batch_id}_output.jsonl")
        errors = _publish(shelf, errors_path_of(path), f"{batch_id}_error.jsonl")
        status = _ENDINGS.get(counts.state, "completed")
        batch = msgspec.structs.replace(batch, output_file_id=output, error_file_id=errors)
        _now(shelf, batch, status, f"{status}_at")
        await self._client.forget(queue_id)


def _publish(shelf: Shelf, path: Path, filename: str) -> str | None:
    """Make an output file known; None where it is empty."""
    if not path.exists() or not path.stat().st_size:
        path.unlink(missing_ok=True)
        return None
    made = int(time.time())
    file = StoredFile(
        id=shelf.new_file_id(),
        bytes=path.stat().st_size,
        created_at=made,
        filename=filename,
        purpose="batch_output",
    )
    shelf.add_file(path, file)
    return file.id


def _now(shelf: Shelf, batch: StoredBatch, status: BatchStatus, stamp: str) -> StoredBatch:
    """The batch changes its status; written down."""
    changed = msgspec.structs.replace(batch, status=status, **{stamp: int(time.time())})
    shelf.keep_batch(changed)
    return changed


def _fail(shelf: Shelf, batch: StoredBatch, errors: list[BatchError]) -> None:
    _now(shelf, msgspec.structs.replace(batch, errors=tuple(errors)), "failed", "failed_at")


def resume_all(runs: BatchRuns, shelves: Callable[[str], Shelf], tenants: list[str]) -> int:
    """Go on with every batch that is not final; returns how many there are."""
    resumed = 0
    for tenant in tenants:
        shelf = shelves(tenant)
        for batch in shelf.batches():
            if not batch.is_final:
                runs.start(shelf, batch)
                resumed += 1
    return resumed

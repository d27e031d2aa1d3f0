"""One batch file through a one-machine cluster: go on where an earlier run ended, run, write, sum up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from broker.client import Client, connect_client, new_batch_id
from broker.cluster import Heartbeat
from broker.concurrency import cancel_all
from broker.errors import InputFileError, UnknownBatchError
from broker.jobs import Result
from broker.openai_batch import LineError, RequestLine, failure_line
from broker.settings import Settings
from broker.store.monitor import MonitorStore
from tokenyard.batch_files import BatchOutput, read_requests
from tokenyard.collecting import collect
from tokenyard.device_tally import DeviceTally
from tokenyard.local_cluster import LocalCluster, WorkerSpec
from tokenyard.sidecar import remove_sidecar, sidecar_batch_id, write_sidecar
from tokenyard.views.progress import BatchProgress, ProgressView

#: Heartbeats are looked at this often (seconds).
_LOOK_S = 0.5
#: Bad lines shown one by one; the rest are counted.
_SHOWN_ERRORS = 5
#: After a stop, results that workers had handed in are waited for this long (seconds).
_LAST_RESULTS_S = 3.0


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What ``tokenyard run`` was asked for.

    Attributes:
        source: OpenAI Batch file.
        output: where the responses go.
        model: directory or hub name, or ``demo``.
        names: names that requests call it by.
        workers: what to start.
    """

    source: Path
    output: Path
    model: str
    names: tuple[str, ...]
    workers: tuple[WorkerSpec, ...]


class BatchRun:
    """Runs one batch file. Two signals: ``stop`` drains, a second one hands back what runs, too."""

    def __init__(self, options: RunOptions, settings: Settings, output: BatchOutput, view: ProgressView) -> None:
        self._options = options
        self._settings = settings
        self._output = output
        self._view = view
        self._stopping = asyncio.Event()
        self._cluster: LocalCluster | None = None
        self._progress = BatchProgress(total=0, done=0, failed=0, prompt_tokens=0, output_tokens=0)
        self._beats: dict[str, Heartbeat | None] = {}
        self.tally = DeviceTally()
        self.skipped = 0
        self.refused = 0
        self.left = 0

    @property
    def answered(self) -> int:
        """Requests that got their response in this run."""
        return self._progress.done

    @property
    def failed(self) -> int:
        """Requests that ended without one in this run."""
        return self._progress.failed

    def stop(self) -> None:
        """Drain; again: stop at once."""
        if self._stopping.is_set() and self._cluster is not None:
            self._cluster.stop_now()
        self._stopping.set()

    async def run(self) -> None:
        """Run what is not finished yet. Afterwards ``left`` says how many are, because of ``stop``.

        Raises:
            InputFileError: no line of the file can run.
            ClusterFailedError: no worker is left.
        """
        pending = self._pending()
        first = next(pending, None)
        if first is None:
            if self.refused and not self.skipped:
                raise InputFileError(f"{self._options.source}: no line can run; the reasons are above")
            return
        requests = chain([first], pending)
        async with (
            LocalCluster(self._settings, self._options.model, self._options.workers, self._view.note) as self._cluster,
            connect_client(self._cluster.redis_url, self._settings.result_ttl_s) as client,
        ):
            await client.registry.add_pool(self._settings.pool, self._options.names)
            await self._cluster.start()
            await self._run_batch(client, self._cluster, requests)

    def _pending(self) -> Iterator[RequestLine]:
        """Requests that have no result yet; lines that cannot run go to the error file."""
        source = self._options.source
        served = ", ".join(self._options.names)
        for item in read_requests(source, max_line_bytes=self._settings.max_request_bytes):
            if isinstance(item, LineError):
                self._refuse(item)
            elif item.custom_id in self._output.finished:
                self.skipped += 1
            elif item.model not in self._options.names:
                message = f"{source}:{item.line}: no worker serves model {item.model!r}; this run serves {served}"
                self._refuse(LineError(item.line, item.custom_id, "model_not_found", message))
            else:
                yield item

    def _refuse(self, error: LineError) -> None:
        self.refused += 1
        if self.refused <= _SHOWN_ERRORS:
            self._view.note(error.message)
        elif self.refused == _SHOWN_ERRORS + 1:
            self._view.note("more lines cannot run; all of them are in the error file")
        line = failure_line(job_id=None, custom_id=error.custom_id, code=error.code, message=error.message)
        self._output.write([], [line])

    async def _run_batch(self, client: Client, cluster: LocalCluster, requests: Iterator[RequestLine]) -> None:
        batch_id = await self._batch_id(client)
        look = asyncio.ensure_future(self._look(MonitorStore(client.redis, self._settings.pool)))
        watch = asyncio.ensure_future(cluster.watch())
        stop = asyncio.ensure_future(self._stopping.wait())
        work = asyncio.ensure_future(self._submit_and_collect(client, batch_id, requests))
        try:
            await asyncio.wait([look, watch, stop, work], return_when=asyncio.FIRST_COMPLETED)
            for task in (look, watch, work):
                if task.done():
                    task.result()
            if not work.done():
                await cancel_all([watch])
                await self._drain(client, cluster, batch_id)
        finally:
            await cancel_all([look, watch, stop, work])
        remove_sidecar(self._options.output)
        with suppress(UnknownBatchError):
            if (await client.counts(batch_id)).complete:
                await client.forget(batch_id)

    async def _batch_id(self, client: Client) -> str:
        """Go on with the batch of a run that was killed, where Redis still has it."""
        batch_id = sidecar_batch_id(self._options.output)
        if batch_id is not None:
            with suppress(UnknownBatchError):
                if (await client.counts(batch_id)).state == "open":
                    self._view.note(f"going on with batch {batch_id}")
                    return batch_id
        batch_id = new_batch_id()
        write_sidecar(self._options.output, batch_id)
        return batch_id

    async def _submit_and_collect(self, client: Client, batch_id: str, requests: Iterator[RequestLine]) -> None:
        await client.submit(_counted(requests, self._grow), batch_id, source=str(self._options.source))
        await client.seal(batch_id)
        await collect(client, batch_id, self._output, self._count)

    def _grow(self) -> None:
        p = self._progress
        self._progress = BatchProgress(p.total + 1, p.done, p.failed, p.prompt_tokens, p.output_tokens)

    def _count(self, results: list[Result]) -> None:
        now = asyncio.get_running_loop().time()
        done = failed = prompt_tokens = output_tokens = 0
        for result in results:
            done += result.ok
            failed += not result.ok
            prompt_tokens += result.prompt_tokens
            output_tokens += result.output_tokens
            self.tally.job_ended(
                result.worker,
                prompt_tokens=result.prompt_tokens,
                output_tokens=result.output_tokens,
                ok=result.ok,
                at=now,
            )
        p = self._progress
        self._progress = BatchProgress(
            p.total, p.done + done, p.failed + failed, p.prompt_tokens + prompt_tokens, p.output_tokens + output_tokens
        )

    async def _look(self, store: MonitorStore) -> None:
        while True:
            now = asyncio.get_running_loop().time()
            self._beats = await store.heartbeats()
            for name, beat in self._beats.items():
                if beat is not None:
                    self.tally.observe(now, name, beat)
            self._view.update(self._progress, self._beats, now)
            await asyncio.sleep(_LOOK_S)

    async def _drain(self, client: Client, cluster: LocalCluster, batch_id: str) -> None:
        """Finish what runs, keep its results, and take the rest out of the queue: the input file still has it."""
        self._view.note("draining: running requests are finished; once more stops them")
        await cluster.drain()
        ended = (await client.counts(batch_id)).ended
        await _within(_LAST_RESULTS_S, lambda: _true(self._progress.ended >= ended))
        self.left = self._progress.total - self._progress.ended
        await client.cancel(batch_id)

        async def cancelled() -> bool:
            return (await client.counts(batch_id)).complete

        await _within(_LAST_RESULTS_S, cancelled)


def _counted(requests: Iterator[RequestLine], count: Callable[[], None]) -> Iterator[RequestLine]:
    for request in requests:
        count()
        yield request


async def _true(value: bool) -> bool:
    return value


async def _within(seconds: float, condition: Callable[[], Awaitable[bool]]) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not await condition():  # noqa: ASYNC110  the condition lives in Redis
                await asyncio.sleep(0.05)

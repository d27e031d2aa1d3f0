"""One batch file through a one-machine cluster: go on where an earlier run ended, run, write, sum up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from broker.client import Client, connect_client, new_batch_id
from broker.concurrency import cancel_all, run_together
from broker.connection import keep_trying
from broker.errors import InputFileError, UnknownBatchError
from broker.heartbeat import Heartbeat
from broker.jobs import Result
from broker.openai_batch import LineError, RequestLine, failure_line, line_error, shown
from broker.settings import Settings
from broker.store.monitor import MonitorStore
from tokenyard.batch_files import BatchOutput
from tokenyard.collecting import write_results
from tokenyard.device_tally import DeviceTally
from tokenyard.local_cluster import LocalCluster, WorkerSpec
from tokenyard.refused_lines import RefusedLines
from tokenyard.sidecar import remove_sidecar, sidecar_batch_id, write_sidecar
from tokenyard.views.progress import BatchProgress, ProgressView

#: Heartbeats are looked at this often (seconds).
_LOOK_S = 0.5
#: After a stop, results that workers had handed in are waited for this long at most (seconds).
_LAST_RESULTS_S = 30.0
#: After a stop, the rest of the batch is taken out of the queue; this long is waited for that (seconds).
_WITHDRAW_S = 3.0


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
    """Runs one batch file. Two signals: ``stop`` drains, a second one hands back what runs, too.

    Attributes:
        tally: what each device did.
        skipped: requests that were finished before.
        stopped: whether ``stop`` came before the end.
        more: whether it came while the file was read: ``left`` counts the requests read so far.
    """

    def __init__(self, options: RunOptions, settings: Settings, output: BatchOutput, view: ProgressView) -> None:
        self._options = options
        self._settings = settings
        self._output = output
        self._view = view
        self._refused = RefusedLines(None, view.note)  # it counts and tells; ``output`` holds the error file
        self._stopping = asyncio.Event()
        self._submitted = asyncio.Event()
        self._cluster: LocalCluster | None = None
        self._progress = BatchProgress(total=0, done=0, failed=0, prompt_tokens=0, output_tokens=0)
        self._results_read = 0
        self._beats: dict[str, Heartbeat | None] = {}
        self.tally = DeviceTally()
        self.skipped = 0
        self.stopped = False
        self.more = False

    @property
    def answered(self) -> int:
        """Requests that got their response in this run."""
        return self._progress.done

    @property
    def failed(self) -> int:
        """Requests that ended without one in this run."""
        return self._progress.failed

    @property
    def refused(self) -> int:
        """Lines that cannot run."""
        return self._refused.count

    @property
    def left(self) -> int:
        """Requests that have no result."""
        return self._progress.total - self._progress.ended

    def stop(self) -> None:
        """Drain; again: stop at once."""
        if self._stopping.is_set() and self._cluster is not None:
            self._cluster.stop_now()
        self._stopping.set()

    async def run(self, lines: Iterable[RequestLine | LineError]) -> None:
        """Run what is not finished yet. Afterwards ``stopped`` says whether ``stop`` cut it short.

        Raises:
            InputFileError: no line of the file can run.
            ClusterFailedError: no worker is left.
        """
        requests = self._refused.without(self._unfinished(lines))
        first = next(requests, None)
        if first is None:
            if self.refused and not self.skipped:
                raise InputFileError(f"{self._options.source}: no line can run; the reasons are above")
            return
        async with (
            LocalCluster(self._settings, self._options.model, self._options.workers, self._view.note) as self._cluster,
            connect_client(self._cluster.redis_url, self._settings.result_ttl_s) as client,
        ):
            await client.registry.add_pool(self._settings.pool, self._options.names)
            await self._cluster.start()
            await self._run_batch(client, self._cluster, chain([first], requests))

    def _unfinished(self, lines: Iterable[RequestLine | LineError]) -> Iterator[RequestLine | LineError]:
        """Lines that have no result yet; those that cannot run go to the error file."""
        for line in lines:
            if isinstance(line, RequestLine) and line.custom_id in self._output.finished:
                self.skipped += 1
                continue
            line = self._checked(line)
            if isinstance(line, LineError):
                failure = failure_line(job_id=None, custom_id=line.custom_id, code=line.code, message=line.message)
                self._output.write([], [failure])
            yield line

    def _checked(self, line: RequestLine | LineError) -> RequestLine | LineError:
        if isinstance(line, LineError) or line.model in self._options.names:
            return line
        problem = f"no worker serves model {shown(line.model)}; this run serves {', '.join(self._options.names)}"
        source = str(self._options.source)
        return line_error("model_not_found", problem, line=line.line, source=source, custom_id=line.custom_id)

    async def _run_batch(self, client: Client, cluster: LocalCluster, requests: Iterator[RequestLine]) -> None:
        batch_id = await self._batch_id(client)
        store = MonitorStore(client.redis, self._settings.pool)
        look = asyncio.ensure_future(keep_trying(lambda: self._look(store, cluster), lambda _problem: None))
        watch = asyncio.ensure_future(cluster.watch())
        stop = asyncio.ensure_future(self._stopping.wait())
        work = asyncio.ensure_future(self._submit_and_collect(client, batch_id, requests))
        try:
            await asyncio.wait([look, watch, stop, work], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                for task in (look, watch):
                    if task.done():
                        task.result()
                self.stopped = True
                await cancel_all([watch])
                await self._drain(client, cluster, batch_id, work)
            if work.done():
                work.result()
        finally:
            await cancel_all([look, watch, stop, work])
        self._show()
        if self.stopped:
            await self._withdraw(client, batch_id)
        remove_sidecar(self._options.output)
        await self._forget(client, batch_id)

    async def _batch_id(self, client: Client) -> str:
        """Go on with the batch of a run that was killed, where Redis still has it."""
        batch_id = sidecar_batch_id(self._options.output)
        if batch_id is not None and await self._can_go_on(client, batch_id):
            self._view.note(f"going on with batch {batch_id}")
            return batch_id
        batch_id = new_batch_id()
        write_sidecar(self._options.output, batch_id)
        return batch_id

    async def _can_go_on(self, client: Client, batch_id: str) -> bool:
        """Whether Redis has the batch, and in our pool alone: what waits in another's may wait for ever."""
        if await client.pools_of(batch_id) != [self._settings.pool]:
            return False
        return (await client.counts(batch_id)).state == "open"

    async def _submit_and_collect(self, client: Client, batch_id: str, requests: Iterator[RequestLine]) -> None:
        await client.submit(self._until_stopped(requests), batch_id, source=str(self._options.source))
        await client.seal(batch_id)
        self._submitted.set()
        await keep_trying(lambda: self._collect(client, batch_id), self._view.note)

    def _until_stopped(self, requests: Iterator[RequestLine]) -> Iterator[RequestLine]:
        """Count the requests; after a stop the rest of the file is left alone."""
        for request in requests:
            p = self._progress
            self._progress = BatchProgress(p.total + 1, p.done, p.failed, p.prompt_tokens, p.output_tokens)
            yield request
            if self._stopping.is_set():
                self.more = True
                return

    async def _collect(self, client: Client, batch_id: str) -> None:
        """Write results as they come. After an outage, and after a killed run, it begins with some that are written."""
        self._results_read = 0
        async for chunk in client.results(batch_id):
            new = [result for result in chunk if result.custom_id not in self._output.finished]
            write_results(self._output, new)
            self._count(new)
            self._results_read += len(chunk)

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

    async def _look(self, store: MonitorStore, cluster: LocalCluster) -> None:
        while True:
            now = asyncio.get_running_loop().time()
            self._beats = dict(sorted((await store.heartbeats()).items()))
            for name, beat in self._beats.items():
                if beat is not None:
                    self.tally.observe(now, name, beat)
            cluster.saw(self._beats)
            self._show()
            await asyncio.sleep(_LOOK_S)

    def _show(self) -> None:
        """Show the progress, once it is known how much there is to do."""
        if self._submitted.is_set():
            self._view.update(self._progress, self._beats, asyncio.get_running_loop().time())

    async def _drain(self, client: Client, cluster: LocalCluster, batch_id: str, work: asyncio.Task[None]) -> None:
        """Finish what runs, and keep its results."""
        self._view.note("draining: running requests are finished; once more stops them")
        await cluster.drain()
        await run_together(asyncio.wait([work]), self._submitted.wait())
        if not work.done():
            ended = (await client.counts(batch_id)).ended

            async def all_read() -> bool:
                return work.done() or self._results_read >= ended

            await _within(_LAST_RESULTS_S, all_read)

    async def _withdraw(self, client: Client, batch_id: str) -> None:
        """Take the rest out of the queue: the input file still has it. Nobody may read results by now."""
        with suppress(UnknownBatchError):  # nothing was submitted
            await client.cancel(batch_id)

            async def cancelled() -> bool:
                return (await client.counts(batch_id)).complete

            await _within(_WITHDRAW_S, cancelled)

    async def _forget(self, client: Client, batch_id: str) -> None:
        with suppress(UnknownBatchError):
            if (await client.counts(batch_id)).complete:
                await client.forget(batch_id)


async def _within(seconds: float, condition: Callable[[], Awaitable[bool]]) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not await condition():  # noqa: ASYNC110  the condition lives in Redis
                await asyncio.sleep(0.05)

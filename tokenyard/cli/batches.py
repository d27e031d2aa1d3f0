"""Commands for batches on a cluster that runs: follow, collect, cancel."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.client import Client, connect_client
from broker.concurrency import cancel_all, on_stop_signals
from broker.connection import keep_trying
from broker.errors import UsageError
from broker.jobs import BatchCounts
from broker.settings import Settings
from tokenyard.batch_files import BatchOutput, errors_path_of
from tokenyard.cli import submit, top
from tokenyard.cli.runtime import RedisUrl, err, redis_url_of, run, settings_of
from tokenyard.cluster_snapshot import devices_of
from tokenyard.collecting import collect, write_results
from tokenyard.views.progress import BatchProgress, ProgressView
from tokenyard.views.text import counted

_LOOK_S = 0.5
#: Results read in one call.
_READ_RESULTS = 500

BatchId = Annotated[str, typer.Argument(metavar="BATCH", help="Id of the batch, as `tokenyard submit` printed it.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    submit.add_to(app)
    app.command()(follow)
    app.command("collect")(collect_command)
    app.command()(cancel)
    app.command()(top.status)
    app.command()(top.top)


def follow(batch: BatchId, redis_url: RedisUrl = None) -> None:
    """Show a batch's progress until it has ended. Ctrl-C leaves it running."""
    settings = settings_of(redis_url=redis_url)
    run(_follow(settings, batch), settings)


async def _follow(settings: Settings, batch: str) -> int:
    async with connect_client(redis_url_of(settings), settings.result_ttl_s) as client:
        await client.counts(batch)  # an unknown one is said before anything is shown
        with ProgressView(err) as view:
            ended = await _until_stopped(keep_trying(lambda: _watch(client, batch, view), view.note))
        if not ended:
            _say(f"the batch goes on without this: `tokenyard follow {batch}` shows it again")
            return 130
        _say(f"batch {batch}: {_words(await client.counts(batch))}; `tokenyard collect {batch} -o FILE` writes them")
        return 0


async def _watch(client: Client, batch: str, view: ProgressView) -> None:
    """Show the batch until it is complete."""
    told = False
    while True:
        counts = await client.counts(batch)
        devices = await devices_of(client, await client.pools_of(batch))
        view.update(_progress(counts), devices, asyncio.get_running_loop().time())
        if counts.complete:
            return
        if not told and not counts.sealed and counts.ended == counts.total:
            view.note(f"all jobs there are have ended; `tokenyard submit FILE --batch {batch}` must still complete it")
            told = True
        await asyncio.sleep(_LOOK_S)


def collect_command(
    batch: BatchId,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="File for the responses.")],
    errors: Annotated[Path | None, typer.Option(help="File for failed requests; OUT.errors otherwise.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end, or write what is there.")] = True,
    redis_url: RedisUrl = None,
) -> None:
    """Write a batch's results as OpenAI's Batch API does. Run it again to go on: no result is written twice."""
    settings = settings_of(redis_url=redis_url)
    run(_collect(settings, batch, output, errors, wait), settings)


async def _collect(settings: Settings, batch: str, output: Path, errors: Path | None, wait: bool) -> int:
    async with connect_client(redis_url_of(settings), settings.result_ttl_s) as client:
        await client.counts(batch)
        with BatchOutput.open(output, errors) as files:
            before = len(files.finished)
            stopped = False
            if wait:
                with ProgressView(err) as view:
                    stopped = not await _until_stopped(_collect_all(client, batch, files, view))
            else:
                await _collect_there(client, batch, files)
            files.sync()
        _say_collected(files, before, output, errors or errors_path_of(output))
        if stopped or not (await client.counts(batch)).complete:
            _say(f"more are to come: `tokenyard collect {batch} -o {output}` goes on")
        return 130 if stopped else 0


async def _collect_all(client: Client, batch: str, files: BatchOutput, view: ProgressView) -> None:
    watch = asyncio.ensure_future(keep_trying(lambda: _watch(client, batch, view), view.note))
    try:
        # After an outage it begins at the first result again: ``files`` drops those it has.
        await keep_trying(lambda: collect(client, batch, files, lambda _results: None), lambda _problem: None)
        await watch
    finally:
        await cancel_all([watch])


async def _collect_there(client: Client, batch: str, files: BatchOutput) -> None:
    for pool in await client.pools_of(batch):
        after = "0"
        while chunk := await client.store(pool).results(batch, after, limit=_READ_RESULTS, block=False):
            write_results(files, chunk)
            after = chunk[-1].cursor


def _say_collected(files: BatchOutput, before: int, output: Path, errors: Path) -> None:
    already = f" ({counted(before, 'result')} there before)" if before else ""
    _say(f"{counted(files.written, 'response')} written to {output}{already}")
    if files.failed:
        _say(f"{counted(files.failed, 'request')} without a response; the reasons are in {errors}")


def cancel(
    batch: BatchId,
    requests: Annotated[
        list[str] | None, typer.Argument(metavar="[CUSTOM_ID]...", help="Only these of its requests.")
    ] = None,
    redis_url: RedisUrl = None,
) -> None:
    """Cancel a batch, or some of its requests: what runs is aborted, what waits does not start.

    Results there are can be collected.
    """
    settings = settings_of(redis_url=redis_url)
    run(_cancel(settings, batch, requests or []), settings)


async def _cancel(settings: Settings, batch: str, requests: list[str]) -> None:
    async with connect_client(redis_url_of(settings), settings.result_ttl_s) as client:
        if requests:
            await _cancel_requests(client, batch, requests)
            return
        counts = await client.counts(batch)
        if counts.state != "cancelled":
            if counts.complete:
                raise UsageError(f"batch {batch} has ended already: there is nothing to cancel")
            counts = await client.cancel(batch)
        typer.echo(f"batch {batch}: {_words(counts)}")


async def _cancel_requests(client: Client, batch: str, requests: list[str]) -> None:
    cancelled = await client.cancel_jobs(batch, requests)
    if not cancelled:
        raise UsageError(f"batch {batch} has none of these requests that has not ended: there is nothing to cancel")
    typer.echo(f"batch {batch}: {counted(cancelled, 'request')} cancelled, {_words(await client.counts(batch))}")


async def _until_stopped(main: Coroutine[Any, Any, None]) -> bool:
    """Whether ``main`` came to its end; False where Ctrl-C or SIGTERM came first."""
    stop = asyncio.Event()
    on_stop_signals(lambda _name: stop.set())
    work, stopped = asyncio.ensure_future(main), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
        return work.done()
    finally:
        await cancel_all([work, stopped])


def _progress(counts: BatchCounts) -> BatchProgress:
    failed = counts.failed + counts.cancelled
    return BatchProgress(counts.total, counts.done, failed, counts.prompt_tokens, counts.output_tokens)


def _words(counts: BatchCounts) -> str:
    left = counts.total - counts.ended
    text = f"{counts.done:,} done, {counts.failed:,} failed, {counts.cancelled:,} cancelled"
    return f"{text}, {left:,} ending" if left else text


def _say(text: str) -> None:
    err.print(text, markup=False, highlight=False)

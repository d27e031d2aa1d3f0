"""Commands for jobs that failed for good: list, show, retry and drop their dead letters."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import typer

from broker.client import Client, connect_client
from broker.dead_letters import DeadLetter, UnknownLetterError
from broker.errors import UsageError
from broker.openai_batch import ID_PREFIX
from broker.settings import Settings
from broker.store.dead import DeadLetterStore
from tokenyard.cli.runtime import PoolName, RedisUrl, err, out, redis_url_of, run, settings_of
from tokenyard.dead_retry import retry_letters
from tokenyard.views.dead import letter_lines, letters_view, without_letter_line
from tokenyard.views.text import counted

Jobs = Annotated[list[str] | None, typer.Argument(metavar="[JOB]...", help="Ids of jobs.", show_default=False)]
Batch = Annotated[str | None, typer.Option(help="Only jobs of this batch.")]
All = Annotated[bool, typer.Option("--all", help="All there are.")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines: a line of JSON a letter.")]


class _Wanted(NamedTuple):
    """Which letters: of these jobs, or of this batch, or all."""

    jobs: Sequence[str] = ()
    batch: str | None = None
    everything: bool = False


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(no_args_is_help=True, help="Jobs that failed for good: why, and once more.")
    group.command("list")(list_letters)
    group.command("show")(show)
    group.command("retry")(retry)
    group.command("drop")(drop)
    app.add_typer(group, name="dead")


def list_letters(
    batch: Batch = None, as_json: AsJson = False, pool: PoolName = None, redis_url: RedisUrl = None
) -> None:
    """List the dead letters of a pool, newest first."""
    settings = settings_of(redis_url=redis_url, pool=pool)

    async def listed(client: Client, pool: str, wanted: _Wanted) -> int:
        store = DeadLetterStore(client.redis, pool)
        found = await store.letters(await store.ids())
        letters = _of_batch(found, wanted.batch)
        if as_json:
            _print_json(letters)
        elif letters:
            out.print(letters_view(letters), soft_wrap=True, markup=False, highlight=False)
        else:
            _say(f"pool {pool} has no dead letters")
        if bare := await store.without_letter(found):
            _say(without_letter_line(bare))
        return 0

    _with_letters(listed, _Wanted([], batch, everything=True), settings)


def show(job: Jobs = None, as_json: AsJson = False, pool: PoolName = None, redis_url: RedisUrl = None) -> None:
    """Show dead letters with every attempt: where, when, why, how long."""

    async def shown(client: Client, pool: str, wanted: _Wanted) -> int:
        letters = await _chosen(client, pool, wanted)
        if as_json:
            _print_json(letters)
            return 0
        for line in [line for letter in letters for line in letter_lines(letter)]:
            typer.echo(line)
        return 0

    _with_letters(shown, _Wanted(job or []), settings_of(redis_url=redis_url, pool=pool))


def retry(
    job: Jobs = None,
    batch: Batch = None,
    everything: All = False,
    pool: PoolName = None,
    redis_url: RedisUrl = None,
) -> None:
    """Queue the jobs again, in a new batch for each batch that they failed in. Prints the new batches' ids."""
    _with_letters(_retry, _Wanted(job or [], batch, everything), settings_of(redis_url=redis_url, pool=pool))


async def _retry(client: Client, pool: str, wanted: _Wanted) -> int:
    report = await retry_letters(client, pool, await _chosen(client, pool, wanted))
    for old, (new, queued) in report.batches.items():
        _say(f"{counted(queued, 'job')} of batch {old} queued again; `tokenyard collect {new} -o FILE` writes them")
        typer.echo(new)
    for letter in report.bodiless:
        _say(f"job {letter.job_id}: its request was too long to be kept; submit its line again from its file")
    return 1 if report.bodiless else 0


def drop(
    job: Jobs = None,
    batch: Batch = None,
    everything: All = False,
    pool: PoolName = None,
    redis_url: RedisUrl = None,
) -> None:
    """Delete dead letters. The jobs' results stay with their batches."""
    _with_letters(_drop, _Wanted(job or [], batch, everything), settings_of(redis_url=redis_url, pool=pool))


async def _drop(client: Client, pool: str, wanted: _Wanted) -> int:
    store = DeadLetterStore(client.redis, pool)
    if wanted.everything and not wanted.jobs and wanted.batch is None:
        dropped = await store.drop(await store.ids())  # also those that cannot be read
    elif wanted.jobs:
        dropped = await store.drop(_known(wanted.jobs, await store.ids(), pool))  # likewise
    else:
        dropped = await store.drop([letter.job_id for letter in await _chosen(client, pool, wanted)])
    _say(f"{counted(dropped, 'dead letter')} dropped")
    return 0


def _with_letters(
    do: Callable[[Client, str, _Wanted], Coroutine[Any, Any, int]], wanted: _Wanted, settings: Settings
) -> None:
    """Run what is done to letters, connected; its answer is the exit code."""

    async def main() -> int:
        async with connect_client(redis_url_of(settings), settings.result_ttl_s) as client:
            return await do(client, settings.pool, wanted)

    run(main(), settings)


async def _chosen(client: Client, pool: str, wanted: _Wanted) -> list[DeadLetter]:
    """The letters that were asked for.

    Raises:
        UsageError: nothing was asked for.
        UnknownLetterError: one of them is not there.
    """
    store = DeadLetterStore(client.redis, pool)
    if wanted.jobs:
        letters = await store.letters(_ids(wanted.jobs))
        _known(wanted.jobs, [letter.job_id for letter in letters], pool)
        return letters
    if wanted.batch is None and not wanted.everything:
        raise UsageError("which? Give ids as `tokenyard dead list` shows them, --batch BATCH or --all")
    return _of_batch(await store.letters(await store.ids()), wanted.batch)


def _of_batch(letters: Sequence[DeadLetter], batch: str | None) -> list[DeadLetter]:
    """Those of this batch; all, where none is named."""
    return [letter for letter in letters if batch in (None, letter.batch)]


def _ids(jobs: Sequence[str]) -> list[str]:
    """Each once, as Redis has them."""
    return list(dict.fromkeys(job.removeprefix(ID_PREFIX) for job in jobs))


def _known(jobs: Sequence[str], known: Sequence[str], pool: str) -> list[str]:
    """The ids of jobs, all of which are known.

    Raises:
        UnknownLetterError: one is not.
    """
    ids = _ids(jobs)
    for missing in [job for job in ids if job not in known]:
        raise UnknownLetterError(f"pool {pool} has no dead letter of job {missing}: see `tokenyard dead list`")
    return ids


def _print_json(letters: Sequence[DeadLetter]) -> None:
    for letter in letters:
        typer.echo(msgspec.json.encode(letter).decode())


def _say(text: str) -> None:
    err.print(text, markup=False, highlight=False)

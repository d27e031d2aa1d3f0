"""The command ``profile``: measure one engine."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from broker.connection import connected
from broker.errors import UsageError
from broker.settings import Settings
from broker.store.profiles import ProfileStore
from tokenyard.cli.engine_options import with_engine_options
from tokenyard.cli.runtime import PoolName, RedisUrl, err, log_to_stderr, out, redis_url_of, run, settings_of
from tokenyard.engine_choice import EngineChoice
from tokenyard.side_by_side import side_by_side
from tokenyard.views.profile import profile_view


class _Place(NamedTuple):
    """Among the engines that are measured on a host: how many there are, and whose turn it is."""

    engines: int
    turn: int


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    app.command("profile")(with_engine_options(profile_command))


def profile_command(
    choice: EngineChoice,
    budget_s: Annotated[
        float, typer.Option(min=1, max=3600, help="Seconds to measure for, once the engine is up.")
    ] = 25.0,
    engines: Annotated[
        int,
        typer.Option(
            "--side-by-side",
            min=1,
            max=256,
            help="Engines measured on this host at once, this one included: wait until all are up.",
        ),
    ] = 1,
    turn: Annotated[
        int,
        typer.Option(
            min=1, max=256, help="Of those side by side, wait until the ones with a lower turn are measured and gone."
        ),
    ] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the profile here, as JSON.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the profile as JSON.")] = False,
    pool: PoolName = None,
    redis_url: RedisUrl = None,
) -> None:
    """Measure one engine in under a minute: how long its prefills and decode steps take, and how sure that is.

    Nobody else should use the device meanwhile, but engines that will work beside it. With a Redis, the pool's workers
    of just this configuration find the profile by themselves; --output writes a file for `tokenyard worker --profile`.
    """
    settings = settings_of(redis_url=redis_url, pool=pool)
    log_to_stderr(settings)
    run(_profile(choice, budget_s, _Place(engines, turn), output, json, settings), settings)


async def _profile(
    choice: EngineChoice,
    budget_s: float,
    place: _Place,
    output: Path | None,
    as_json: bool,
    settings: Settings,
) -> None:
    if place.turn > place.engines:
        raise UsageError(f"--turn {place.turn}: of {place.engines} engines --side-by-side, none has that turn")
    from tokenyard.engine_profiling import profile_engine  # brings scipy, which no other command waits for

    async with AsyncExitStack() as stack:
        store: ProfileStore | None = None
        if settings.redis_url:  # before the measurement, so that a wrong address is told at once
            store = ProfileStore(await stack.enter_async_context(connected(redis_url_of(settings))), settings.pool)
        if output is not None:
            _write(output, "")

        def report(text: str) -> None:
            err.print(text, markup=False, highlight=False)

        beside = side_by_side(settings.state_dir / "profiling", place.engines, report, turn=place.turn)
        until_its_turn = await stack.enter_async_context(beside)
        found = await profile_engine(choice, budget_s, report, until_its_turn)
        if output is not None:
            _write(output, found.record.to_json(indent=2) + "\n")
        if as_json:
            typer.echo(found.record.to_json(indent=2))
        else:
            out.print(profile_view(found))
        if store is not None:
            await store.save(found.record)
            err.print(f"stored for pool {settings.pool}", markup=False, highlight=False)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None

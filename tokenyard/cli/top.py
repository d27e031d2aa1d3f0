"""Commands that look at a whole cluster: status and top."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import tty
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Annotated

import orjson
import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from broker.client import Client, connect_client
from broker.concurrency import on_stop_signals, run_together
from broker.connection import address, keep_trying
from broker.settings import Settings
from tokenyard.cli.runtime import RedisUrl, out, redis_url_of, run, settings_of
from tokenyard.cluster_snapshot import ClusterSnapshot, as_json, newest_batches, read_cluster
from tokenyard.views.cluster import cluster_view
from tokenyard.views.eta import Eta

_BATCHES = 20
_REFRESH_S = 1.0
#: Batches are looked for this often: it scans the whole server (seconds).
_LOOK_FOR_BATCHES_S = 10.0


def status(
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    redis_url: RedisUrl = None,
) -> None:
    """Show pools, schedulers, workers, waiting jobs and the newest batches."""
    settings = settings_of(redis_url=redis_url)
    run(_status(settings, as_json), settings)


async def _status(settings: Settings, machine: bool) -> None:
    async with connect_client(redis_url_of(settings)) as client:
        snapshot = await read_cluster(client, await newest_batches(client, _BATCHES))
    if machine:
        typer.echo(orjson.dumps(as_json(snapshot), option=orjson.OPT_INDENT_2))
    else:
        out.print(cluster_view(snapshot), soft_wrap=False)


def top(
    once: Annotated[bool, typer.Option("--once", help="Print it once and leave, as without a terminal.")] = False,
    redis_url: RedisUrl = None,
) -> None:
    """Watch the cluster: pools with their plan, devices, waiting jobs and batches, each second. Ctrl-C or q leaves."""
    settings = settings_of(redis_url=redis_url)
    live = out.is_terminal and not out.is_dumb_terminal and not once
    run(_top(settings) if live else _status(settings, machine=False), settings)


async def _top(settings: Settings) -> None:
    url = redis_url_of(settings)
    leave = asyncio.Event()
    on_stop_signals(lambda _name: leave.set())
    async with connect_client(url) as client:
        with Live(console=out, screen=True, auto_refresh=False) as live, _keys(lambda key: key == b"q" and leave.set()):
            await run_together(_Top(client, live, address(url)).run(), leave.wait())


class _Top:
    """Keeps the screen up to date."""

    def __init__(self, client: Client, live: Live, where: str) -> None:
        self._client = client
        self._live = live
        self._where = where
        self._batches: list[str] = []
        self._looked_at = float("-inf")
        self._etas: dict[str, Eta] = {}

    async def run(self) -> None:
        await keep_trying(self._refresh, lambda problem: self._live.update(Text(problem), refresh=True))

    async def _refresh(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            if now() - self._looked_at >= _LOOK_FOR_BATCHES_S:
                self._batches = await newest_batches(self._client, _BATCHES)
                self._looked_at = now()
            self._show(await read_cluster(self._client, self._batches), now())
            await asyncio.sleep(_REFRESH_S)

    def _show(self, snapshot: ClusterSnapshot, now: float) -> None:
        left: dict[str, float | None] = {}
        for batch_id, counts in snapshot.batches.items():
            left[batch_id] = self._etas.setdefault(batch_id, Eta()).update(now, counts.ended, counts.total)
        self._etas = {batch_id: self._etas[batch_id] for batch_id in left}
        head = Text(f"tokenyard top, {self._where}; q leaves", style="dim", no_wrap=True)
        self._live.update(Group(head, Text(), cluster_view(snapshot, left)), refresh=True)


@contextmanager
def _keys(on_key: Callable[[bytes], object]) -> Generator[None]:
    """Hand over keys as they are pressed, where there is a keyboard; Ctrl-C stays a signal."""
    if not sys.stdin.isatty():
        yield
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    loop = asyncio.get_running_loop()
    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, lambda: on_key(os.read(keyboard, 1)))
    try:
        yield
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)

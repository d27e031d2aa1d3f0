"""The devices of a pool, one row each."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from broker.heartbeat import Heartbeat
from tokenyard.views.text import name_cell, percent, printable

#: A heartbeat older than this is shown with its age (seconds); a worker sends one at least every second.
_OLD_S = 3.0
#: A log line names this many devices.
_NAMED = 8
_STATE_STYLE = {"ready": "green", "starting": "yellow", "draining": "yellow", "paused": "yellow"}


def device_table(
    devices: Mapping[str, Heartbeat | None], now: float | None, depths: Mapping[str, int] | None = None
) -> Table:
    """A table of devices.

    Args:
        devices: worker name -> its last heartbeat, None where it expired or cannot be read.
        now: seconds on the clock of the heartbeats (Redis'), to show which ones are old; None: not shown.
        depths: worker name -> jobs bound to it: then that is shown instead of what waits in the engine, and each
            device's share of all tokens a second.
    """
    total = sum(tokens_per_s(beat) for beat in devices.values() if beat is not None)
    table = plain_table()
    table.add_column("device", max_width=28)
    table.add_column("state")
    names = ("tokens/s", "share", "running", "queue", "KV used", "jobs")
    for name in names if depths else ("tokens/s", "running", "waiting", "KV used", "jobs"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, beat in devices.items():
        if beat is None:
            table.add_row(name_cell(name), _no_heartbeat())
            continue
        state, speed, running, waiting, *rest = _cells(beat, now)
        if depths:
            share = percent(tokens_per_s(beat) / total if total else None)
            table.add_row(name_cell(name), state, speed, share, running, f"{depths.get(name, 0):,}", *rest)
        else:
            table.add_row(name_cell(name), state, speed, running, waiting, *rest)
    return table


def plain_table() -> Table:
    """A table as all views draw them: a line under the head; names give way first where the terminal is narrow."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False, header_style="dim")


def device_lines(devices: Mapping[str, Heartbeat | None]) -> list[str]:
    """Each device in some words, for a log."""
    lines = [_words(printable(name), beat) for name, beat in devices.items()]
    return lines if len(lines) <= _NAMED else [*lines[:_NAMED], f"{len(lines) - _NAMED} more devices"]


def tokens_per_s(beat: Heartbeat) -> float:
    """Prompt and output tokens a second lately."""
    return beat.prompt_tokens_per_s + beat.output_tokens_per_s


def _cells(beat: Heartbeat, now: float | None) -> list[str | Text]:
    state = Text(beat.state, style=_STATE_STYLE[beat.state], no_wrap=True, overflow="ellipsis")
    if now is not None and now - beat.seen > _OLD_S:
        state.append(f", silent {now - beat.seen:.0f} s", style="bold red")
    used = 1 - beat.kv_tokens_free / beat.kv_tokens_total if beat.kv_tokens_total else None
    return [
        state,
        f"{tokens_per_s(beat):,.0f}",
        f"{beat.running}/{beat.seats}",
        f"{beat.waiting}",
        percent(used if used is None else max(0.0, used)),
        f"{beat.jobs_total:,}",
    ]


def _no_heartbeat() -> Text:
    return Text("no heartbeat", style="bold red", no_wrap=True, overflow="ellipsis")


def _words(name: str, beat: Heartbeat | None) -> str:
    if beat is None:
        return f"{name}: no heartbeat"
    if beat.state == "starting":
        return f"{name}: starting"
    return f"{name}: {beat.state} {tokens_per_s(beat):,.0f} tok/s {beat.running}/{beat.seats} running"

"""What if: devices more or fewer, slower for a while. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from broker.errors import UsageError
from planner.fleet import Entry, same_device
from planner.simulate import SimulatedDevice, SpeedChange

_CHANGE = re.compile(r"([+-]?)(\d+)x(.+?)(?: +tp *(\d+))?", re.IGNORECASE)
_SLOW = re.compile(r"(.+)@(\d*\.?\d+)(?:-(\d*\.?\d+))?x(\d*\.?\d+)")


class Change(NamedTuple):
    """So many devices more (fewer where negative); ``tp`` 0: as those that are there, or 1."""

    more: int
    device: str
    tp: int


def parse_devices(text: str) -> list[Change]:
    """Devices such as ``+2xL4``, ``-1xL40S+1xA100-SXM4 tp 2`` or, to describe a cluster, ``2xH100-SXM,4xL4``.

    Raises:
        UsageError: it is not of this form.
    """
    found: list[Change] = []
    for part in re.split(r",\s*(?=[+-]?\d+x)|\s*(?=[+-]\d+x)", text.strip()):
        match = _CHANGE.fullmatch(part.strip())
        if match is None and part.strip():
            raise UsageError(f"{text!r}: give devices as +2xL4, -1xL40S or '+1xA100-SXM4 tp 2'")
        if match is not None:
            count = int(match[2]) * (-1 if match[1] == "-" else 1)
            found.append(Change(count, match[3].strip(), int(match[4] or 0)))
    if not any(change.more for change in found):
        raise UsageError(f"{text!r} names no device: give them as +2xL4")
    return found


def changed(entries: Sequence[Entry], changes: Sequence[Change]) -> list[Entry]:
    """The cluster with these devices more and fewer.

    Kinds that it has are added as they are there, others with its model and the usual seats.

    Raises:
        UsageError: fewer devices are there than shall go, or none is left.
    """
    left = list(entries)
    for change in changes:
        if change.more >= 0:
            left.append(_added(entries, change))
        else:
            _remove(left, change)
    if not any(entry.count for entry in left):
        raise UsageError("no device is left in the cluster: take fewer away")
    return left


def _added(entries: Sequence[Entry], change: Change) -> Entry:
    alike = next((entry for entry in entries if _is(entry, change)), None)
    if alike is not None:
        return alike.model_copy(update={"count": change.more})
    model = entries[0].model if entries else ""
    return Entry(device=change.device, model=model, tp=change.tp or 1, count=change.more)


def _remove(entries: list[Entry], change: Change) -> None:
    take = -change.more
    there = sum(entry.count for entry in entries if _is(entry, change))
    if there < take:
        raise UsageError(f"{take} {change.device} cannot go: the cluster has {there}")
    for n, entry in enumerate(entries):
        if take and _is(entry, change):
            gone = min(take, entry.count)
            entries[n] = entry.model_copy(update={"count": entry.count - gone})
            take -= gone


def _is(entry: Entry, change: Change) -> bool:
    named = same_device(entry.device, change.device) or same_device(change.device, entry.device)
    return named and change.tp in (0, entry.tp)


def parse_slow(text: str, devices: Sequence[SimulatedDevice]) -> list[SpeedChange]:
    """``L4-1@100-200x3``: that device, or all whose names begin so, runs 3 times slower from 100 to 200 seconds.

    Without an end it stays so.

    Raises:
        UsageError: it is not of this form, or there is no such device.
    """
    match = _SLOW.fullmatch(text)
    if match is None or float(match[4]) <= 0:
        raise UsageError(f"--slow {text}: give DEVICE@FROM-TOxFACTOR, such as L4-1@100-200x3 (seconds)")
    begin, end = float(match[2]), float(match[3]) if match[3] else None
    if end is not None and end <= begin:
        raise UsageError(f"--slow {text}: the end must come after the beginning")
    names = [device.name for device in devices if device.name == match[1]]
    names = names or [d.name for d in devices if same_device(d.name, match[1]) or same_device(d.label, match[1])]
    if not names:
        raise UsageError(f"--slow {text}: no device {match[1]!r}; there are {', '.join(d.name for d in devices[:20])}")
    slowed = [SpeedChange(begin, name, float(match[4])) for name in names]
    return slowed + ([SpeedChange(end, name, 1.0) for name in names] if end is not None else [])

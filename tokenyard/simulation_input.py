"""Reads what a simulation is made of: clusters, profiles, traces and batch files."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from broker.errors import InputFileError, UsageError
from broker.heartbeat import Heartbeat
from broker.openai_batch import RequestLine
from broker.profiles import is_record
from planner.fleet import Entry, KnownDevice, parse_clusters, parse_profiles
from planner.traces import Lengths, lengths_of_bodies, parse_trace
from tokenyard import known_devices
from tokenyard.batch_files import read_requests
from tokenyard.profile_file import read_profile_file


def read_known(paths: Iterable[Path]) -> list[KnownDevice]:
    """Devices from folders with fits.csv and kv.csv or with records of measurements, and from single profiles.

    Raises:
        InputFileError: a file cannot be read.
        UsageError: a file is no profile; names it.
    """
    known: list[KnownDevice] = []
    for path in paths:
        if not path.is_dir():
            known.append(_profile_of(path))
            continue
        found = [_profile_of(file) for file in sorted(path.glob("*.json")) if is_record(_bytes(file))]
        if (path / "fits.csv").exists():
            found += parse_profiles(_table(path / "fits.csv"), _table(path / "kv.csv"), str(path))
        if not found:
            raise InputFileError(f"{path} has no profiles: neither fits.csv and kv.csv, nor a record of a measurement")
        known += found
    return known


def read_cluster(path: Path, name: str | None) -> tuple[str, list[Entry]]:
    """A cluster of a file and its name; the paths of its profiles count from the file.

    Raises:
        InputFileError: the file cannot be read.
        UsageError: it is no description of clusters, or has none of that name.
    """
    clusters = parse_clusters(_bytes(path), str(path))
    if name is None and len(clusters) > 1:
        raise UsageError(f"{path} has several clusters: say --name with one of {', '.join(clusters)}")
    found = name if name is not None else next(iter(clusters))
    if found not in clusters:
        raise UsageError(f"{path} has no cluster {found!r}; there are {', '.join(clusters)}")
    return found, [
        entry.model_copy(update={"profile": str(path.parent / entry.profile)}) if entry.profile else entry
        for entry in clusters[found]
    ]


def read_own_profiles(entries: Iterable[Entry]) -> dict[str, KnownDevice]:
    """The devices of entries that name a profile's file; what the file does not say is as the entry says.

    Raises:
        InputFileError: a file cannot be read.
        UsageError: a file is no profile; names it.
    """
    found: dict[str, KnownDevice] = {}
    for entry in entries:
        if entry.profile:
            known = _profile_of(Path(entry.profile), entry.tp)
            found[entry.profile] = replace(known, device=entry.device) if entry.device else known
    return found


def pool_cluster(beats: Mapping[str, Heartbeat | None]) -> tuple[list[Entry], list[KnownDevice]]:
    """The devices of a running pool, from the profiles in their heartbeats.

    Raises:
        UsageError: a worker has no profile, or there is no worker.
    """
    known: list[KnownDevice] = []
    for name, beat in beats.items():
        if beat is None:
            continue
        kind = known_devices.known_device("", beat).kind
        if kind is None:
            raise UsageError(f"worker {name} has no profile: run `tokenyard profile` on its device")
        budget = kind.max_batched_tokens
        known.append(KnownDevice(beat.device or name, beat.model, 1, kind.profile, budget, kind.context_tokens))
    if not known:
        raise UsageError("the pool has no worker: start one, or describe the devices with --cluster")
    kinds = Counter(known)
    numbered = _told_apart(list(kinds))
    entries = [Entry(device=d.device, model=d.model, count=n) for d, n in zip(numbered, kinds.values(), strict=True)]
    return entries, numbered


def read_trace(path: Path, columns: Sequence[str]) -> Lengths:
    """The requests of a CSV file with a header; see ``parse_trace``.

    Raises:
        InputFileError: it cannot be read, or has no request in it.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return parse_trace(csv.reader(file), columns, str(path))
    except OSError as error:
        raise InputFileError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputFileError(f"{path} is no CSV file: {error}") from None


def read_batch(
    path: Path, mean_output: float | None, bytes_per_token: float, rng: np.random.Generator, max_line_bytes: int
) -> Lengths:
    """The requests of an OpenAI Batch file, with lengths as far as it tells; see ``lengths_of_bodies``.

    Raises:
        InputFileError: it cannot be read, or has no request in it.
        UsageError: a request does not say how long its answer may be, and ``mean_output`` does not either.
    """
    bodies: list[tuple[int, int]] = []
    left_out, problem = 0, ""
    for line in read_requests(path, max_line_bytes=max_line_bytes):
        if isinstance(line, RequestLine):
            bodies.append((len(line.body), line.max_tokens))
        else:
            left_out, problem = left_out + 1, problem or line.message
    if not bodies:
        raise InputFileError(problem)
    lengths = lengths_of_bodies(bodies, mean_output, bytes_per_token, rng)
    return replace(lengths, left_out=left_out, problem=problem)


def _told_apart(kinds: list[KnownDevice]) -> list[KnownDevice]:
    """Devices of one name that are not alike get numbers: their names are what finds them."""
    seen: Counter[str] = Counter()
    names: list[KnownDevice] = []
    for kind in kinds:
        seen[kind.device] += 1
        number = seen[kind.device]
        names.append(replace(kind, device=f"{kind.device} ({number})") if number > 1 else kind)
    return names


def _profile_of(path: Path, tp: int = 1) -> KnownDevice:
    found = read_profile_file(path)
    return KnownDevice.of_record(found.record) if found.record else KnownDevice(path.stem, "", tp, found.profile)


def _table(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise InputFileError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputFileError(f"{path} is no CSV file: {error}") from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputFileError(f"cannot read {path}: {error.strerror}") from None

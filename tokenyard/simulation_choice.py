"""What shall be simulated, as a person asks for it: which devices, which requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from broker.errors import UsageError
from broker.heartbeat import Heartbeat
from planner.fleet import Entry, KnownDevice
from planner.simulate import Requests
from planner.traces import Lengths, parse_arrivals, requests_of
from planner.what_if import changed, parse_devices
from tokenyard.simulation_input import pool_cluster, read_batch, read_cluster, read_known, read_own_profiles, read_trace


@dataclass(frozen=True, slots=True)
class ClusterChoice:
    """Which devices, one of three ways.

    Attributes:
        file: clusters as JSON.
        name: which of them.
        devices: a cluster in a word, such as ``2xH100-SXM,4xL4``.
        model: the model of these.
        from_redis: those of a running pool.
        profiles: folders and files of profiles.
        what_if: devices more or fewer to compare with, such as ``+2xL4``; empty for none.
    """

    file: Path | None = None
    name: str | None = None
    devices: str | None = None
    model: str = ""
    from_redis: bool = False
    profiles: tuple[Path, ...] = ()
    what_if: str = ""


@dataclass(frozen=True, slots=True)
class ClusterFound:
    """A cluster with what its devices are found by."""

    name: str
    entries: list[Entry]
    known: list[KnownDevice]
    files: dict[str, KnownDevice] = field(default_factory=dict[str, KnownDevice])


@dataclass(frozen=True, slots=True)
class RequestChoice:
    """Which requests: of a trace or of a batch file.

    Attributes:
        trace: a CSV file.
        columns: its columns, joined by commas; empty where the header tells.
        batch: an OpenAI Batch file.
        mean_output: mean output tokens of its requests; None: their ``max_tokens``.
        bytes_per_token: bytes of a body for each prompt token.
        jobs: how many; None: as many as the file has.
        arrivals: when they come, see ``parse_arrivals``.
    """

    trace: Path | None = None
    columns: str = ""
    batch: Path | None = None
    mean_output: float | None = None
    bytes_per_token: float = 4.0
    jobs: int | None = None
    arrivals: str = "backlog"


def find_cluster(choice: ClusterChoice, pool: Mapping[str, Heartbeat | None]) -> ClusterFound:
    """The cluster that is asked for.

    Args:
        choice: what is asked for.
        pool: heartbeats of the running pool, where that is it.

    Raises:
        InputFileError: a file cannot be read.
        UsageError: no cluster is asked for, more than one, or it makes no sense.
    """
    asked = (choice.file is not None) + (choice.devices is not None) + choice.from_redis
    if asked != 1:
        raise UsageError("say which devices, one way: --cluster FILE, --devices 2xL4 or --from-redis")
    known = read_known(choice.profiles)
    if choice.file is not None:
        name, entries = read_cluster(choice.file, choice.name)
        return ClusterFound(name, entries, known, read_own_profiles(entries))
    if choice.from_redis:
        entries, seen = pool_cluster(pool)
        return ClusterFound("the pool", entries, seen + known)
    text = choice.devices or ""
    nothing = Entry(device="-", model=choice.model, count=0)
    return ClusterFound(text, changed([nothing], parse_devices(text)), known)


def find_requests(choice: RequestChoice, rng: np.random.Generator, max_line_bytes: int) -> tuple[Requests, Lengths]:
    """The requests that are asked for, and what they were made of.

    Raises:
        InputFileError: a file cannot be read, or has no request in it.
        UsageError: no file is named, or two; or the rest makes no sense.
    """
    arrivals = parse_arrivals(choice.arrivals)
    if choice.trace is not None and choice.batch is None:
        columns = [name.strip() for name in choice.columns.split(",")] if choice.columns else []
        if columns and len(columns) not in (2, 3):
            raise UsageError(f"--columns {choice.columns}: give PROMPT,OUTPUT or PROMPT,OUTPUT,TIME")
        lengths = read_trace(choice.trace, columns)
    elif choice.batch is not None and choice.trace is None:
        lengths = read_batch(choice.batch, choice.mean_output, choice.bytes_per_token, rng, max_line_bytes)
    else:
        raise UsageError("say which requests, one way: --trace FILE.csv or --batch FILE.jsonl")
    return requests_of(lengths, choice.jobs, arrivals, rng), lengths

"""Measured devices by name, and the clusters made of them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from benchmarks.cluster import BenchmarkError
from broker.throughput import DeviceKind, Profile
from planner.fleet import COEFFICIENTS
from planner.simulate import SimulatedDevice

#: Requests that every engine runs at once (vLLM's max_num_seqs), and the range of its tokens a step
#: (max_num_batched_tokens): the largest power of two with which a step full of prefill takes at most this (seconds).
SEATS = 512
LEAST_BATCHED_TOKENS, MOST_BATCHED_TOKENS = 2048, 16384
LONGEST_STEP_S = 1.1


class Part(BaseModel):
    """Devices of one kind in a cluster; ``model`` and ``tp`` (tensor-parallel degree) say what runs on them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = Field(min_length=1)
    model: str = Field(min_length=1)
    tp: int = Field(default=1, ge=1)
    count: int = Field(default=1, ge=1)


_ClusterFile = TypeAdapter(dict[str, list[Part]])
_8B = "Llama-3.1-8B"

#: The clusters of the tables, all with Llama-3.1-8B.
DEFAULT_CLUSTERS: Mapping[str, Sequence[Part]] = {
    "H100+2xL40S": (Part(device="H100-SXM", model=_8B), Part(device="L40S", model=_8B, count=2)),
    "A100+2xRTX4090": (Part(device="A100-SXM4", model=_8B), Part(device="RTX-4090", model=_8B, count=2)),
    "H100+A100+L40S+RTX4090": tuple(
        Part(device=name, model=_8B) for name in ("H100-SXM", "A100-SXM4", "L40S", "RTX-4090")
    ),
    "A100+2xL4": (Part(device="A100-SXM4", model=_8B), Part(device="L4", model=_8B, count=2)),
    "A100+T4tp4+L4tp2": (
        Part(device="A100-SXM4", model=_8B),
        Part(device="T4", model=_8B, tp=4),
        Part(device="L4", model=_8B, tp=2),
    ),
    "64 of six kinds": (
        Part(device="H100-SXM", model=_8B, count=8),
        Part(device="A100-SXM4", model=_8B, count=12),
        Part(device="L40S", model=_8B, count=16),
        Part(device="RTX-4090", model=_8B, count=16),
        Part(device="L4", model=_8B, count=8),
        Part(device="T4", model=_8B, tp=4, count=4),
    ),
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """Devices by label, alike ones together: ``kinds`` holds a label and a kind with its count each."""

    name: str
    kinds: tuple[tuple[str, DeviceKind], ...]

    @property
    def fleet(self) -> list[DeviceKind]:
        """The kinds, for the linear program."""
        return [kind for _, kind in self.kinds]

    @property
    def count(self) -> int:
        """Devices."""
        return sum(kind.count for kind in self.fleet)

    @property
    def longest(self) -> int:
        """Tokens of the longest job that any device holds."""
        return max(kind.profile.kv_tokens for kind in self.fleet)

    def devices(self) -> list[SimulatedDevice]:
        """One by one, for the simulator."""
        return [
            SimulatedDevice(f"{label}-{k}-{i}", replace(kind, count=1))
            for k, (label, kind) in enumerate(self.kinds)
            for i in range(kind.count)
        ]


class Catalogue:
    """The measured devices of a data folder: fitted times and KV memory by device, model and tensor-parallel degree."""

    def __init__(self, data: Path) -> None:
        """Read ``data/profiles/fits.csv`` and ``kv.csv``.

        Raises:
            BenchmarkError: one cannot be read or lacks a column, or a number in it is none.
        """
        self._fits: dict[tuple[str, str, int], Mapping[str, str]] = {}
        self._kv: dict[tuple[str, str, int], int] = {}
        fits, kv = data / "profiles" / "fits.csv", data / "profiles" / "kv.csv"
        for row in _rows(fits, ("device", "model", "tp", *COEFFICIENTS)):
            self._fits[_key(row, fits)] = row
        for row in _rows(kv, ("device", "model", "tp", "free_kv_tokens_replica")):
            self._kv[_key(row, kv)] = int(_number(row, "free_kv_tokens_replica", kv))

    def cluster(self, name: str, parts: Sequence[Part]) -> Cluster:
        """Look a cluster's devices up.

        Raises:
            BenchmarkError: a device is not there, its name is ambiguous, or it has no KV memory for the model.
        """
        if not parts:
            raise BenchmarkError(f"the cluster {name!r} has no devices")
        return Cluster(name, tuple(self._named(part) for part in parts))

    def usable(self, model: str) -> list[Part]:
        """One device each of all that have times and KV memory for a model, by name and degree."""
        models = [name for name in (model, f"{model}(scaled)") if any(key[1] == name for key in self._fits)]
        keys = [key for key in sorted(self._fits) if key[1] in models and self._kv.get(key, 0) >= LEAST_BATCHED_TOKENS]
        return [Part(device=device, model=name, tp=tp) for device, name, tp in keys]

    def profile(self, part: Part, seats: int = SEATS, kv_tokens: int | None = None) -> Profile:
        """Times and sizes of a device.

        Args:
            part: which.
            seats: requests its engine runs at once.
            kv_tokens: what its KV cache holds; None: by ``kv.csv``.
        """
        key = self._find(part)
        held = self._kv.get(key) if kv_tokens is None else kv_tokens
        if held is None:
            raise BenchmarkError(f"profiles/kv.csv has no line for {_words(key)}: how many KV tokens it holds")
        if held < 16:
            raise BenchmarkError(f"{_words(key)} has no memory left for KV tokens: take a higher tp or another device")
        times = [_number(self._fits[key], column, Path("fits.csv")) for column in COEFFICIENTS]
        return Profile(*times, kv_tokens=held, seats=seats)

    def _named(self, part: Part) -> tuple[str, DeviceKind]:
        profile = self.profile(part)
        degree = f" tp{part.tp}" if part.tp > 1 else ""
        kind = DeviceKind(profile, part.count, max_batched_tokens=batched_tokens(profile))
        return f"{self._find(part)[0].partition('(')[0]}{degree}", kind

    def _find(self, part: Part) -> tuple[str, str, int]:
        for model in (part.model, f"{part.model}(scaled)"):
            exact = (part.device, model, part.tp)
            if exact in self._fits:
                return exact
            found = [key for key in self._fits if key[1:] == exact[1:] and _abbreviates(part.device, key[0])]
            if len(found) > 1:
                names = ", ".join(sorted(key[0] for key in found))
                raise BenchmarkError(f"the device {part.device!r} is ambiguous for {model}: give one of {names}")
            if found:
                return found[0]
        known = ", ".join(sorted({key[0] for key in self._fits if key[1].startswith(part.model)})) or "no device"
        raise BenchmarkError(
            f"profiles/fits.csv has no line for {_words((part.device, part.model, part.tp))}; it knows {known}"
        )


def batched_tokens(profile: Profile) -> int:
    """Tokens a step that suit a device: see ``LONGEST_STEP_S``."""
    tokens = MOST_BATCHED_TOKENS
    while tokens > LEAST_BATCHED_TOKENS and tokens * profile.prefill_b > LONGEST_STEP_S:
        tokens //= 2
    return tokens


def read_clusters(file: Path | None) -> Mapping[str, Sequence[Part]]:
    """The clusters of a JSON file (name -> list of device, model, tp, count); the default ones without a file.

    Raises:
        BenchmarkError: it cannot be read, or is not of this form.
    """
    if file is None:
        return DEFAULT_CLUSTERS
    try:
        clusters = _ClusterFile.validate_python(orjson.loads(file.read_bytes()))
    except OSError as error:
        raise BenchmarkError(f"cannot read the clusters {file}: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise BenchmarkError(f"{file} is no JSON file: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ": ".join(str(part) for part in first["loc"])
        raise BenchmarkError(
            f"{file}: {place}: {first['msg']}; a cluster is a list of device, model, tp, count"
        ) from None
    if not clusters:
        raise BenchmarkError(f"{file} holds no cluster")
    return clusters


def _abbreviates(short: str, name: str) -> bool:
    """Whether a name begins with ``short``, and goes on with a separator."""
    short = short.replace(" ", "-")
    return name == short or (name.startswith(short) and name[len(short)] in "-(")


def _words(key: tuple[str, str, int]) -> str:
    return f"{key[0]} with {key[1]} at tp {key[2]}"


def _rows(file: Path, columns: Sequence[str]) -> Iterator[Mapping[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            if missing := [column for column in columns if column not in (reader.fieldnames or ())]:
                raise BenchmarkError(f"{file} has no column {missing[0]}")
            yield from reader
    except OSError as error:
        raise BenchmarkError(f"cannot read {file}: {error.strerror}: --data names the folder with profiles/") from None


def _key(row: Mapping[str, str], file: Path) -> tuple[str, str, int]:
    return row["device"], row["model"], int(_number(row, "tp", file))


def _number(row: Mapping[str, str], column: str, file: Path) -> float:
    try:
        return float(row[column])
    except (TypeError, ValueError):
        raise BenchmarkError(f"{file}: {column} of {row['device']} is no number: {row[column]!r}") from None

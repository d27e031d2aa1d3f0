"""The devices of a simulated cluster: a description in JSON, and measured profiles found by name. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from broker.errors import UsageError
from broker.profiles import ProfileRecord
from broker.throughput import DeviceKind, Profile
from planner.simulate import SimulatedDevice

#: Where neither the description nor the profile says: vLLM's defaults for a large GPU.
_SEATS = 256
_BATCHED_TOKENS = 8192
_NO_LIMIT = 2**31
_BLOCK_TOKENS = 16
#: Coefficients of a profile, in the order of ``Profile``, as columns of fits.csv.
COEFFICIENTS = (
    "prefill_a_s",
    "prefill_b_s_per_tok",
    "prefill_c_s_per_tok2",
    "decode_d_s",
    "decode_e_s_per_req",
    "decode_f_s_per_ctxtok",
)


class Entry(BaseModel):
    """Some devices that are alike, as a description of a cluster names them.

    Attributes:
        device: name of a profile's device, or how it begins.
        model: name of the model; any where empty.
        tp: devices that share the model (tensor parallel).
        count: how many of them.
        seats: most requests running at once on each; None: as the profile says.
        max_num_batched_tokens: tokens a step computes at most; None: as the profile says.
        profile: file of its profile, where it has one of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = Field(default="", max_length=256)
    model: str = Field(default="", max_length=512)
    tp: int = Field(default=1, ge=1, le=1024)
    count: int = Field(default=1, ge=0, le=10_000)
    seats: int | None = Field(default=None, ge=1, le=10**6)
    max_num_batched_tokens: int | None = Field(default=None, ge=1, le=10**9)
    profile: str = Field(default="", max_length=4096)


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """A kind of device with its times and sizes.

    Attributes:
        device: its name.
        model: the model it was measured with.
        tp: devices that share the model.
        profile: times and sizes; ``kv_tokens`` is -1 where nothing tells.
        max_batched_tokens: tokens a step computes at most; 0 where nothing tells.
        context_tokens: longest prompt plus output it takes, in tokens.
    """

    device: str
    model: str
    tp: int
    profile: Profile
    max_batched_tokens: int = 0
    context_tokens: int = _NO_LIMIT

    @classmethod
    def of_record(cls, record: ProfileRecord) -> KnownDevice:
        """What ``tokenyard profile`` measured."""
        return cls(
            record.device,
            record.model,
            record.tensor_parallel,
            record.profile,
            max_batched_tokens=record.max_batched_tokens,
        )

    @property
    def label(self) -> str:
        """Its name, and how many share the model."""
        return self.device if self.tp == 1 else f"{self.device} tp {self.tp}"


def parse_clusters(text: str | bytes, source: str) -> dict[str, list[Entry]]:
    """Clusters by name, from JSON ``{"name": [{"device": ..., "model": ..., "tp": 1, "count": 2}, ...]}``.

    Raises:
        UsageError: it is none; the message names ``source`` and the first place that is wrong.
    """
    try:
        clusters = TypeAdapter(dict[str, list[Entry]]).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"{part}: " for part in first["loc"])
        raise UsageError(f"{source}: not a description of clusters: {place}{first['msg']}") from None
    for name, entries in clusters.items():
        if not sum(entry.count for entry in entries):
            raise UsageError(f"{source}: cluster {name!r} has no device: give it one")
        if any(not entry.device and not entry.profile for entry in entries):
            raise UsageError(f"{source}: cluster {name!r}: an entry needs a device, or a profile")
    if not clusters:
        raise UsageError(f"{source}: there is no cluster in it")
    return clusters


def parse_profiles(
    fits: Iterable[Mapping[str, str]], kv: Iterable[Mapping[str, str]], source: str
) -> list[KnownDevice]:
    """Known devices from the rows of fits.csv and kv.csv.

    Raises:
        UsageError: a column is missing, or a number is none.
    """
    try:
        tokens = {_key(row): int(row["free_kv_tokens_replica"]) for row in kv}
        return [KnownDevice(*_key(row), _profile(row, tokens.get(_key(row), -1))) for row in fits]
    except KeyError as error:
        raise UsageError(f"{source}: there is no column {error} in its fits.csv or kv.csv") from None
    except (ValueError, TypeError) as error:  # a short row has None for its last columns
        raise UsageError(f"{source}: fits.csv or kv.csv: {error}") from None


def _profile(row: Mapping[str, str], kv_tokens: int) -> Profile:
    a, b, c, d, e, f = (float(row[column]) for column in COEFFICIENTS)
    return Profile(a, b, c, d, e, f, kv_tokens, _SEATS)


def _key(row: Mapping[str, str]) -> tuple[str, str, int]:
    return row["device"], row["model"], int(row["tp"])


def find(known: Sequence[KnownDevice], device: str, model: str, tp: int) -> KnownDevice:
    """The known device of that name, or the only one whose name begins so; see ``same_device``.

    Raises:
        UsageError: there is none, or more than one; lists what there is.
    """
    of_name = [k for k in known if k.device == device] or [k for k in known if same_device(k.device, device)]
    if not of_name:
        names = ", ".join(sorted({k.device for k in known})) or "none: give --profiles"
        raise UsageError(f"no profile of a device {device!r}; known are {names}")
    fitting = [k for k in of_name if k.tp == tp and _same_model(k.model, model)]
    if not fitting:
        pairs = ", ".join(sorted({f"{k.device} with {k.model} at tp {k.tp}" for k in of_name}))
        raise UsageError(f"no profile of {device!r} with {model or 'any model'} at tp {tp}; known are {pairs}")
    if len(fitting) > 1:
        pairs = ", ".join(f"{k.device} with {k.model}" for k in fitting)
        raise UsageError(f"{device!r} could be {pairs}: say which")
    return fitting[0]


def same_device(name: str, given: str) -> bool:
    """Whether a device may be called so: by its name, or its beginning up to a mark (``L4`` is no L40S)."""
    name, given = name.casefold(), given.casefold()
    return name == given or (bool(given) and name.startswith(given) and not name[len(given)].isalnum())


def _same_model(known: str, given: str) -> bool:
    return not given or given in (known, known.partition("(")[0])  # "Llama-3.1-8B(scaled)" tells how it was measured


def kind_of(entry: Entry, known: KnownDevice) -> DeviceKind:
    """The kind that an entry describes.

    Raises:
        UsageError: the model does not leave a KV block free on it, or its KV size is not known.
    """
    tokens = known.profile.kv_tokens
    what = f"{known.device} with {known.model} at tp {known.tp}"
    if tokens < 0:
        raise UsageError(f"{what}: its KV size is not known: add it to kv.csv")
    if tokens < _BLOCK_TOKENS:
        raise UsageError(f"{what} has {tokens} KV tokens free: the model does not fit; take more tp, or leave it out")
    seats = entry.seats or known.profile.seats
    budget = entry.max_num_batched_tokens or known.max_batched_tokens or _BATCHED_TOKENS
    profile = replace(known.profile, seats=seats)
    return DeviceKind(profile, max_batched_tokens=max(budget, seats), context_tokens=known.context_tokens)


def fleet(
    entries: Sequence[Entry], known: Sequence[KnownDevice], files: Mapping[str, KnownDevice]
) -> list[SimulatedDevice]:
    """The devices of a cluster, named by their kind and numbered: ``L4-1``, ``L4-2``, ``A100-SXM4-tp2-1``.

    Args:
        entries: the cluster.
        known: devices that an entry may name.
        files: devices of entries with a profile of their own, by ``Entry.profile``.

    Raises:
        UsageError: a device is not known, or cannot hold its model.
    """
    numbers: Counter[str] = Counter()
    devices: list[SimulatedDevice] = []
    for entry in entries:
        if not entry.count:
            continue
        found = files[entry.profile] if entry.profile else find(known, entry.device, entry.model, entry.tp)
        kind, short = kind_of(entry, found), _short(found)
        for _ in range(entry.count):
            numbers[short] += 1
            devices.append(SimulatedDevice(f"{short}-{numbers[short]}", kind, label=found.label))
    return devices


def _short(known: KnownDevice) -> str:
    name = re.split(r"-\d+GB|\(", known.device)[0] or known.device
    return name if known.tp == 1 else f"{name}-tp{known.tp}"


def most_tokens(devices: Iterable[SimulatedDevice]) -> int:
    """Tokens, prompt and output, of the longest request that one of them holds at all."""
    return max(
        min(device.kind.profile.kv_tokens // _BLOCK_TOKENS * _BLOCK_TOKENS, device.kind.context_tokens)
        for device in devices
    )

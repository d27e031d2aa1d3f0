"""An inventory read from its description, with a clear word on what is wrong with one. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from broker.errors import UsageError
from planner.device_catalogue import find_spec, words
from planner.inventory import CPU, MOST_DEVICES, DeviceGroup, Interconnect, Machine, linked

_GIB = 1 << 30
_MOST_CORES = 4096
#: What a device's description may claim over its maker's: memory is counted in several ways.
_MEMORY_SLACK = 1.1


class _Devices(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(min_length=1, max_length=128)
    count: int = Field(default=1, ge=1, le=_MOST_CORES)
    memory_gib: float | None = Field(default=None, gt=0, le=65_536, allow_inf_nan=False)


class _Machine(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = Field(default=None, min_length=1, max_length=128)
    names: list[str] = Field(default=[], max_length=10_000)
    devices: list[_Devices] = Field(min_length=1, max_length=64)
    interconnect: Interconnect | None = None
    price_per_hour: float | None = Field(default=None, ge=0, le=10**6, allow_inf_nan=False)
    min_workers: int = Field(default=0, ge=0, le=_MOST_CORES)
    max_workers: int | None = Field(default=None, ge=1, le=_MOST_CORES)


class _Inventory(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    machine: list[_Machine] = Field(min_length=1, max_length=10_000)


def parse_inventory(value: object, source: str, text: str = "") -> tuple[Machine, ...]:
    """Machines from a description: ``{"machine": [{"name": …, "devices": [{"kind": …, "count": …}], …}, …]}``.

    Args:
        value: what a TOML or JSON file holds.
        source: the file's name, for messages.
        text: the file's text, in which a message finds the line.

    Raises:
        UsageError: it is no such description; names file, line where it is found, and key.
    """
    try:
        found = _Inventory.model_validate(value, strict=False)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        # A key that nobody knows is why another one is missing.
        unknown = [found for found in errors if found["type"] == "extra_forbidden"]
        raise UsageError(_what_is_wrong((unknown or errors)[0], source, text)) from None
    machines: list[Machine] = []
    for number, described in enumerate(found.machine):
        try:
            machines.extend(_machines(described))
        except ValueError as error:
            place = _place(source, text, ("machine", number))
            raise UsageError(f"{place}: {_machine_name(described, number)}: {error}") from None
    names = [machine.name for machine in machines]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{source}: the machine {twice[0]!r} is there twice: host names are unique")
    return tuple(machines)


def as_description(machines: Sequence[Machine]) -> Mapping[str, Any]:
    """The description that ``parse_inventory`` reads back as these machines."""
    return {"machine": [_description(machine) for machine in machines]}


def _description(machine: Machine) -> dict[str, Any]:
    devices = [
        {"kind": group.kind, "count": group.count, "memory_gib": round(group.memory_bytes / _GIB, 2)}
        for group in machine.groups
    ]
    return {"name": machine.name, "devices": devices, "interconnect": machine.interconnect}


def _machines(described: _Machine) -> list[Machine]:
    names = [*([described.name] if described.name else []), *described.names]
    if not names:
        raise ValueError("it has no name: give `name`, or `names` of machines that are alike")
    if bad := [name for name in names if not name.isprintable() or not name.strip() or len(name) > 128]:
        raise ValueError(f"{bad[0]!r} is no host name")
    most = described.max_workers
    if most is not None and described.min_workers > most:
        raise ValueError(f"min_workers {described.min_workers} is above max_workers {most}")
    groups = tuple(_group(devices) for devices in described.devices)
    if len({words(group.kind) for group in groups}) < len(groups):
        raise ValueError("a kind of device is there twice: add the counts up")
    interconnect = described.interconnect or linked([group.kind for group in groups])
    whole = Machine("", groups, interconnect, described.price_per_hour, described.min_workers, most)
    return [replace(whole, name=name) for name in names]


def _group(devices: _Devices) -> DeviceGroup:
    spec = find_spec(devices.kind)
    cpu = words(devices.kind) == CPU
    if devices.memory_gib is None and spec is None:
        what = "the machine's memory" if cpu else "the memory of one device"
        raise ValueError(f"memory_gib of {devices.kind!r} is missing: say {what}")
    if not cpu and devices.count > MOST_DEVICES:
        raise ValueError(f"{devices.count} x {devices.kind}: no machine has more than {MOST_DEVICES}")
    memory = spec.memory_bytes if devices.memory_gib is None and spec else int((devices.memory_gib or 0) * _GIB)
    if spec and memory > _MEMORY_SLACK * spec.memory_bytes:
        has = spec.memory_bytes / _GIB
        raise ValueError(f"memory_gib {devices.memory_gib:g} of {devices.kind} is impossible: one has {has:.0f} GiB")
    return DeviceGroup(devices.kind, devices.count, memory)


def _machine_name(described: _Machine, number: int) -> str:
    return described.name or (described.names[0] if described.names else f"machine {number + 1}")


def _what_is_wrong(error: ErrorDetails, source: str, text: str) -> str:
    """The first error of a description, with its place and, for a key that nobody knows, the likely one."""
    where = error["loc"]
    key = ".".join(str(part + 1) if isinstance(part, int) else str(part) for part in where)
    said = error["msg"]
    if error["type"] == "extra_forbidden":
        known = _keys_at(where)
        close = difflib.get_close_matches(str(where[-1]), known, 1)
        said = (
            f"there is no such key; did you mean {close[0]!r}?"
            if close
            else f"there is no such key; there are {', '.join(known)}"
        )
    return f"{_place(source, text, where)}: {key or 'the file'}: {said}"


def _keys_at(where: Sequence[int | str]) -> list[str]:
    model: type[BaseModel] = _Inventory if len(where) == 1 else _Machine if len(where) == 3 else _Devices
    return list(model.model_fields)


def _place(source: str, text: str, where: Sequence[int | str]) -> str:
    """The file, and the line of a key or of its machine where the text shows it."""
    numbers = [part for part in where if isinstance(part, int)]
    heads = [found.start() for found in re.finditer(r"^\s*\[\[\s*machine\s*\]\]", text, re.MULTILINE)]
    if not heads:  # JSON: a key that is there only once tells
        keys = [found.start() for found in re.finditer(rf'"{re.escape(str(where[-1]))}"\s*:', text)] if where else []
        return f"{source}:{text.count(chr(10), 0, keys[0]) + 1}" if len(keys) == 1 else source
    if not numbers or numbers[0] >= len(heads):
        return source
    begin = heads[numbers[0]]
    end = heads[numbers[0] + 1] if numbers[0] + 1 < len(heads) else len(text)
    key = re.compile(rf"(?<![\w-]){re.escape(str(where[-1]))}\s*=").search(text, begin, end)
    at = key.start() if key else begin + len(text[begin:end]) - len(text[begin:end].lstrip())
    return f"{source}:{text.count(chr(10), 0, at) + 1}"

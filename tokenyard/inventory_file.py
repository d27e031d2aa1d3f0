"""An inventory from a file, or of this host."""

from __future__ import annotations

import csv
import subprocess
import tomllib
from pathlib import Path

import orjson
import psutil

from broker.errors import InputFileError, UsageError
from planner.device_catalogue import words
from planner.inventory import CPU, DeviceGroup, Machine, linked
from planner.inventory_reading import parse_inventory

_MIB = 1 << 20
#: nvidia-smi answers in a second or two; a broken driver lets it hang (seconds).
_ANSWER_S = 20.0
_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")


def read_inventory(path: Path) -> tuple[Machine, ...]:
    """The machines of a TOML or JSON file; see ``planner.inventory_reading.parse_inventory``.

    Raises:
        InputFileError: it cannot be read.
        UsageError: it is no TOML or JSON, or no inventory; names the line where it is known.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputFileError(f"cannot read the inventory {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputFileError(f"the inventory {path} is no text") from None
    try:
        value: object = orjson.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{path}:{error.lineno}: no JSON: {error.msg}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: no TOML (a JSON file ends in .json): {error}") from None
    return parse_inventory(value, str(path), text)


def this_host(name: str) -> Machine:
    """This machine: its NVIDIA GPUs or, without any, its cores.

    Args:
        name: what to call it.
    """
    gpus = parse_gpus(_nvidia_smi())
    if not gpus:
        cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
        return Machine(name, (DeviceGroup(CPU, cores or 1, psutil.virtual_memory().total),))
    return Machine(name, gpus, linked([group.kind for group in gpus]))


def parse_gpus(text: str) -> tuple[DeviceGroup, ...]:
    """Groups of GPUs from nvidia-smi's list of names and MiB; lines that are none are left out."""
    groups: dict[str, DeviceGroup] = {}
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) != 2 or not row[1].strip().isdigit():
            continue
        kind, memory = row[0].strip(), int(row[1]) * _MIB
        known = groups.get(words(kind))
        least = min(memory, known.memory_bytes) if known else memory
        groups[words(kind)] = DeviceGroup(kind, known.count + 1 if known else 1, least)
    return tuple(groups.values())


def _nvidia_smi() -> str:
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_ANSWER_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""

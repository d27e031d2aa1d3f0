"""The jobs of a chaos run as batch files, the bad ones among them, and what must become of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from random import Random

MODEL = "simulated"
CONTEXT_TOKENS = 2048
#: Output tokens of a job, from and to.
OUTPUT_TOKENS = (10, 70)
#: One job of so many is bad.
_ONE_BAD_IN = 33
#: What makes a request invalid to the engine, where it passes the reader of the file.
_BAD: tuple[dict[str, Any], ...] = (
    {"max_tokens": CONTEXT_TOKENS + 1},
    {"max_tokens": "many"},
    {"max_tokens": -1},
    {"max_tokens": 1.5},
    {"min_tokens": CONTEXT_TOKENS + 1},
    {"n": 0},
    {"n": 1000},
    {"messages": []},
    {"messages": [1]},
    {"messages": [{"role": "user", "content": {"text": "x"}}]},
    {"messages": [{"role": "user", "content": "x " * (4 * CONTEXT_TOKENS)}]},
)
#: One job of so many makes an attached server break its connection off, as one that crashes on it. (To an engine within
#: a worker it is like any other.)
_ONE_KILLER_IN = 1000
KILLS_THE_ENGINE = "this request kills the engine"


@dataclass(frozen=True, slots=True)
class BatchFile:
    """One batch.

    Attributes:
        name: its id.
        path: its file.
        good: custom_ids that must have a response.
        bad: those that must have an error.
        killers: those that kill an attached server: they have a response, or were given up.
    """

    name: str
    path: Path
    good: frozenset[str]
    bad: frozenset[str]
    killers: frozenset[str] = frozenset()

    @property
    def all(self) -> frozenset[str]:
        """All custom_ids."""
        return self.good | self.bad | self.killers

    @property
    def size(self) -> int:
        """Jobs in it."""
        return len(self.all)


def write_batches(folder: Path, rng: Random, jobs: int, batches: int) -> list[BatchFile]:
    """Write the files of so many jobs in so many batches."""
    sizes = [jobs * (n + 1) // batches - jobs * n // batches for n in range(batches)]
    return [_write_batch(folder, rng, f"chaos-{number:03}", size) for number, size in enumerate(sizes)]


def _write_batch(folder: Path, rng: Random, name: str, size: int) -> BatchFile:
    good: set[str] = set()
    bad: set[str] = set()
    killers: set[str] = set()
    lines: list[bytes] = []
    for number in range(size):
        custom_id = f"{name}-{number}"
        spoiled = rng.randrange(_ONE_BAD_IN) == 0
        kills = not spoiled and rng.randrange(_ONE_KILLER_IN) == 0
        (bad if spoiled else killers if kills else good).add(custom_id)
        body: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"{custom_id}: {KILLS_THE_ENGINE}" if kills else f"{custom_id}?"}],
            "max_tokens": rng.randint(*OUTPUT_TOKENS),
            "ignore_eos": True,
        }
        body |= rng.choice(_BAD) if spoiled else {}
        request = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
        lines.append(orjson.dumps(request))
    path = folder / f"{name}.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return BatchFile(name, path, frozenset(good), frozenset(bad), frozenset(killers))

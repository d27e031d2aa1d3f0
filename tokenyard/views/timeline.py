"""What devices did over time, as plain values and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from broker.errors import UsageError

Floats = NDArray[np.float64]

#: Kinds of file a picture can be written as.
SUFFIXES = (".svg", ".png")


class Bar(NamedTuple):
    """One job on its device: an index into the time line's devices, seconds, and whether it went well."""

    device: int
    start: float
    end: float
    ok: bool = True


@dataclass(frozen=True, slots=True)
class Timeline:
    """Devices over time. Arrays have the shape (devices, intervals); an interval lies between two edges.

    Attributes:
        devices: names, in the order in which they are drawn.
        edges: seconds from the beginning, growing; one more than there are intervals.
        running: jobs running, the mean of each interval.
        prompt_tokens_per_s: prompt tokens a second.
        output_tokens_per_s: output tokens a second.
        kv_share: share of the KV cache in use, 0 to 1, NaN where it is not known; None where nowhere.
        bars: the jobs themselves, where they are few enough to be drawn one by one.

    Raises:
        ValueError: the shapes do not go together.
    """

    devices: tuple[str, ...]
    edges: Floats
    running: Floats
    prompt_tokens_per_s: Floats
    output_tokens_per_s: Floats
    kv_share: Floats | None = None
    bars: tuple[Bar, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.devices), len(self.edges) - 1)
        arrays = [self.running, self.prompt_tokens_per_s, self.output_tokens_per_s]
        if shape[1] < 1 or any(a.shape != shape for a in arrays):
            raise ValueError(f"a time line of {shape[0]} devices and {shape[1]} intervals has arrays of other shapes")
        if self.kv_share is not None and self.kv_share.shape != shape:
            raise ValueError(f"kv_share has the shape {self.kv_share.shape}, not {shape}")


def check_path(path: Path) -> None:
    """Say that a picture cannot be written there before work is done for it.

    Raises:
        UsageError: the name does not end in .svg or .png, or there is no such folder.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: a picture is written as .svg or .png")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}")


def draw(timeline: Timeline, path: Path, title: str) -> None:
    """Write the picture. The same time line and title always give the same bytes of SVG.

    Args:
        timeline: what to draw.
        path: file to write, .svg or .png.
        title: one line above it.

    Raises:
        UsageError: the file cannot be written.
    """
    check_path(path)
    from tokenyard.views import timeline_figure  # matplotlib takes most of a second to load, and few commands draw

    try:
        timeline_figure.save(timeline, path, title)
    except OSError as e:
        raise UsageError(f"cannot write {path}: {e.strerror or e}") from None


def lanes(bars: Sequence[Bar]) -> list[int]:
    """A lane for each bar of one device, so that none lies over another; as few lanes as can be.

    Greedy in order of start: the classic interval partitioning.
    """
    order = sorted(range(len(bars)), key=lambda i: (bars[i].start, bars[i].end, i))
    free_at: list[float] = []
    found = [0] * len(bars)
    for i in order:
        lane = next((n for n, at in enumerate(free_at) if at <= bars[i].start), len(free_at))
        if lane == len(free_at):
            free_at.append(0.0)
        free_at[lane] = bars[i].end
        found[i] = lane
    return found

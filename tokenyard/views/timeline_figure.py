"""Draws a time line with matplotlib: its object interface and a canvas of our own, no state that others share."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from tokenyard.views.text import printable
from tokenyard.views.timeline import Floats, Timeline, lanes

#: Okabe and Ito's palette, told apart with any colour vision (jfly.uni-koeln.de/color).
_BLUE, _SKY, _GREEN, _RED, _GREY = "#0072B2", "#56B4E9", "#009E73", "#D55E00", "#666666"
_WIDTH_IN = 9.0
_DPI = 100
#: Up to so many devices get a row with axes of its own; more become the rows of one map.
_MOST_ROWS = 24
_NAME_CHARS = 24
_TITLE_CHARS = 100
#: Applied while drawing alone. A hash salt makes the ids in an SVG the same each time; names are no formulas.
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "tokenyard",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.linewidth": 0.6,
    "axes.edgecolor": _GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
}


def save(timeline: Timeline, path: Path, title: str) -> None:
    """Write the picture as SVG or, where the name ends in .png, as PNG."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # whatever this person's matplotlibrc says
        mpl.rcParams.update(_STYLE)
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a device's name may be in any script
        figure = _figure(timeline, title)
        if path.suffix.lower() == ".png":
            FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})
        else:
            FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None, "Creator": None})


def _figure(timeline: Timeline, title: str) -> Figure:
    heights = [*_heights(timeline), 1.1]
    figure = Figure(figsize=(_WIDTH_IN, sum(heights) + 1.2), dpi=_DPI, layout="constrained")
    grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})
    axes: list[Axes] = list(grid[:, 0])
    if len(timeline.devices) > _MOST_ROWS:
        _map(figure, axes[0], timeline)
    else:
        for n, ax in enumerate(axes[:-1]):
            _row(ax, timeline, n)
    _tokens(axes[-1], timeline)
    axes[-1].set_xlim(float(timeline.edges[0]), float(timeline.edges[-1]))
    axes[-1].set_xlabel("seconds")
    figure.align_ylabels()
    _head(figure, timeline, title)
    return figure


def _head(figure: Figure, timeline: Timeline, title: str) -> None:
    """Title and legend in one block, which the layout keeps clear of the axes (it lets a suptitle lie on a legend)."""
    figure.legend(
        handles=_legend(timeline),
        title=_cut(title, _TITLE_CHARS),
        title_fontproperties={"weight": "bold", "size": 11},
        alignment="left",
        loc="outside upper left",
        ncols=6,
        frameon=False,
        fontsize=8,
    )


def _heights(timeline: Timeline) -> list[float]:
    """Inches of each row of devices, or of their map."""
    devices = len(timeline.devices)
    if devices > _MOST_ROWS:
        return [min(12.0, max(4.0, 0.14 * devices))]
    return [1.1 if devices <= 4 else 0.75 if devices <= 10 else 0.5] * devices


def _row(ax: Axes, timeline: Timeline, device: int) -> None:
    """A device's running jobs as an area, or each as a bar; the KV memory in use as a line."""
    if timeline.bars:
        most = _bars(ax, timeline, device)
    else:
        running = timeline.running[device]
        ax.stairs(running, timeline.edges, fill=True, color=_BLUE, alpha=0.75, linewidth=0)
        most = float(running.max())
    ax.set_ylim(0, max(most, 1.0) * 1.08)
    ax.set_yticks([0.0, most] if most > 0 else [0.0], labels=["0", f"{most:,.3g}"] if most > 0 else ["0"])
    ax.set_ylabel(_cut(timeline.devices[device], _NAME_CHARS), rotation=0, ha="right", va="center")
    if timeline.kv_share is not None:
        _kv_line(ax, timeline.edges, timeline.kv_share[device])


def _bars(ax: Axes, timeline: Timeline, device: int) -> int:
    bars = [bar for bar in timeline.bars if bar.device == device]
    found = lanes(bars)
    for bar, lane in zip(bars, found, strict=True):
        span = [(bar.start, bar.end - bar.start)]
        color = _BLUE if bar.ok else _RED
        ax.broken_barh(span, (lane + 0.1, 0.8), facecolor=color, edgecolor="white", linewidth=0.5, alpha=0.85)
    return max(found, default=0) + 1


def _kv_line(ax: Axes, edges: Floats, share: Floats) -> None:
    right = ax.twinx()
    right.stairs(share, edges, baseline=None, color="black", linewidth=0.9)
    right.set_ylim(0, 1.08)
    right.set_yticks([0.0, 1.0], labels=["0 %", "100 %"])
    right.spines["right"].set_visible(True)


def _map(figure: Figure, ax: Axes, timeline: Timeline) -> None:
    """Many devices: a line each, its colour the running jobs as a share of the most it ever ran."""
    most = timeline.running.max(axis=1, keepdims=True)
    share = timeline.running / np.where(most > 0, most, 1.0)
    count = len(timeline.devices)
    mesh = ax.pcolormesh(
        timeline.edges, np.arange(count + 1), share, cmap="Blues", vmin=0, vmax=1, rasterized=True, shading="flat"
    )
    step = -(-count // 80)
    ax.set_yticks(
        np.arange(0, count, step) + 0.5, labels=[_cut(n, _NAME_CHARS) for n in timeline.devices[::step]], fontsize=7
    )
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    bar = figure.colorbar(mesh, ax=ax, pad=0.01, aspect=40)
    bar.set_label("running jobs, share of the device's most")


def _tokens(ax: Axes, timeline: Timeline) -> None:
    """Tokens a second of all devices together: output below, prompt on top of it."""
    output = timeline.output_tokens_per_s.sum(axis=0)
    both = output + timeline.prompt_tokens_per_s.sum(axis=0)
    ax.stairs(both, timeline.edges, baseline=output, fill=True, color=_SKY, linewidth=0)
    ax.stairs(output, timeline.edges, fill=True, color=_GREEN, linewidth=0)
    ax.set_ylim(0, max(float(both.max()), 1.0) * 1.08)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=3))
    ax.yaxis.set_major_formatter(EngFormatter(sep=" "))
    ax.set_ylabel("all devices,\ntokens/s", rotation=0, ha="right", va="center")


def _legend(timeline: Timeline) -> list[Artist]:
    handles: list[Artist] = []
    if len(timeline.devices) <= _MOST_ROWS:
        handles.append(Patch(color=_BLUE, alpha=0.75, label="a job" if timeline.bars else "running jobs"))
        if any(not bar.ok for bar in timeline.bars):
            handles.append(Patch(color=_RED, alpha=0.85, label="a job that failed"))
        if timeline.kv_share is not None:
            handles.append(Line2D([], [], color="black", linewidth=0.9, label="KV memory in use"))
    return [*handles, Patch(color=_SKY, label="prompt tokens"), Patch(color=_GREEN, label="output tokens")]


def _cut(text: str, most: int) -> str:
    """Somebody's text on one line; names differ at their ends, so what is too much goes from the middle."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - most // 2 + 1 :]}"

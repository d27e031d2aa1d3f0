"""Draws plans beside each other: a bar each, in parts by engine. See ``timeline_figure`` for how it draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from tokenyard.views.text import printable

#: Okabe and Ito's palette, told apart with any colour vision (jfly.uni-koeln.de/color).
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7", "#F0E442", "#000000")
_REST = "#999999"
_WIDTH_IN, _ROW_IN = 9.0, 0.55
_DPI = 100
_NAME_CHARS = 40
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "tokenyard",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


class PlanBar(NamedTuple):
    """A plan's name and the tokens a second of each of its kinds of engine."""

    name: str
    parts: Sequence[tuple[str, float]]


def save(bars: Sequence[PlanBar], path: Path, title: str) -> None:
    """Write the picture as SVG or, where the name ends in .png, as PNG."""
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever this person's matplotlibrc says
        mpl.rcParams.update(_STYLE)
        figure = _figure(bars, title)
        if path.suffix.lower() == ".png":
            FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})
        else:
            FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None, "Creator": None})


def _figure(bars: Sequence[PlanBar], title: str) -> Figure:
    totals: dict[str, float] = {}
    for bar in bars:
        for label, tokens in bar.parts:
            totals[label] = max(totals.get(label, 0.0), tokens)
    labels = sorted(totals, key=lambda label: -totals[label])
    color = {label: _COLORS[i] if i < len(_COLORS) else _REST for i, label in enumerate(labels)}
    figure = Figure(figsize=(_WIDTH_IN, _ROW_IN * len(bars) + 1.6), dpi=_DPI, layout="constrained")
    ax = figure.subplots()
    for row, bar in enumerate(bars):
        left = 0.0
        for label, tokens in sorted(bar.parts, key=lambda part: labels.index(part[0])):
            ax.barh(row, tokens, left=left, height=0.7, color=color[label], edgecolor="white", linewidth=0.6)
            left += tokens
        ax.annotate(f"{left:,.0f}", (left, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set_yticks(range(len(bars)), labels=[_cut(bar.name) for bar in bars])
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_formatter(EngFormatter(sep=" "))
    ax.set_xlabel("prompt and output tokens/s, predicted")
    ax.set_title(printable(title), loc="left", fontsize=11, fontweight="bold")
    handles = [Patch(color=color[label], label=_cut(label)) for label in labels[: len(_COLORS)]]
    figure.legend(handles=handles, loc="outside lower left", ncols=4, frameon=False, fontsize=8)
    return figure


def _cut(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _NAME_CHARS else f"{text[: _NAME_CHARS - 1]}…"

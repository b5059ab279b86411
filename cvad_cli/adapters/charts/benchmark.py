"""Speed and scaling as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvad_cli.adapters.charts.style import BLUE, INK, PALE, VERMILLION, draw_title, new_figure, save_figure, show_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]


def stages_chart(path: Path, stages: Mapping[str, Mapping[str, float]], *, title: str) -> None:
    """Mean and 95th percentile of each stage of a single image, in milliseconds; `whole` is the last row.

    Raises ResourceError where the file cannot be written.
    """
    figure = new_figure(9.0, 1.4 + 0.5 * len(stages))
    axes = figure.subplots()
    whole = stages["whole"]["mean_ms"]
    for position, (name, row) in enumerate(stages.items()):
        axes.barh(position, row["mean_ms"], color=PALE if name == "whole" else BLUE, height=0.62)
        axes.plot([row["p95_ms"]] * 2, [position - 0.36, position + 0.36], color=VERMILLION, linewidth=2.5)
        text = f"{row['mean_ms']:.3g} ms, {row['mean_ms'] / whole:.0%} (p95 {row['p95_ms']:.3g})"
        _beside(axes, max(row["mean_ms"], row["p95_ms"]), position, text)
    _rows(axes, list(stages))
    axes.set_xlim(left=0, right=1.5 * max(max(row["mean_ms"], row["p95_ms"]) for row in stages.values()))
    axes.set_xlabel("milliseconds: mean (bar), 95th percentile (line)", fontsize=11, color=INK)
    draw_title(figure, title, largest=13)
    save_figure(path, figure)


def growth_chart(path: Path, scaling: Mapping[str, Sequence[Row]], *, title: str) -> None:
    """Milliseconds per image (above) and memory (below) against each axis, on logarithmic scales.

    `scaling` maps an axis to rows of `value`, `ms_per_image` and `memory_mb`, all above 0. Raises ResourceError where
    the file cannot be written.
    """
    labels = {"image_size": "image size (px)", "bank_rows": "rows of the memory bank", "images": "images in one run"}
    figure = new_figure(1.0 + 4.4 * len(scaling), 6.4)
    panels = figure.subplots(2, len(scaling), sharey="row", sharex="col", squeeze=False)
    for column, (axis, rows) in enumerate(scaling.items()):
        sizes = [row["value"] for row in rows]
        for axes, key, colour in zip(panels[:, column], ("ms_per_image", "memory_mb"), (BLUE, VERMILLION), strict=True):
            values = [row[key] for row in rows]
            axes.plot(sizes, values, marker="o", color=colour, linewidth=2.2, markersize=7)
            for size, value in zip(sizes, values, strict=True):
                _above(axes, size, value)
            _logarithmic(axes, sizes)
        panels[1, column].set_xlabel(labels[axis], fontsize=11, color=INK)
    for axes, label in zip(panels[:, 0], ("ms per image", "memory, MB"), strict=True):
        axes.set_ylabel(label, fontsize=11, color=INK)
    for row_of_panels in panels:  # room for the figures above the highest points; the axis is shared
        low, high = row_of_panels[0].get_ylim()
        row_of_panels[0].set_ylim(low / 1.3, high * 1.6)
    draw_title(figure, title, largest=13)
    save_figure(path, figure)


def _three_digits(value: float) -> str:
    """At least three digits, without a power of ten."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _beside(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), xytext=(7, 0), textcoords="offset points", va="center", fontsize=10, color=INK)


def _above(axes: Axes, x: float, y: float) -> None:
    axes.annotate(
        _three_digits(y), (x, y), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=10, color=INK
    )


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=11, color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=10, colors=INK)
    axes.tick_params(axis="y", length=0)
    show_grid(axes, "x")
    axes.spines["left"].set_visible(False)


def _logarithmic(axes: Axes, sizes: Sequence[float]) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, LogLocator, NullFormatter, NullLocator, ScalarFormatter

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(sizes)))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{size:,.0f}" for size in sizes]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    plain = ScalarFormatter()
    plain.set_scientific(False)
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.15)
    axes.tick_params(labelsize=10, colors=INK)
    show_grid(axes)

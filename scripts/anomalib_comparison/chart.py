"""The comparison as a PNG file, by matplotlib's object interface; colours are those of Okabe and Ito (2008)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cvad_cli.assembly.benchmark.tables import three_digits
from cvad_cli.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE: Final = "#0072B2"
GREY: Final = "#9A9A9A"
INK: Final = "#222222"

Row = Mapping[str, Any]


def comparison_chart(path: Path, models: Mapping[str, Mapping[str, Row]], *, title: str) -> None:
    """Images per second and latency of single images of each target, one row of panels per model.

    `models` maps a model's name to its targets' names and figures: `images_per_s`, `images_per_s_runs` and `latency`.
    Targets called cvad are blue. Raises ResourceError where the file cannot be written.
    """
    from matplotlib.figure import Figure

    max_targets = max(len(targets) for targets in models.values())
    height = 1.2 + len(models) * (1.1 + 0.42 * max_targets)
    figure = Figure(figsize=(12.5, height), dpi=150, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    panels = figure.subplots(len(models), 2, squeeze=False)
    for (rates, latencies), (model, targets) in zip(panels, models.items(), strict=True):
        names = list(targets)
        for index, (name, row) in enumerate(targets.items()):
            colour = BLUE if name.startswith("cvad") else GREY
            _rate_bar(rates, index, row, colour)
            _latency_span(latencies, index, row["latency"], colour)
        for axes in (rates, latencies):
            _rows(axes, names)
            axes.margins(x=0.16)
        latencies.set_yticklabels([])
        _logarithmic_x(latencies)
        rates.set_xlim(left=0)
        rates.set_title(f"{model}: images per second, end to end (dots: repeats)", fontsize=11, color=INK, loc="left")
        latencies.set_title("single image, ms: p50 (dot, figure), p95 (wide), p99", fontsize=11, color=INK, loc="left")
    figure.suptitle(title, fontsize=13, color=INK)
    with replacing(path) as staged:
        figure.savefig(staged, format="png", facecolor="white", transparent=False)


def _rate_bar(axes: Axes, index: int, row: Row, colour: str) -> None:
    axes.barh(index, row["images_per_s"], color=colour, height=0.62)
    runs = row["images_per_s_runs"]
    axes.plot(runs, [index] * len(runs), linestyle="none", marker="o", markersize=4, color=INK, clip_on=False)
    _beside(axes, max(row["images_per_s"], *runs), index, three_digits(row["images_per_s"]))


def _latency_span(axes: Axes, index: int, latency: Row, colour: str) -> None:
    """No bar: a logarithmic axis has no zero for it to stand on."""
    middle, wide, end = (latency[key] for key in ("p50_ms", "p95_ms", "p99_ms"))
    axes.plot([middle, wide], [index, index], color=colour, linewidth=6, solid_capstyle="butt")
    axes.plot([wide, end], [index, index], color=colour, linewidth=2)
    axes.plot([middle], [index], marker="o", markersize=10, color=colour, markeredgecolor="white")
    _beside(axes, end, index, three_digits(middle))


def _beside(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), xytext=(7, 0), textcoords="offset points", va="center", fontsize=10, color=INK)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=11, color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=10, colors=INK)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _logarithmic_x(axes: Axes) -> None:
    """Milliseconds on a logarithmic axis in plain figures, with room at the right for the last label."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** 0.08)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    plain = ScalarFormatter()
    plain.set_scientific(False)
    axes.xaxis.set_major_formatter(plain)
    axes.xaxis.set_minor_formatter(NullFormatter())

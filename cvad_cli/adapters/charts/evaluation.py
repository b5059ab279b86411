"""Curves, histograms and tables of a test run as PNG files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cvad_cli.adapters.charts.style import (
    BLUE,
    GREY,
    INK,
    VERMILLION,
    draw_title,
    new_figure,
    save_figure,
    show_grid,
    text_style,
)
from cvad_cli.records import GOOD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_TYPES: Final = 40  # in a confusion matrix: with more, its cells are too small to read
MAX_ROWS: Final = 16  # of a histogram: the rarest types share the last one
BINS: Final = 48


def roc_chart(path: Path, scores: ArrayLike, defective: ArrayLike, *, threshold: float, title: str) -> None:
    """ROC curve of image scores, with the operating point of `score > threshold`.

    Args:
        path: PNG to write, replaced as a whole.
        scores: (n,) finite image scores, larger = more anomalous.
        defective: (n,) booleans, some True and some False.
        threshold: the calibrated one.
        title: one line.

    Raises:
        ValueError: one class only.
        ResourceError: the file cannot be written.
    """
    from sklearn.metrics import auc, roc_curve

    values, labels = _both_classes(scores, defective)
    fpr, tpr, _ = roc_curve(labels, values)
    alarms, recall = float(np.mean(values[~labels] > threshold)), float(np.mean(values[labels] > threshold))
    figure, axes = _unit_square(title, "false-alarm rate (share of good parts rejected)", "recall (defects rejected)")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.5, label="chance")
    axes.plot(
        fpr, tpr, color=BLUE, linewidth=2.5, clip_on=False, zorder=3, label=f"detector, AUROC {auc(fpr, tpr):.4f}"
    )
    _mark(axes, alarms, recall, f"threshold {threshold:.4g}: recall {recall:.1%}, false alarms {alarms:.1%}")
    _save_with_legend(path, figure)


def precision_recall_chart(
    path: Path, scores: ArrayLike, defective: ArrayLike, *, threshold: float, title: str
) -> None:
    """Precision against recall of image scores, with the operating point of `score > threshold`.

    Arguments and errors are those of `roc_chart`. If no image is above the threshold, no point is drawn.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    values, labels = _both_classes(scores, defective)
    precision, recall, _ = precision_recall_curve(labels, values)
    average, share, rejected = average_precision_score(labels, values), float(labels.mean()), values > threshold
    figure, axes = _unit_square(title, "recall (share of defects rejected)", "precision (rejected parts with a defect)")
    axes.axhline(share, color=GREY, linestyle=":", linewidth=1.5, label=f"chance ({share:.1%} are defective)")
    label = f"detector, average precision {average:.4f}"
    axes.step(recall, precision, where="post", color=BLUE, linewidth=2.5, clip_on=False, zorder=3, label=label)
    if rejected.any():
        found, right = float(rejected[labels].mean()), float(labels[rejected].mean())
        _mark(axes, found, right, f"threshold {threshold:.4g}: recall {found:.1%}, precision {right:.1%}")
    _save_with_legend(path, figure)


def score_histogram(
    path: Path, scores: ArrayLike, defect_types: Sequence[str], *, threshold: float, title: str
) -> None:
    """Histograms of image scores, one row per type: good first, then defects by falling frequency.

    Args:
        path: PNG to write, replaced as a whole.
        scores: (n,) finite image scores.
        defect_types: n names, `GOOD` for a good part.
        threshold: drawn through all rows; each row says how many of its images lie above.
        title: one line.

    Raises:
        ValueError: no scores, or more or fewer names than scores.
        ResourceError: the file cannot be written.
    """
    values, types = np.asarray(scores, dtype=np.float64), np.asarray(defect_types, dtype=np.str_)
    if values.ndim != 1 or values.size == 0 or types.shape != values.shape:
        raise ValueError(f"expected n scores and n defect types, got shapes {values.shape} and {types.shape}")
    rows = _rows(types)
    edges = _edges(values, threshold)
    figure = new_figure(8.0, 1.6 + 0.6 * len(rows))
    grid = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, members) in zip(grid, rows.items(), strict=True):
        _histogram_row(axes, name, values[members], edges, threshold)
    draw_title(figure, title)
    figure.supylabel("images per bar", **text_style(12))
    grid[0].set_title(f"threshold {threshold:.4g}", **text_style(11), x=_fraction(threshold, edges))
    grid[-1].tick_params(axis="x", bottom=True, labelbottom=True)
    grid[-1].spines["bottom"].set_color(INK)
    grid[-1].set_xlabel("image anomaly score (no unit; larger is more anomalous)", **text_style(12))
    save_figure(path, figure)


def confusion_chart(path: Path, table: np.ndarray, names: Sequence[str], *, title: str) -> None:
    """Numbers of images of each true type (rows) with each predicted type (columns), shaded by the share of the row.

    table: int (C, C), C = len(names). Only the first `MAX_TYPES` types are drawn.
    """
    shown = min(len(names), MAX_TYPES)
    counts = table[:shown, :shown]
    labels = [_short(name) for name in names[:shown]]
    side = 2.6 + 0.62 * shown
    figure = new_figure(max(side, 5.0), max(side, 4.2))
    axes = figure.subplots()
    shares = counts / np.maximum(table[:shown].sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.15)
    for row, column in np.ndindex(counts.shape):
        if counts[row, column]:
            colour = "white" if shares[row, column] > 0.6 else INK
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=12, color=colour)
    ticks = np.arange(shown)
    axes.set_xticks(ticks, labels, rotation=35, ha="right", rotation_mode="anchor", **text_style(11))
    axes.set_yticks(
        ticks, [f"{name} ({total})" for name, total in zip(labels, table.sum(1), strict=False)], **text_style(11)
    )
    axes.set_xlabel("named", **text_style(12))
    axes.set_ylabel("true type (images)", **text_style(12))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    right = np.trace(table) / max(table.sum(), 1)
    draw_title(figure, f"{title}\n{right:.1%} of {table.sum()} named rightly", largest=13)
    save_figure(path, figure)


def reliability_chart(path: Path, measured: Mapping[str, Any], *, title: str) -> None:
    """Accuracy against confidence, one bar per bin, from `{expected_calibration_error, bins: [...]}`."""
    from matplotlib.ticker import PercentFormatter

    figure = new_figure(6.0, 5.6)
    axes = figure.subplots()
    for row in measured["bins"]:
        middle = (row["from"] + row["to"]) / 2
        axes.bar(middle, row["accuracy"], width=0.088, color=BLUE, alpha=0.85)
        axes.plot([row["from"], row["to"]], [row["confidence"]] * 2, color=VERMILLION, linewidth=2.5)
        axes.annotate(str(row["images"]), (middle, row["accuracy"] + 0.015), ha="center", **text_style(10))
    axes.plot([], [], color=VERMILLION, linewidth=2.5, label="mean confidence")
    axes.bar([0], [0], color=BLUE, alpha=0.85, label="share named rightly (images above)")
    axes.set(xlim=(0, 1), ylim=(0, 1.08))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("confidence", **text_style(12))
    show_grid(axes, "y")
    error = measured["expected_calibration_error"]
    draw_title(figure, f"{title}\nexpected calibration error {error:.3f}", largest=12)
    figure.legend(loc="outside lower center", fontsize=11, frameon=False, labelcolor=INK, ncols=2)
    save_figure(path, figure)


def _both_classes(scores: ArrayLike, defective: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values, labels = np.asarray(scores, dtype=np.float64), np.asarray(defective, dtype=np.bool_)
    if values.ndim != 1 or values.shape != labels.shape or not (labels.any() and not labels.all()):
        raise ValueError(
            f"expected scores of good and of defective images, got shapes {values.shape} and {labels.shape} "
            f"with {int(labels.sum())} defective"
        )
    return values, labels


def _unit_square(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    from matplotlib.ticker import PercentFormatter

    figure = new_figure(6.0, 6.6)
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    draw_title(figure, title)
    axes.set_xlabel(x, **text_style(12))
    axes.set_ylabel(y, **text_style(12))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.tick_params(labelsize=11, colors=INK)
    show_grid(axes)
    return figure, axes


def _mark(axes: Axes, x: float, y: float, label: str) -> None:
    style: dict[str, Any] = {
        "marker": "o",
        "linestyle": "none",
        "markersize": 11,
        "markeredgecolor": "white",
        "markeredgewidth": 1.5,
    }
    axes.plot([x], [y], color=VERMILLION, clip_on=False, zorder=5, label=label, **style)


def _rows(types: NDArray[np.str_]) -> dict[str, NDArray[np.bool_]]:
    """For each row's label, the images in it."""
    counts = Counter(types.tolist())
    good = {GOOD: types == GOOD} if counts.pop(GOOD, 0) else {}
    names = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    shown = names if len(names) <= MAX_ROWS else names[: MAX_ROWS - 1]
    rows = good | {name: types == name for name in shown}
    rest = names[len(shown) :]
    return rows | {f"{len(rest)} other types": np.isin(types, rest)} if rest else rows


def _edges(values: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    """Bin edges beyond all scores on both sides, one of them at the threshold: no bar straddles the decision."""
    low, high = min(values.min(), threshold), max(values.max(), threshold)
    width = (high - low) / BINS or 1.0
    first, last = np.floor((low - threshold) / width) - 1, np.ceil((high - threshold) / width) + 1
    return threshold + width * np.arange(first, last + 1)


def _fraction(value: float, edges: NDArray[np.float64]) -> float:
    return float(np.clip((value - edges[0]) / (edges[-1] - edges[0]), 0.1, 0.9))


def _histogram_row(
    axes: Axes, name: str, scores: NDArray[np.float64], edges: NDArray[np.float64], threshold: float
) -> None:
    counts = np.histogram(-scores, -edges[::-1])[0][
        ::-1
    ]  # negated: a score on an edge, as on the threshold, is left of it
    axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=BLUE if name == GOOD else VERMILLION)
    axes.axvline(threshold, color=INK, linestyle="--", linewidth=1.5)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, counts.max() * 1.1))
    axes.set_yticks([counts.max()])
    axes.tick_params(labelsize=10, colors=INK, bottom=False)
    short = name if len(name) <= 24 else f"{name[:23]}…"
    axes.set_ylabel(f"{short} ({len(scores)})", rotation=0, ha="right", va="center", **text_style(11))
    beside = f"{np.count_nonzero(scores > threshold)} of {len(scores)} above"
    axes.annotate(beside, (1.01, 0.5), xycoords="axes fraction", va="center", **text_style(11))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color("#BBBBBB")


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"


def _save_with_legend(path: Path, figure: Figure) -> None:
    figure.legend(loc="outside lower center", fontsize=11, frameon=False, labelcolor=INK)
    save_figure(path, figure)

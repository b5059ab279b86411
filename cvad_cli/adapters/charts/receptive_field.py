"""Receptive fields as PNG files: nested boxes on an image, maps of gradients, coverage of defects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from cvad_cli.adapters.charts.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    VERMILLION,
    draw_title,
    new_figure,
    save_figure,
    show_grid,
)
from cvad_cli.core.receptive_field.coverage import View
from cvad_cli.core.receptive_field.effective import SHARES, EffectiveField
from cvad_cli.core.receptive_field.graph import Box, LayerField

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PADDING: Final = "#D9D9D9"
SHARE_COLOURS: Final = ("#F0E442", "#E69F00", VERMILLION)

MAX_BOXES: Final = 10

LETTER_IN: Final = 0.08
"""Inches that a letter of a legend takes."""

HANDLE_IN: Final = 0.7
"""Inches beside a legend's text: its sample and the gap."""

FLOOR: Final = 1e-2
"""Gradients below this share of the peak are drawn in the darkest colour."""


def nested_fields(path: Path, image: np.ndarray, fields: Mapping[str, LayerField], *, title: str) -> None:
    """The fields of the cells nearest to the image's middle, one box per layer, named in the legend.

    `image` is uint8 (h, w, 3), at the network's input size; `fields` maps labels to layers from the image inwards.
    Of layers with equal fields only the last is drawn, and at most `MAX_BOXES` layers, evenly chosen. A second panel
    enlarges small fields; the area beyond the image is padding. Raises ResourceError if the file cannot be written.
    """
    h, w = image.shape[:2]
    chosen = _chosen(fields)
    spans = {label: _nominal(found, (h - 1) / 2, (w - 1) / 2) for label, found in chosen.items()}
    outer = np.array([*spans.values()])
    (top, left), (bottom, right) = outer[:, :2].min(axis=0), outer[:, 2:].max(axis=0)
    enlarged = max(bottom - top, right - left) < min(h, w) / 2
    inches = 11.2 if enlarged else 9.4
    figure = new_figure(inches, 6.5 if enlarged else 7.4)
    panels = figure.subplots(1, 2 if enlarged else 1, squeeze=False)[0]
    for axes in panels:
        axes.set_facecolor(PADDING)
        axes.imshow(image, extent=(-0.5, w - 0.5, h - 0.5, -0.5), interpolation="nearest")
        styles = zip(reversed(chosen.items()), *_shades(len(chosen)), strict=True)
        for (label, found), colour, line in styles:  # the largest first and widest: borders may coincide
            step = f", one every {found.h.jump:.3g} px" if found.h.jump else ""
            text = f"{label}: {_times(found.h.size, found.w.size)} px{step}"
            _outline(axes, spans[label], colour, label=text, width=line)
        _name_pixels(axes)
    margin = 0.02 * max(h, w)
    _limit(panels[0], (min(top, -0.5), min(left, -0.5), max(bottom, h - 0.5), max(right, w - 0.5)), margin)
    if enlarged:
        _limit(panels[1], (top, left, bottom, right), 0.3 * (bottom - top))
        panels[1].set_title("enlarged", fontsize=11, color=INK, loc="left")
    draw_title(figure, title, largest=13)
    handles, labels = panels[0].get_legend_handles_labels()
    columns = max(1, int(inches / (LETTER_IN * max(map(len, labels)) + HANDLE_IN)))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=10, frameon=False, labelcolor=INK
    )
    save_figure(path, figure)


def effective_field_chart(path: Path, effective: EffectiveField, box: Box, *, title: str) -> None:
    """A cell's gradient on the image, and its profile: the area it can see (`box`) and the area that moves it.

    Raises ResourceError where the file cannot be written.
    """
    from matplotlib.colors import LogNorm

    figure = new_figure(11.6, 5.6)
    colormap, profile = figure.subplots(1, 2, width_ratios=(1.15, 1.0))
    gradient = np.sqrt(effective.energy)
    relative = np.maximum(gradient / gradient.max(), FLOOR)
    drawn = colormap.imshow(relative, cmap="viridis", norm=LogNorm(FLOOR, 1.0), interpolation="nearest")
    bar = figure.colorbar(drawn, ax=colormap, shrink=0.8)
    bar.set_label(f"RMS gradient, share of its peak (cut at {FLOOR:g})", color=INK)
    sides = box.bottom - box.top + 1, box.right - box.left + 1
    cut = ", to the borders" if sides == effective.energy.shape else ""
    _outline(colormap, _edges(box), "white", label=f"theory: {_times(*sides)} px{cut}", halo=INK)
    row, col = (round(at) for at in effective.centre)
    for share, colour in zip(SHARES, SHARE_COLOURS, strict=True):
        reach = effective.side(share) / 2
        span = (row - reach, col - reach, row + reach, col + reach)
        _outline(
            colormap, span, colour, label=f"{share:.0%} of the energy: {_times(2 * reach, 2 * reach)} px", halo=INK
        )
    _zoom(colormap, box, effective.energy.shape)
    _name_pixels(colormap)
    colormap.set_title(
        f"cell {effective.cell}, mean of {_counted(effective.images, 'image')}", fontsize=11, color=INK, loc="left"
    )
    _draw_profiles(profile, effective, box)
    draw_title(figure, title, largest=13)
    legend = figure.legend(loc="outside lower center", ncols=3, fontsize=10, labelcolor=INK, framealpha=1.0)
    legend.get_frame().set(facecolor=PADDING, edgecolor="none")  # white and yellow lines need a ground
    save_figure(path, figure)


def coverage_curves(path: Path, view: View, *, title: str, defect: float | None = None) -> None:
    """What the cells see of a square defect, against its side: shares above, guaranteed numbers of cells below.

    The axis is in millimetres if the pixel size is known, else in pixels of the original image; `defect` marks a side
    in original pixels. Raises ResourceError where the file cannot be written.
    """
    unit, name = view.pixel_size_mm or 1.0, "mm on the part" if view.pixel_size_mm else "px of the original image"
    reach = 1.6 * max(*view.field, 2 * view.smallest_hit(), 1.25 * (defect or 0.0))
    sides = np.linspace(0, min(*view.original_size, reach), 801)[1:]
    figure = new_figure(10.4, 7.4)
    shares, counts = figure.subplots(2, 1, sharex=True)
    _draw_shares(shares, view, sides, unit)
    _draw_counts(counts, view, sides, unit)
    counts.set(xlabel=f"side of a square defect ({name})", xlim=(0, float(sides[-1]) * unit))
    marks = [
        (view.smallest_hit(), ":", "smallest on a cell's centre"),
        (view.largest_whole(), "-.", "largest seen whole"),
    ]
    marks += [(defect, "-", "defect in question")] if defect else []
    for side, style, label in marks:
        text = f"{label}: {side * unit:.4g} {'mm' if view.pixel_size_mm else 'px'}" if side else f"{label}: none"
        for axes, shown in ((shares, None), (counts, text)):
            axes.axvline(side * unit, color=INK, linestyle=style, linewidth=1.4, label=shown)
    for axes in (shares, counts):
        show_grid(axes)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=10, frameon=False, labelcolor=INK)
    draw_title(figure, title, largest=13)
    save_figure(path, figure)


def _draw_shares(axes: Axes, view: View, sides: np.ndarray, unit: float) -> None:
    rules = (
        (view.share_seen, BLUE, "of the defect\nthat the cell sees"),
        (view.share_filled, VERMILLION, "of the field\nthat it fills"),
    )
    for rule, colour, name in rules:
        worst, best = 100 * np.array([rule(float(side)) for side in sides]).T
        axes.fill_between(sides * unit, worst, best, color=colour, alpha=0.22, linewidth=0)
        axes.plot(sides * unit, worst, color=colour, linewidth=2.4, label=f"share {name}, at worst")
        axes.plot(sides * unit, best, color=colour, linewidth=1.4, linestyle="--", label="... at best")
    axes.set(ylim=(0, 104), ylabel="share of area (%)")
    axes.set_title("The cell that lies best for the defect", fontsize=11, color=INK, loc="left")


def _draw_counts(axes: Axes, view: View, sides: np.ndarray, unit: float) -> None:
    for rule, colour, name in (
        (view.cells_whole, BLUE, "that see it whole"),
        (view.cells_hit, GREEN, "with their centre on it"),
    ):
        found = [rule(float(side)) for side in sides]
        axes.step(sides * unit, found, where="post", color=colour, linewidth=2.4, label=f"cells {name}")
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set(ylim=(0, None), ylabel="cells at least (count)")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title("Wherever the defect lies", fontsize=11, color=INK, loc="left")


def _draw_profiles(axes: Axes, effective: EffectiveField, box: Box) -> None:
    """Marginal profiles of the gradient along both axes, the bells fitted to them, and the theoretical extent."""
    gradient = np.sqrt(effective.energy)
    extents = (box.top, box.bottom), (box.left, box.right)
    names = ("rows", "columns")
    for axis, (name, bell, colour) in enumerate(zip(names, effective.gaussian(), (BLUE, VERMILLION), strict=True)):
        profile = gradient.sum(axis=1 - axis)
        middle = sum(extents[axis]) / 2
        at = np.arange(len(profile)) - middle
        axes.plot(at, profile / profile.max(), color=colour, linewidth=2.2, label=f"gradient along {name}")
        fitted = np.exp(-((at + middle - bell.centre) ** 2) / (2 * bell.sigma**2))
        label = f"bell along {name}: σ {bell.sigma:.1f} px, R² {bell.explained:.2f}"
        axes.plot(at, fitted, color=colour, linewidth=1.4, linestyle="--", label=label)
    reach = max(box.bottom - box.top, box.right - box.left) / 2 + 0.5
    axes.axvspan(-reach, reach, color=GREY, alpha=0.14, linewidth=0, label="theory")
    axes.set(xlim=(-1.25 * reach, 1.25 * reach), ylim=(0, 1.08))
    axes.set(xlabel="distance from the middle of the field (px)", ylabel="summed across, share of its peak")
    show_grid(axes)


def _chosen(fields: Mapping[str, LayerField]) -> dict[str, LayerField]:
    """One layer per field size, and at most `MAX_BOXES`."""
    last = {(found.h.size, found.w.size): label for label, found in fields.items()}
    labels = list(last.values())
    kept = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), MAX_BOXES)).round().astype(int))
    return {labels[at]: fields[labels[at]] for at in kept.tolist()}


Span = tuple[float, float, float, float]
"""Top, left, bottom, right, to the outer edges of the pixels."""


def _nominal(found: LayerField, row: float, col: float) -> Span:
    """The field, borders not cut, of the cell nearest to a pixel."""
    at = found.nearest(row, col)
    middles = [f.offset + f.jump * cell for f, cell in zip((found.h, found.w), at, strict=True)]
    h, w = found.h.size / 2, found.w.size / 2
    return middles[0] - h, middles[1] - w, middles[0] + h, middles[1] + w


def _edges(box: Box) -> Span:
    return box.top - 0.5, box.left - 0.5, box.bottom + 0.5, box.right + 0.5


def _outline(axes: Axes, span: Span, colour: str, *, label: str, width: float = 2.2, halo: str = "white") -> None:
    """A box with a halo, visible on any ground."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    top, left, bottom, right = span
    area = Rectangle(
        (left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=width, label=label
    )
    area.set_path_effects([withStroke(linewidth=width + 1.6, foreground=halo)])
    axes.add_patch(area)


def _zoom(axes: Axes, box: Box, image: tuple[int, ...]) -> None:
    """Show the box with a margin of a quarter of its size, within the image."""
    margin = 0.25 * max(box.bottom - box.top, box.right - box.left) + 2
    axes.set(
        xlim=(max(box.left - margin, -0.5), min(box.right + margin, image[1] - 0.5)),
        ylim=(min(box.bottom + margin, image[0] - 0.5), max(box.top - margin, -0.5)),
    )


def _shades(count: int) -> tuple[list[str], list[float]]:
    """Colours from yellow-orange to dark violet, and line widths from wide to narrow."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    colours = [to_hex(colormaps["plasma"](share)) for share in np.linspace(0.86, 0.0, count)]
    return colours, np.linspace(3.6, 1.4, count).tolist()


def _limit(axes: Axes, span: Span, margin: float) -> None:
    top, left, bottom, right = span
    axes.set(xlim=(left - margin, right + margin), ylim=(bottom + margin, top - margin))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _times(h: float, w: float) -> str:
    return f"{h:g} × {w:g}"


def _name_pixels(axes: Axes) -> None:
    axes.set_xlabel("column (px of the network's input)", color=INK)
    axes.set_ylabel("row (px of the network's input)", color=INK)

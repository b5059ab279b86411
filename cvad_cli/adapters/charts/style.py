"""What all charts share: colours, text, axes, and saving a figure to a file.

matplotlib's object interface is used throughout: no pyplot, no global state. Backgrounds are opaque white, so that a
chart reads the same in light and dark viewers; colours are those of Okabe and Ito (2008), which people with any common
colour blindness tell apart.
"""

from __future__ import annotations

import functools
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from cvad_cli.files import replacing
from cvad_cli.fonts import font_families

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE: Final = "#0072B2"
VERMILLION: Final = "#D55E00"
GREEN: Final = "#009E73"
GREY: Final = "#6E6E6E"
PALE: Final = "#9A9A9A"
INK: Final = "#222222"
GRID: Final = "#DDDDDD"

DOTS_PER_INCH: Final = 150


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches; its content is laid out when it is saved."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return figure


def text_style(size: int) -> dict[str, Any]:
    """Style of text with a user's own names: in any script that the machine has a font for, and "$" is a dollar."""
    return {"fontsize": size, "color": INK, "fontfamily": _families(), "parse_math": False}


def draw_title(figure: Figure, title: str, *, largest: int = 14) -> None:
    """The title over the whole figure: at most `largest` points, and small enough that its longest line fits."""
    letters = max([1, *map(len, title.splitlines())])
    fitting = figure.get_figwidth() * 72 / (0.54 * letters)  # a letter is about 0.54 of its size wide
    figure.suptitle(title, **text_style(max(6, min(largest, int(fitting)))))


def show_grid(axes: Axes, axis: Literal["both", "x", "y"] = "both") -> None:
    """Pale grid lines behind the data, and no frame at the top and the right."""
    axes.grid(axis=axis, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(path: Path, figure: Figure) -> None:
    """Write a PNG, whole or not at all. Raises ResourceError where the file cannot be written."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # shown as a box; not worth a warning
        figure.savefig(buffer, format="png", facecolor="white", transparent=False)
    with replacing(path) as staged:
        staged.write_bytes(buffer.getvalue())


@functools.cache
def _families() -> list[str]:
    from matplotlib.font_manager import fontManager

    return font_families(fontManager.get_font_names())

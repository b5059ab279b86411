"""Seeded look-alikes of MVTec AD's grid, leather and tile, with typed defects and exact masks.

A part is drawn, then photographed twice under one lamp, without and with its defect: the mask holds the pixels where
the two differ by what an eye would notice. For `cvad demo` and for tests; figures measured on them say
nothing about real parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, UInt8

from cvad_cli.core.textures import grid, leather, tile
from cvad_cli.core.textures.canvas import SIDE, Canvas
from cvad_cli.core.textures.lighting import Lamp, Surface, photograph

NOTICEABLE: Final = 9.0
"""A pixel belongs to the mask if a channel changes by this many grey levels: about four times the noise."""

GAP_UNITS: Final = 5.0
"""Gaps in a mask up to about this many 256ths of the image are closed."""

LINES: Final = frozenset({"crack", "cut", "thread"})
"""Defects that may enclose good surface. Holes are filled in the masks of all others."""

SMALLEST_PX: Final = 64
"""Below that, the wires of the grid are thinner than the pixels."""

Draw = Callable[[Canvas, np.random.Generator], Any]
Spoil = Callable[[Any, np.random.Generator], Surface]


@dataclass(frozen=True, slots=True)
class _Texture:
    """How one category is drawn, damaged and lit."""

    draw: Draw
    clean: Callable[[Any], Surface]
    defects: Mapping[str, Spoil]
    relief: float
    noise: float


def _itself(surface: Surface) -> Surface:
    return surface


def _by_name(*defects: Spoil) -> Mapping[str, Spoil]:
    return {defect.__name__: defect for defect in defects}


_TEXTURES: Final = {
    "grid": _Texture(
        draw=grid.mesh,
        clean=grid.Mesh.surface,
        defects=_by_name(grid.bent, grid.broken, grid.glue, grid.metal_contamination, grid.thread),
        relief=0.55,
        noise=2.2,
    ),
    "leather": _Texture(
        draw=leather.hide,
        clean=_itself,
        defects=_by_name(leather.color, leather.cut, leather.fold, leather.glue, leather.poke),
        relief=0.55,
        noise=1.8,
    ),
    "tile": _Texture(
        draw=tile.stone,
        clean=_itself,
        defects=_by_name(tile.crack, tile.glue_strip, tile.gray_stroke, tile.oil, tile.rough),
        relief=0.4,
        noise=2.0,
    ),
}

TEXTURES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {category: tuple(texture.defects) for category, texture in _TEXTURES.items()}
)
"""The categories and their defect types."""


def normal_texture(category: str, *, size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
    """An image of a good part: RGB, `size` pixels wide and high.

    Children of `rng` are spawned, so a second call gives another part. Raises ValueError for an unknown category or a
    size under `SMALLEST_PX`.
    """
    return _image(category, None, size, rng)[0]


def defective_texture(
    category: str, defect_type: str, *, size: int, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "size size 3"], Bool[np.ndarray, "size size"]]:
    """The image that `normal_texture` gives from an equal `rng`, with a defect, and the mask of what that changed.

    Outside the mask no pixel differs by `NOTICEABLE` plus one level or more. Raises ValueError for an unknown category
    or defect type, or a size under `SMALLEST_PX`.
    """
    return _image(category, defect_type, size, rng)


def _image(
    category: str, defect_type: str | None, size: int, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "size size 3"], Bool[np.ndarray, "size size"]]:
    texture = _known(category, defect_type, size)
    part_rng, light_rng, grain_rng, defect_rng = rng.spawn(4)
    canvas = Canvas.square(size)
    part = texture.draw(canvas, part_rng)
    lamp = Lamp.drawn(light_rng, relief=texture.relief, noise=texture.noise)
    clean = image = lamp.shine(texture.clean(part))
    if defect_type is not None:
        image = lamp.shine(texture.defects[defect_type](part, defect_rng))
    grain = grain_rng.standard_normal(clean.shape, np.float32) * np.float32(lamp.noise)
    return photograph(image, grain), _changed(clean, image, fill=defect_type not in LINES)


def _known(category: str, defect_type: str | None, size: int) -> _Texture:
    if category not in _TEXTURES:
        raise ValueError(f"category: no texture {category!r}; there are {', '.join(TEXTURES)}")
    if defect_type is not None and defect_type not in TEXTURES[category]:
        known = ", ".join(TEXTURES[category])
        raise ValueError(f"defect_type: {category} has no defect {defect_type!r}; there are {known}")
    if size < SMALLEST_PX:
        raise ValueError(f"size: expected at least {SMALLEST_PX} pixels, got {size}")
    return _TEXTURES[category]


def _changed(
    clean: Float[np.ndarray, "h w c"], image: Float[np.ndarray, "h w c"], *, fill: bool
) -> Bool[np.ndarray, "h w"]:
    """Where two images differ noticeably: with gaps closed and, if `fill`, holes filled."""
    from scipy import ndimage

    change: np.ndarray = np.abs(np.clip(image, 0.0, 255.0) - np.clip(clean, 0.0, 255.0)).max(axis=2)
    differs = change >= NOTICEABLE
    mask = np.zeros(differs.shape, dtype=bool)
    reach = max(1, round(0.5 * GAP_UNITS * differs.shape[0] / SIDE))
    for box in ndimage.find_objects(differs.astype(np.int8)):
        closed = ndimage.binary_closing(np.pad(differs[box], reach), iterations=reach)
        whole = ndimage.binary_fill_holes(closed) if fill else closed
        mask[box] = whole[reach:-reach, reach:-reach]
    return mask

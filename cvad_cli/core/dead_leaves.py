"""Dead-leaves scenes: images with the statistics of photographs, generated from a seed.

Opaque shapes of random size fall on top of each other; with radii after a power law the scene looks alike at every
scale, as photographs do (Lee, Mumford and Huang, "Occlusion models for natural images", IJCV 2001). Networks trained on
such scenes learn edges, corners and textures almost as from real images (Baradad et al., "Learning to see by looking at
noise", NeurIPS 2021). Here each leaf carries a texture, and some scenes repeat, as fabrics, grids and tiles do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

SMALLEST_RADIUS: Final = 2.0  # pixels
LARGEST_RADIUS: Final = 0.6  # of the image's side
TEXTURES_IN_A_SCENE: Final = 4

Rows = Float32[np.ndarray, "side 1"]
Columns = Float32[np.ndarray, "1 side"]
Plane = Float32[np.ndarray, "side side"]
Texture = Callable[[Rows, Columns, np.random.Generator], Plane]
Outline = Callable[[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]], Bool[np.ndarray, "h w"]]


def dead_leaves(side: int, *, rng: np.random.Generator) -> UInt8[np.ndarray, "side side 3"]:
    """One RGB scene, `side` pixels wide and high. The same generator state gives the same scene."""
    if side < 16:
        raise ValueError(f"side: expected at least 16 pixels, got {side}")
    labels, leaves = _fallen_leaves(side, rng)
    scene = _painted(labels, leaves, _textures(side, rng), rng)
    return _photographed(scene, rng)


def _fallen_leaves(side: int, rng: np.random.Generator) -> tuple[Int[np.ndarray, "side side"], int]:
    """Which leaf lies on top of each pixel, and how many there are; leaf 0 is the ground.

    One scene in four is a small one repeated, cut off at its borders, so that seams repeat as well. One in four holds
    a few leaves alone: mostly surface, as most images of parts are.
    """
    repeats, sparse = rng.random(2) < 0.25
    field = int(rng.integers(max(8, side // 12), side // 2)) if repeats else side
    count = int(rng.integers(1, 12) if sparse else rng.integers(20, 220))
    count = max(1, count * field // side)
    labels = np.zeros((field, field), np.int32)
    radii = _radii(count, field * LARGEST_RADIUS, rng)
    stretch = np.exp(rng.normal(0, 0.5, count))
    thin = rng.random(count) < 0.1
    stretch[thin] = rng.uniform(4, 20, int(thin.sum()))
    angle = rng.uniform(0, np.pi, count)
    centre = rng.uniform(0, field, (count, 2))
    outline = rng.integers(0, len(OUTLINES), count)
    for leaf in range(count):
        half_axes = (radii[leaf] * np.sqrt(stretch[leaf]), max(radii[leaf] / np.sqrt(stretch[leaf]), 0.7))
        _drop(labels, leaf + 1, OUTLINES[outline[leaf]], centre[leaf], half_axes, float(angle[leaf]))
    copies = -(-side // field)
    return np.tile(labels, (copies, copies))[:side, :side], count + 1


def _radii(count: int, largest: float, rng: np.random.Generator) -> Float[np.ndarray, " count"]:
    """Radii in pixels with density r^-a from `SMALLEST_RADIUS` to `largest`; a = 3 is the scale-invariant one,
    less gives scenes of a few large leaves.
    """
    exponent = rng.uniform(1.4, 3.2) - 1
    low, high = SMALLEST_RADIUS**-exponent, max(largest, SMALLEST_RADIUS * 1.5) ** -exponent
    radii: np.ndarray = rng.uniform(high, low, count) ** (-1 / exponent)
    return radii


def _drop(
    labels: Int[np.ndarray, "h w"],
    leaf: int,
    outline: Outline,
    centre: Float[np.ndarray, " 2"],
    half_axes: tuple[float, float],
    angle: float,
) -> None:
    """Write `leaf` into `labels` wherever its turned outline covers a pixel. `centre` is (row, column)."""
    reach = float(np.hypot(*half_axes))
    low = np.maximum(np.floor(centre - reach), 0).astype(int)
    high = np.minimum(np.ceil(centre + reach) + 1, labels.shape).astype(int)
    rows = (np.arange(low[0], high[0], dtype=np.float32) - np.float32(centre[0]))[:, None]
    columns = (np.arange(low[1], high[1], dtype=np.float32) - np.float32(centre[1]))[None, :]
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along = (columns * cosine + rows * sine) * np.float32(1 / half_axes[0])
    across = (rows * cosine - columns * sine) * np.float32(1 / half_axes[1])
    labels[low[0] : high[0], low[1] : high[1]][outline(along, across)] = leaf


def _ellipse(u: Float[np.ndarray, "h w"], v: Float[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    return np.asarray(u * u + v * v < 1)


def _box(u: Float[np.ndarray, "h w"], v: Float[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    return np.asarray((np.abs(u) < 0.8) & (np.abs(v) < 0.8))


def _diamond(u: Float[np.ndarray, "h w"], v: Float[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    return np.asarray(np.abs(u) + np.abs(v) < 1)


def _ring(u: Float[np.ndarray, "h w"], v: Float[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    squared = u * u + v * v
    return np.asarray((squared < 1) & (squared > 0.45))


def _triangle(u: Float[np.ndarray, "h w"], v: Float[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    return np.asarray((v > -0.5) & (v < 1 - 2 * np.abs(u)))


def _blob(u: Float[np.ndarray, "h w"], v: Float[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    return np.asarray(u * u + v * v < 0.7 + 0.3 * np.sin(5 * u + 1) * np.sin(4 * v - 1))


OUTLINES: Final[tuple[Outline, ...]] = (_ellipse, _box, _diamond, _ring, _triangle, _blob)


def _textures(side: int, rng: np.random.Generator) -> Float32[np.ndarray, "t side side"]:
    """`TEXTURES_IN_A_SCENE` textures, each about -1..1."""
    rows = np.arange(side, dtype=np.float32)[:, None]
    columns = np.arange(side, dtype=np.float32)[None, :]
    kinds = rng.integers(0, len(TEXTURES), TEXTURES_IN_A_SCENE)
    return np.stack([TEXTURES[kind](rows, columns, rng) for kind in kinds])


def _cloud(rows: Rows, columns: Columns, rng: np.random.Generator) -> Plane:
    """Noise whose spectrum falls with a random power of the frequency: from white grain to clouds, often brushed."""
    from scipy import fft

    del columns
    side = rows.size
    vertical = (fft.fftfreq(side).astype(np.float32) * np.float32(np.exp(rng.normal(0, 0.8))))[:, None]
    frequency = np.hypot(vertical, fft.rfftfreq(side).astype(np.float32)[None, :])
    frequency[0, 0] = 1.0
    gain = frequency ** np.float32(-rng.uniform(0.0, 1.8))
    gain[0, 0] = 0.0
    parts = rng.standard_normal((2, *gain.shape), np.float32) * gain
    field = fft.irfft2(parts[0] + 1j * parts[1], s=(side, side))
    return np.asarray(field * np.float32(0.5 / field.std()), np.float32)


def _stripes(rows: Rows, columns: Columns, rng: np.random.Generator) -> Plane:
    """Lines of a random period and direction; squeezed, so that some are thin."""
    return _wave(_phase(rows, columns, rng), rng)


def _weave(rows: Rows, columns: Columns, rng: np.random.Generator) -> Plane:
    """Two families of lines at right angles, or nearly: meshes, fabrics, checks."""
    angle, turn = rng.uniform(0, np.pi), np.pi / 2 + rng.normal(0, 0.1)
    first = _wave(_phase(rows, columns, rng, angle), rng)
    second = _wave(_phase(rows, columns, rng, angle + turn), rng)
    return np.asarray(first * second if rng.random() < 0.5 else np.maximum(first, second))


def _phase(rows: Rows, columns: Columns, rng: np.random.Generator, angle: float | None = None) -> Plane:
    angle = rng.uniform(0, np.pi) if angle is None else angle
    pace = 2 * np.pi / np.exp(rng.uniform(np.log(3), np.log(48)))
    bend = np.sin(rows * np.float32(rng.uniform(0, 0.08))) * np.float32(rng.uniform(0, 4))
    along = columns * np.float32(np.cos(angle)) + (rows * np.float32(np.sin(angle)) + bend)
    return np.asarray(along * np.float32(pace))


def _wave(phase: Plane, rng: np.random.Generator) -> Plane:
    sharpness = np.float32(np.exp(rng.uniform(0, 2)))
    return np.asarray(np.clip((np.sin(phase) + np.float32(rng.uniform(-0.8, 0.8))) * sharpness, -1, 1))


def _speckle(rows: Rows, columns: Columns, rng: np.random.Generator) -> Plane:
    """Isolated spots of one size: dust, pores, pebbles."""
    from scipy.ndimage import uniform_filter

    del columns
    side, grain = rows.size, int(rng.integers(1, 6))
    spots = (rng.random((side, side), np.float32) < rng.uniform(0.002, 0.15) / grain).astype(np.float32)
    widened = spots if grain == 1 else uniform_filter(spots, grain) * grain
    return np.asarray(np.minimum(widened * 2, 1) * np.float32(rng.choice([-1, 1])))


def _ramp(rows: Rows, columns: Columns, rng: np.random.Generator) -> Plane:
    """A smooth gradient, with a period of the image's side or more."""
    down, across, start = rng.uniform(-np.pi, np.pi, 3).astype(np.float32)
    return np.asarray(np.sin((rows * down + columns * across) / rows.size + start))


TEXTURES: Final[tuple[Texture, ...]] = (_cloud, _cloud, _stripes, _weave, _speckle, _ramp)


def _painted(
    labels: Int[np.ndarray, "side side"],
    leaves: int,
    textures: Float32[np.ndarray, "t side side"],
    rng: np.random.Generator,
) -> Float32[np.ndarray, "side side 3"]:
    """The leaves in colour, about 0..1: each leaf's colour, its texture at an offset of its own, its shading."""
    side = labels.shape[0]
    contrast = rng.uniform(0.03, 0.35)
    colour = rng.uniform(0.25, 0.75) + rng.normal(0, 0.12, 3)
    colour = colour + contrast * (0.8 * rng.standard_normal((leaves, 1)) + 0.6 * rng.standard_normal((leaves, 3)))
    tint = rng.uniform(0.0, 0.4) * rng.random((leaves, 1)) * (1 + 0.4 * rng.standard_normal((leaves, 3)))
    shade = rng.normal(0, 0.15, (leaves, 2)) / side
    kind, down, across = (rng.integers(0, limit, leaves) for limit in (len(textures), side, side))
    rows = np.arange(side)[:, None]
    columns = np.arange(side)[None, :]
    texture = textures[kind[labels], (rows + down[labels]) % side, (columns + across[labels]) % side]
    painted = np.take(tint.astype(np.float32), labels, axis=0)
    painted *= texture[:, :, None]
    painted += np.take(colour.astype(np.float32), labels, axis=0)
    slope = shade.astype(np.float32)
    painted += (slope[labels, 0] * rows + slope[labels, 1] * columns)[:, :, None].astype(np.float32)
    return painted


def _photographed(scene: Float32[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """What a camera makes of the scene: at times little colour, uneven light, blur, noise, a colour cast."""
    from scipy.ndimage import gaussian_filter1d

    if rng.random() < 0.35:
        gray = scene.mean(axis=2, keepdims=True)
        scene = gray + (scene - gray) * np.float32(rng.choice([0.0, 0.3]))
    if rng.random() < 0.7:
        sigma = rng.uniform(0.3, 1.6)
        for axis in (0, 1):
            scene = gaussian_filter1d(scene, sigma, axis=axis, truncate=3.0)
    side = scene.shape[0]
    slope = np.linspace(-0.5, 0.5, side, dtype=np.float32)
    down, across = rng.normal(0, 0.25, 2).astype(np.float32)
    light = 1 + (slope * down)[:, None] + (slope * across)[None, :]
    cast = rng.normal(1.0, 0.08, 3).astype(np.float32)
    scene = scene * light[:, :, None] * cast
    if rng.random() < 0.6:
        grain = rng.standard_normal((side, side, 1 if rng.random() < 0.5 else 3), np.float32)
        scene = scene + grain * np.float32(rng.uniform(0.0, 0.06))
    return np.asarray(np.clip(scene * 255, 0, 255) + 0.5, dtype=np.uint8)

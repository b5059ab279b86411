"""The drawing board of the textures: coordinates, noise, outlines and curves, all measured in units of 1/256 image.

Only the coordinates depend on the number of pixels, and random numbers are drawn on lattices fixed in units: one seed
gives the same image at every size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Float32, Int

SIDE: Final = 256.0
"""Side of every image in units: at 256 pixels a unit is a pixel."""

FAR: Final = 1e3
"""A distance larger than any inside the image."""

_REACH: Final = 4
"""Standard deviations at which the Gaussian of `Canvas.noise` is cut."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Canvas:
    """The centres of a square image's pixels."""

    size: int
    x: Float32[np.ndarray, "1 w"]
    """Units to the right of the left border."""
    y: Float32[np.ndarray, "h 1"]
    """Units below the upper border."""

    @classmethod
    def square(cls, size: int) -> Canvas:
        """A canvas of size x size pixels."""
        centres = ((np.arange(size) + 0.5) * (SIDE / size)).astype(np.float32)
        return cls(size, centres[None, :], centres[:, None])

    @property
    def pixel(self) -> float:
        """Units per pixel."""
        return SIDE / self.size

    def edge(self, values: Float[np.ndarray, "h w"], softness: float) -> Float[np.ndarray, "h w"]:
        """`step`, never sharper than the pixels can show: at small sizes thin details fade instead of vanishing."""
        return step(values, max(softness, 1.3 * self.pixel))

    def noise(self, grain: float, rng: np.random.Generator, *, stretch: float = 1.0) -> Float32[np.ndarray, "h w"]:
        """Smooth Gaussian noise of mean 0 and variance 1 everywhere.

        White noise on a lattice of `grain` units, blurred by a Gaussian of the same width; `stretch` widens the grain
        along x. The blur's weights have unit L2 norm, which makes the variance 1 up to the borders.
        """
        shape = [math.ceil(SIDE / width) + 2 * _REACH + 1 for width in (grain, grain * stretch)]
        white = rng.standard_normal(shape, np.float32)
        across = _blur(white.T, self.x.ravel(), grain * stretch).T
        return _blur(across, self.y.ravel(), grain)

    def turned(self, centre: Point, angle: float) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
        """Coordinates along and across an axis at `angle` (radians, clockwise) through `centre`."""
        right, down = self.x - centre[0], self.y - centre[1]
        return right * math.cos(angle) + down * math.sin(angle), down * math.cos(angle) - right * math.sin(angle)


def _blur(
    lattice: Float[np.ndarray, "n m"], positions: Float[np.ndarray, " h"], grain: float
) -> Float32[np.ndarray, "h m"]:
    """Blur the values of a lattice with a Gaussian and read them at `positions`.

    Lattice rows are `grain` units apart and start at -`_REACH` rows. The Gaussian is applied tap by tap, not as one
    matrix product: images are too small for starting BLAS's threads to pay off.
    """
    below = np.floor(positions / grain)
    taps = np.arange(2 * _REACH + 2, dtype=np.float32)
    weights = np.exp(-0.5 * ((positions / grain - below)[:, None] + _REACH - taps) ** 2)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    seen = np.zeros((positions.size, lattice.shape[1]), np.float32)
    for tap, weight in enumerate(weights.T):
        seen += weight[:, None] * lattice[below.astype(np.intp) + tap]
    return seen


def cells(
    x: Float[np.ndarray, "h w"], y: Float[np.ndarray, "h w"], pitch: float, rng: np.random.Generator
) -> Float32[np.ndarray, "h w"]:
    """How far each pixel is, in units, from the borders between cells around scattered seeds.

    Half of Worley's F2 - F1: 0 on a border, widest where borders meet. One seed lies in each square of side `pitch`:
    the two nearest seeds are, but for rare slivers, in the 9 squares around a pixel.
    """
    # A turned and bent image stays within this many squares of the origin, whatever its size in pixels.
    reach = math.ceil(2.0 * SIDE / pitch)
    columns = 2 * reach + 1
    seeds = rng.uniform(0.08, 0.92, (2, columns, columns)) + np.mgrid[-reach : reach + 1, -reach : reach + 1]
    seed_y, seed_x = (axis.astype(np.float32).ravel() * np.float32(pitch) for axis in seeds)
    column, row = (np.floor(axis / np.float32(pitch)).astype(np.intp) + reach for axis in (x, y))
    square = row * columns + column
    nearest, second = np.full(x.shape, FAR**2, np.float32), np.full(x.shape, FAR**2, np.float32)
    for offset in (down * columns + right for down in (-1, 0, 1) for right in (-1, 0, 1)):
        index = square + offset
        squared = (seed_x.take(index) - x) ** 2 + (seed_y.take(index) - y) ** 2
        second = np.minimum(second, np.maximum(nearest, squared))
        nearest = np.minimum(nearest, squared)
    border: np.ndarray = 0.5 * (np.sqrt(second) - np.sqrt(nearest))
    return border


def step(values: Float[np.ndarray, "*shape"], softness: float) -> Float[np.ndarray, "*shape"]:
    """0 below -softness / 2, 1 above softness / 2, smooth in between."""
    t = np.clip(values / softness + 0.5, 0.0, 1.0)
    smooth: np.ndarray = t * t * (3.0 - 2.0 * t)
    return smooth


@dataclass(frozen=True, slots=True)
class Outline:
    """A closed, wobbly, star-shaped outline around a centre."""

    centre: Point
    radius: float
    elongation: float = 1.0
    """Length over width; the area stays that of a circle of `radius`."""
    angle: float = 0.0
    roughness: float = 0.0
    """Standard deviation of the radius, as a share of it."""

    def depth(self, canvas: Canvas, rng: np.random.Generator) -> Float32[np.ndarray, "h w"]:
        """About how many units each pixel lies inside the outline; negative outside."""
        along, across = canvas.turned(self.centre, self.angle)
        stretch = math.sqrt(self.elongation)
        along, across = along / stretch, across * stretch
        theta = np.arctan2(across, along)
        harmonics = np.arange(2, 9)[:, None]
        sizes = rng.standard_normal(harmonics.shape) / harmonics
        sizes *= self.roughness / math.sqrt(0.5 * float(np.sum(1.0 / harmonics**2)))
        round_ = np.linspace(-math.pi, math.pi, 257)
        phases = rng.uniform(0.0, 2.0 * math.pi, harmonics.shape)
        wobble = (sizes * np.cos(harmonics * round_ + phases)).sum(axis=0)
        reach = self.radius * np.interp(theta, round_, np.maximum(1.0 + wobble, 0.25))
        depth: np.ndarray = reach.astype(np.float32) - np.hypot(along, across)
        return depth


@dataclass(frozen=True, slots=True)
class Stroke:
    """For every pixel, where it lies relative to a curve."""

    distance: Float32[np.ndarray, "h w"]
    """Units to the nearest point of the curve; `FAR` where that is more than the reach that was asked for."""
    progress: Float32[np.ndarray, "h w"]
    """Where that point lies: 0 at the curve's start, 1 at its end."""
    side: Float32[np.ndarray, "h w"]
    """The distance with a sign: positive on the right of one who walks along the curve."""


def stroke(
    x: Float[np.ndarray, "#h #w"], y: Float[np.ndarray, "#h #w"], points: Float[np.ndarray, "n 2"], *, reach: float
) -> Stroke:
    """Measure the pixels at (x, y) against the polyline through `points`, rows of (x, y)."""
    x, y = np.broadcast_arrays(x, y)
    shape = x.shape
    low, high = points.min(axis=0) - reach, points.max(axis=0) + reach
    near = np.flatnonzero((x >= low[0]) & (x <= high[0]) & (y >= low[1]) & (y <= high[1]))
    px, py = x.ravel()[near], y.ravel()[near]
    best = np.full(near.size, FAR**2, np.float32)
    progress, sign = np.zeros_like(best), np.ones_like(best)
    starts, steps = points[:-1].astype(np.float32), np.diff(points, axis=0).astype(np.float32)
    lengths = np.maximum(np.hypot(steps[:, 0], steps[:, 1]), 1e-6)
    ends = np.concatenate([[0.0], np.cumsum(lengths)])
    for (x0, y0), (dx, dy), length, done in zip(starts, steps, lengths, ends[:-1], strict=True):
        share = np.clip(((px - x0) * dx + (py - y0) * dy) / length**2, 0.0, 1.0)
        right, down = px - x0 - share * dx, py - y0 - share * dy
        squared = right * right + down * down
        closer = squared < best
        best[closer] = squared[closer]
        progress[closer] = (done + share[closer] * length) / ends[-1]
        sign[closer] = np.sign(dx * down - dy * right)[closer]
    distance = np.sqrt(best)
    distance[distance > reach] = FAR
    return Stroke(
        _filled(distance, near, shape, FAR),
        _filled(progress, near, shape, 0.0),
        _filled(distance * sign, near, shape, FAR),
    )


def _filled(
    values: Float[np.ndarray, " k"], where: Int[np.ndarray, " k"], shape: tuple[int, ...], rest: float
) -> Float32[np.ndarray, "h w"]:
    full = np.full(math.prod(shape), rest, np.float32)
    full[where] = values
    return full.reshape(shape)


def wander(
    start: Point, heading: float, length: float, wobble: float, rng: np.random.Generator
) -> Float[np.ndarray, "n 2"]:
    """A curve of (x, y) points that sets out from `start` and turns at random, about `wobble` radians in 10 units."""
    steps = max(4, math.ceil(length / 3.0))
    stride = length / steps
    turns = rng.normal(0.0, wobble * math.sqrt(stride / 10.0), steps)
    headings = heading + np.cumsum(turns)
    moves = stride * np.stack([np.cos(headings), np.sin(headings)], axis=1)
    path: np.ndarray = np.concatenate([np.zeros((1, 2)), np.cumsum(moves, axis=0)]) + np.asarray(start)
    return path


def centred(path: Float[np.ndarray, "n 2"], centre: Point) -> Float[np.ndarray, "n 2"]:
    """The same curve, moved so that the middle of its bounding box is `centre`."""
    moved: np.ndarray = path + (np.asarray(centre) - 0.5 * (path.min(axis=0) + path.max(axis=0)))
    return moved


def somewhere(rng: np.random.Generator, *, margin: float) -> Point:
    """A point at least `margin` units from every border."""
    x, y = rng.uniform(margin, SIDE - margin, 2)
    return float(x), float(y)


def any_angle(rng: np.random.Generator) -> float:
    """A direction, in radians."""
    return float(rng.uniform(0.0, 2.0 * math.pi))

"""Expanded metal: dark wavy wires that touch their neighbours at every crest, in front of a light ground."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from cvad_cli.core.textures.canvas import Canvas, Outline, any_angle, centred, somewhere, step, stroke, wander
from cvad_cli.core.textures.lighting import Surface


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of one wire that is missing, and what hangs there instead."""

    wire: int
    middle: float
    half_length: float
    pieces: tuple[Float[np.ndarray, "n 2"], ...]
    """Curves in mesh coordinates."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """The wires in coordinates of their own: u along, v across."""

    canvas: Canvas
    u: Float[np.ndarray, "h w"]
    v: Float[np.ndarray, "h w"]
    wavelength: float
    pitch: float
    thickness: float
    """Half the width of a wire, in units."""
    ground: Float[np.ndarray, "h w"]
    """Grey level behind the wires."""
    metal: Float[np.ndarray, "h w"]
    """Grey level of the wires."""

    @property
    def amplitude(self) -> float:
        """Such that the crests of two neighbours overlap by a third of a wire."""
        return 0.5 * (self.pitch - 1.35 * self.thickness)

    def centre_line(
        self, wire: Float[np.ndarray, "*shape"], u: Float[np.ndarray, "*shape"]
    ) -> Float[np.ndarray, "*shape"]:
        """The v of a wire's centre line at `u`."""
        swing = self.amplitude * (1.0 - 2.0 * (np.asarray(wire) % 2))
        phase = (2.0 * math.pi / self.wavelength) * np.asarray(u)
        return np.asarray(wire * self.pitch + swing * (np.sin(phase) + 0.03 * np.sin(3.0 * phase)))

    def surface(self, gaps: tuple[Gap, ...] = ()) -> Surface:
        """Wires and ground, with the gaps and their loose pieces."""
        reach = self.thickness + 6.0
        lower = np.floor(self.v / self.pitch)
        distances = [self._distance(lower + k, gaps) for k in (0, 1)]
        for gap in gaps:
            distances += [stroke(self.u, self.v, piece, reach=reach).distance for piece in gap.pieces]
        nearest = np.minimum.reduce(distances)
        cover = self.canvas.edge(self.thickness - nearest, 0.9)
        ground = self.ground * (1.0 - 0.22 * np.exp(-np.maximum(nearest - self.thickness, 0.0) / 2.0))
        core = 1.0 - 0.28 * step(nearest - 0.55 * self.thickness, 1.2)
        albedo = ground + cover * (self.metal * core - ground)
        height = 1.15 * np.maximum.reduce([np.maximum(1.0 - (d / self.thickness) ** 2, 0.0) for d in distances])
        return Surface(self.canvas, albedo[..., None].astype(np.float32), height.astype(np.float32))

    def _distance(self, wire: Float[np.ndarray, "h w"], gaps: tuple[Gap, ...]) -> Float[np.ndarray, "h w"]:
        phase = (2.0 * math.pi / self.wavelength) * self.u
        steep = (self.amplitude * 2.0 * math.pi / self.wavelength) * (np.cos(phase) + 0.09 * np.cos(3.0 * phase))
        distance: np.ndarray = np.abs(self.v - self.centre_line(wire, self.u)) / np.sqrt(1.0 + steep * steep)
        for gap in gaps:
            inside = np.maximum(gap.half_length - np.abs(self.u - gap.middle), 0.0)
            distance = np.where(wire == gap.wire, np.hypot(distance, inside), distance)
        return distance


def mesh(canvas: Canvas, rng: np.random.Generator) -> Mesh:
    """A clean mesh: phase, pitch, slant, wire and tones of its own."""
    angle = math.radians(rng.uniform(-6.0, 6.0))
    u, v = canvas.turned(somewhere(rng, margin=40.0), angle)
    u = u + rng.uniform(-0.15, 0.15) * v + 0.7 * canvas.noise(55.0, rng)
    v = v + 0.5 * canvas.noise(55.0, rng)
    scale = rng.uniform(0.93, 1.07)
    light, dark = rng.uniform(156.0, 182.0), rng.uniform(65.0, 79.0)
    ground = light * (1.0 + 0.035 * canvas.noise(45.0, rng))
    metal = dark * (1.0 + 0.07 * canvas.noise(3.0, rng) + 0.05 * canvas.noise(30.0, rng))
    return Mesh(canvas, u, v, 37.0 * scale, 10.6 * scale, rng.uniform(1.9, 2.2) * scale, ground, metal)


def bent(part: Mesh, rng: np.random.Generator) -> Surface:
    """One to three spans of wire are pushed out of their course."""
    return part.surface(tuple(_gap(part, rng, torn=False) for _ in range(_some(rng))))


def broken(part: Mesh, rng: np.random.Generator) -> Surface:
    """One to three spans of wire are torn, their ends bent away."""
    return part.surface(tuple(_gap(part, rng, torn=True) for _ in range(_some(rng))))


def _some(rng: np.random.Generator) -> int:
    return int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))


def _gap(part: Mesh, rng: np.random.Generator, *, torn: bool) -> Gap:
    """A span between two crests, somewhere well inside the image."""
    x, y = somewhere(rng, margin=28.0)
    canvas = part.canvas
    row, column = (min(int(units / canvas.pixel), canvas.size - 1) for units in (y, x))
    u, v = float(part.u[row, column]), float(part.v[row, column])
    wire = round(v / part.pitch)
    # Wires touch at odd quarters of the wavelength: halves lie midway between.
    middle = 0.5 * part.wavelength * round(2.0 * u / part.wavelength)
    half = part.wavelength * rng.uniform(0.14, 0.22)
    ends = [
        np.array([end, float(part.centre_line(np.asarray(float(wire)), np.asarray(end)))])
        for end in (middle - half, middle + half)
    ]
    pieces = _stubs(ends, rng) if torn else (_detour(ends, rng),)
    return Gap(wire, middle, half, pieces)


def _detour(ends: list[Float[np.ndarray, " 2"]], rng: np.random.Generator) -> Float[np.ndarray, "n 2"]:
    """A Bezier curve between the ends that swings aside: a bow, a hook or an S."""
    start, end = ends
    ahead = end - start
    aside = np.array([-ahead[1], ahead[0]]) / np.hypot(*ahead)
    size = rng.uniform(9.0, 15.0) * rng.choice([-1.0, 1.0])
    first, second = size * aside, size * aside * rng.choice([1.0, 0.2, -0.8])
    t = np.linspace(0.0, 1.0, 14)[:, None]
    lean = rng.uniform(0.0, 0.5) * ahead
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
    knots = (start, start + 0.25 * ahead + first + lean, end - 0.25 * ahead + second + lean, end)
    curve: np.ndarray = sum((weight * knot for weight, knot in zip(weights, knots, strict=True)), np.zeros((14, 2)))
    return curve


def _stubs(ends: list[Float[np.ndarray, " 2"]], rng: np.random.Generator) -> tuple[Float[np.ndarray, "n 2"], ...]:
    """A loose end at either side of the tear, each curling its own way."""
    pieces = []
    for end, inwards in zip(ends, (0.0, math.pi), strict=True):
        curl = rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.5)
        path = wander((float(end[0]), float(end[1])), inwards + curl, rng.uniform(3.0, 9.0), 0.4, rng)
        pieces.append(path)
    return tuple(pieces)


def glue(part: Mesh, rng: np.random.Generator) -> Surface:
    """A drop of clear glue fills a few cells: flat, a little cloudy, with a rim and a highlight."""
    from scipy.ndimage import gaussian_filter

    canvas, clean = part.canvas, part.surface()
    outline = Outline(somewhere(rng, margin=34.0), rng.uniform(9.0, 16.0), rng.uniform(1.0, 1.8), any_angle(rng), 0.10)
    depth = outline.depth(canvas, rng)
    inside = step(depth, 2.0)
    blurred = gaussian_filter(clean.albedo[..., 0], 1.6 / canvas.pixel)
    haze = rng.uniform(0.3, 0.7)
    cloud = (1.0 - haze) * blurred + haze * rng.uniform(95.0, 135.0)
    rim = np.exp(-((depth / 1.5) ** 2))
    dome = 5.0 * np.sqrt(np.clip(depth / outline.radius, 0.0, 1.0))
    surface = clean.painted(inside * rng.uniform(0.6, 0.9), cloud[..., None]).tinted(rim, (0.72,))
    smooth = replace(surface, height=clean.height * (1.0 - 0.8 * inside))
    return smooth.raised(dome).polished(70.0 * inside)


def metal_contamination(part: Mesh, rng: np.random.Generator) -> Surface:
    """A curl of swarf or a chip of bright metal lies on the mesh."""
    canvas, clean = part.canvas, part.surface()
    centre = somewhere(rng, margin=24.0)
    if rng.random() < 0.6:
        path = centred(wander(centre, any_angle(rng), rng.uniform(14.0, 38.0), 0.9, rng), centre)
        width = rng.uniform(1.8, 3.2)
        depth = width - stroke(canvas.x, canvas.y, path, reach=8.0).distance
    else:
        width = rng.uniform(4.5, 8.0)
        depth = Outline(centre, width, rng.uniform(1.0, 2.2), any_angle(rng), 0.22).depth(canvas, rng)
    cover = canvas.edge(depth, 1.3)
    shine = rng.uniform(95.0, 165.0) * (1.0 + 0.38 * canvas.noise(2.5, rng))
    round_back = 2.2 * np.sqrt(np.clip(depth / width, 0.0, 1.0))
    flat = replace(clean.painted(cover, np.clip(shine, 30.0, 250.0)[..., None]), height=clean.height * (1.0 - cover))
    return flat.raised(round_back).tinted(step(depth + 2.0, 3.0) - cover, (0.7,))


def thread(part: Mesh, rng: np.random.Generator) -> Surface:
    """Fibres caught in the mesh: one long one, or a dark tangle with loose ends."""
    canvas, surface = part.canvas, part.surface()
    centre = somewhere(rng, margin=34.0)
    tone = rng.uniform(35.0, 75.0)
    tangled = rng.random() < 0.6
    if tangled:
        fluff = Outline(centre, rng.uniform(6.0, 10.0), rng.uniform(1.0, 2.0), any_angle(rng), 0.2).depth(canvas, rng)
        lint = step(fluff, 6.0) * np.clip(0.62 + 0.25 * canvas.noise(2.0, rng), 0.0, 1.0)
        surface = surface.painted(lint, (tone,))
    for _ in range(int(rng.integers(6, 12)) if tangled else 1):
        length = rng.uniform(18.0, 45.0) if tangled else rng.uniform(60.0, 110.0)
        path = centred(wander(centre, any_angle(rng), length, rng.uniform(0.5, 1.1) if tangled else 0.4, rng), centre)
        path = path + rng.normal(0.0, 4.0, 2) * tangled
        width = rng.uniform(0.45, 0.9) if tangled else rng.uniform(1.0, 1.6)
        distance = stroke(canvas.x, canvas.y, path, reach=4.0).distance
        hair = canvas.edge(width - distance, 1.0)
        surface = surface.painted(hair * rng.uniform(0.6, 0.95), (tone,))
    return surface

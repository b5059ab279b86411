"""Speckled stone tile: pale ground, dark blotches with ragged borders, gray grains."""

from __future__ import annotations

import numpy as np

from cvad_cli.core.textures.canvas import Canvas, Outline, any_angle, centred, somewhere, step, stroke, wander
from cvad_cli.core.textures.lighting import Surface

_DARK = (74.0, 68.0, 66.0)
_MIDDLE = (136.0, 129.0, 122.0)
_PALE = (180.0, 174.0, 164.0)


def stone(canvas: Canvas, rng: np.random.Generator) -> Surface:
    """A clean tile: its blotches are level sets of noise, so no two tiles share one."""
    ragged = 0.30 * canvas.noise(2.2, rng)
    coarse = canvas.noise(6.5 * rng.uniform(0.92, 1.08), rng) + ragged
    fine = canvas.noise(3.6, rng) + ragged
    tone = rng.uniform(0.95, 1.05) * (1.0 + 0.05 * canvas.noise(1.2, rng) + 0.02 * canvas.noise(50.0, rng))
    pale = Surface(canvas, tone[..., None] * np.asarray(_PALE, np.float32), 0.05 * canvas.noise(2.0, rng))
    grained = pale.painted(step(fine - 0.55, 0.5), tone[..., None] * np.asarray(_MIDDLE))
    blotch = step(coarse - rng.uniform(0.65, 0.8), 0.30)
    freckle = step(fine - 1.75, 0.35)
    return grained.painted(np.maximum(blotch, freckle), tone[..., None] * np.asarray(_DARK))


def crack(part: Surface, rng: np.random.Generator) -> Surface:
    """A jagged crack, with a branch in half of the cases."""
    canvas = part.canvas
    centre = somewhere(rng, margin=60.0)
    heading = any_angle(rng)
    trunk = centred(wander(centre, heading, rng.uniform(60.0, 150.0), 0.4, rng), centre)
    trunk = trunk + rng.normal(0.0, 0.9, trunk.shape)
    paths = [trunk]
    if rng.random() < 0.5:
        fork = trunk[int(rng.integers(trunk.shape[0] // 3, 2 * trunk.shape[0] // 3))]
        turn = rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.1)
        paths.append(wander((float(fork[0]), float(fork[1])), heading + turn, rng.uniform(25.0, 60.0), 0.5, rng))
    surface, width = part, rng.uniform(0.7, 1.7)
    for path in paths:
        curve = stroke(canvas.x, canvas.y, path, reach=8.0)
        half = width * (1.1 - curve.progress) * np.clip(1.0 + 0.35 * canvas.noise(6.0, rng), 0.4, 2.0)
        edge = np.exp(-(((curve.side - half - 1.0) / 0.8) ** 2))
        surface = surface.painted(0.6 * edge, (226.0, 222.0, 214.0))
        surface = surface.painted(canvas.edge(half - curve.distance + 0.2, 1.1), (22.0, 20.0, 20.0))
    return surface


def glue_strip(part: Surface, rng: np.random.Generator) -> Surface:
    """A strip of dried glue: straight, milky, with a thick edge."""
    canvas = part.canvas
    along, across = canvas.turned(somewhere(rng, margin=60.0), any_angle(rng))
    length, width = rng.uniform(25.0, 50.0), rng.uniform(7.0, 13.0)
    wavy = 1.2 * canvas.noise(12.0, rng)
    depth = np.minimum(width - np.abs(across + wavy), length - np.abs(along + wavy))
    inside = step(depth, 1.8)
    milk = inside * rng.uniform(0.18, 0.5) * np.clip(1.0 + 0.25 * canvas.noise(10.0, rng), 0.3, 1.6)
    edge = np.exp(-(((depth - 1.2) / 1.1) ** 2))
    surface = part.painted(np.clip(milk, 0.0, 0.85), (214.0, 210.0, 200.0)).painted(0.4 * edge, (236.0, 233.0, 226.0))
    return surface.raised(1.6 * step(depth, 8.0)).polished(inside * 50.0)


def gray_stroke(part: Surface, rng: np.random.Generator) -> Surface:
    """One stroke of a brush with bluish gray paint, streaked along its way."""
    canvas = part.canvas
    centre = somewhere(rng, margin=60.0)
    path = centred(wander(centre, any_angle(rng), rng.uniform(50.0, 110.0), 0.12, rng), centre)
    curve = stroke(canvas.x, canvas.y, path, reach=30.0)
    width = rng.uniform(6.0, 13.0)
    handles = np.linspace(-1.0, 1.0, 24)
    bristles = np.interp(curve.side / width, handles, np.clip(rng.normal(0.85, 0.22, handles.size), 0.1, 1.0))
    dry = np.clip(1.15 - 0.6 * curve.progress + 0.2 * canvas.noise(6.0, rng), 0.0, 1.0)
    cover = step(width - curve.distance + 0.8 * canvas.noise(4.0, rng), 3.0) * bristles * dry
    gray = rng.uniform(100.0, 135.0) * np.array([0.95, 0.99, 1.06])
    return part.painted(rng.uniform(0.6, 0.92) * cover, gray)


def oil(part: Surface, rng: np.random.Generator) -> Surface:
    """Oil that has soaked in: darker, browner, with a soft edge and fainter speckles."""
    canvas = part.canvas
    radius = rng.uniform(14.0, 30.0)
    outline = Outline(somewhere(rng, margin=50.0), radius, rng.uniform(1.0, 1.8), any_angle(rng), 0.16)
    depth = outline.depth(canvas, rng)
    inside = step(depth, rng.uniform(4.0, 10.0))
    strong = rng.uniform(0.6, 1.0)
    ring = np.exp(-(((depth - 3.0) / 3.0) ** 2))
    return part.tinted(strong * inside, (0.56, 0.47, 0.34)).tinted(0.4 * strong * ring, (0.65, 0.58, 0.5))


def rough(part: Surface, rng: np.random.Generator) -> Surface:
    """A patch where the polish is gone: pale, gritty, the speckles half worn away."""
    canvas = part.canvas
    outline = Outline(somewhere(rng, margin=50.0), rng.uniform(14.0, 28.0), rng.uniform(1.0, 2.0), any_angle(rng), 0.25)
    worn = step(outline.depth(canvas, rng) + 2.0 * canvas.noise(4.0, rng), 5.0)
    grit = np.clip(178.0 + 42.0 * canvas.noise(1.1, rng), 60.0, 252.0)
    scratched = part.painted(worn * rng.uniform(0.5, 0.9), grit[..., None] * np.asarray((1.0, 0.97, 0.93)))
    return scratched.raised(0.8 * worn * canvas.noise(1.8, rng))

"""Brown leather: pebbles between creases that cross each other, lit from the side."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from cvad_cli.core.textures.canvas import (
    Canvas,
    Outline,
    any_angle,
    cells,
    centred,
    somewhere,
    step,
    stroke,
    wander,
)
from cvad_cli.core.textures.lighting import Surface

_BROWN = (110.0, 70.0, 56.0)
_CREASES = ((40.0, 1.7, 2.3), (34.0, 1.5, 2.0), (20.0, 1.0, 1.5))
"""Pitch, depth and half-width of each generation, in units."""


def hide(canvas: Canvas, rng: np.random.Generator) -> Surface:
    """A clean hide: three generations of creases, pebbles between them, pores, and a brown of its own."""
    along, across = canvas.turned((0.0, 0.0), rng.uniform(-0.4, 0.4))
    height = 0.30 * canvas.noise(7.0, rng) + 0.07 * canvas.noise(1.6, rng)
    dirt = np.zeros_like(height)
    for pitch, depth, width in _CREASES:
        x = along / rng.uniform(1.0, 1.5) + 0.14 * pitch * canvas.noise(0.45 * pitch, rng)
        y = across + 0.14 * pitch * canvas.noise(0.45 * pitch, rng)
        border = cells(x, y, pitch * rng.uniform(0.92, 1.08), rng)
        faint = step(canvas.noise(0.7 * pitch, rng) + 0.4, 3.0)
        groove = depth * faint * np.exp(-((border / width) ** 2))
        height -= groove
        dirt += 0.045 * groove
    tone = rng.uniform(0.92, 1.08) * (1.0 + 0.03 * canvas.noise(40.0, rng) + 0.03 * canvas.noise(1.0, rng)) - dirt
    brown = np.asarray(_BROWN) * rng.uniform(0.98, 1.02, 3)
    return Surface(canvas, (tone[..., None] * brown).astype(np.float32), height.astype(np.float32))


def color(part: Surface, rng: np.random.Generator) -> Surface:
    """A patchy stain: bluish chalk that lies on the hide, dark ink or red dye that has soaked in."""
    canvas = part.canvas
    outline = Outline(somewhere(rng, margin=40.0), rng.uniform(11.0, 24.0), rng.uniform(1.0, 3.0), any_angle(rng), 0.22)
    patchy = np.clip(0.75 + 0.25 * canvas.noise(5.0, rng), 0.2, 1.0)
    cover = step(outline.depth(canvas, rng), 7.0) * patchy * rng.uniform(0.55, 0.9)
    kind = rng.choice(["chalk", "ink", "dye"], p=[0.35, 0.15, 0.5])
    if kind == "chalk":
        return part.painted(cover, (104.0, 110.0, 112.0))
    return part.tinted(cover, (0.5, 0.6, 0.75) if kind == "ink" else (0.98, 0.48, 0.42))


def cut(part: Surface, rng: np.random.Generator) -> Surface:
    """A slit by a blade: a dark gap between raised lips, pale fibres where it is widest."""
    canvas = part.canvas
    centre = somewhere(rng, margin=45.0)
    path = centred(wander(centre, any_angle(rng), rng.uniform(28.0, 75.0), 0.10, rng), centre)
    curve = stroke(canvas.x, canvas.y, path, reach=14.0)
    open_at = rng.uniform(0.3, 0.8)
    width = rng.uniform(0.8, 2.6) * (0.35 + 0.65 * np.exp(-(((curve.progress - open_at) / 0.22) ** 2)))
    gap = canvas.edge(width - curve.distance, 1.2)
    lips = 1.1 * np.exp(-(((curve.distance - width - 1.4) / 1.5) ** 2))
    surface = part.raised(lips - 1.2 * gap).painted(gap, (26.0, 19.0, 18.0))
    if rng.random() < 0.6:
        fray = step(np.exp(-(((curve.progress - open_at) / 0.15) ** 2)) * canvas.noise(1.6, rng) - 0.8, 0.7)
        surface = surface.painted(fray * step(width + 1.5 - curve.distance, 1.5), (205.0, 196.0, 176.0))
    return surface


def fold(part: Surface, rng: np.random.Generator) -> Surface:
    """A ridge that a fold has left, with small wrinkles along it."""
    canvas = part.canvas
    centre = somewhere(rng, margin=70.0)
    # A ridge along the light would cast no shade.
    heading = math.radians(rng.uniform(-90.0, 10.0))
    path = centred(wander(centre, heading, rng.uniform(70.0, 150.0), 0.08, rng), centre)
    curve = stroke(canvas.x, canvas.y, path, reach=40.0)
    taper = np.clip(4.0 * curve.progress * (1.0 - curve.progress), 0.0, 1.0) ** 0.7
    width = rng.uniform(4.5, 9.0)
    ridge = rng.uniform(0.45, 0.95) * width * taper * np.exp(-((curve.distance / width) ** 2))
    beside = np.exp(-(((curve.side - 1.6 * width) / width) ** 2))
    furrow = rng.uniform(0.1, 0.3) * width * taper * beside * np.clip(1.0 + 0.8 * canvas.noise(6.0, rng), 0.0, 2.0)
    return part.raised(ridge - furrow).tinted(rng.uniform(0.4, 0.8) * taper * beside, (0.6, 0.58, 0.56))


def glue(part: Surface, rng: np.random.Generator) -> Surface:
    """A drop of clear glue: a smooth lens, bright where the lamp is mirrored, dark at the foot."""
    canvas = part.canvas
    outline = Outline(somewhere(rng, margin=50.0), rng.uniform(13.0, 30.0), rng.uniform(1.0, 1.3), any_angle(rng), 0.05)
    depth = outline.depth(canvas, rng)
    inside = step(depth, 1.6)
    share = np.clip(depth / outline.radius, 0.0, 1.0)
    dome = 0.55 * outline.radius * np.sqrt(1.0 - (1.0 - share) ** 2)
    warm = part.tinted(inside, (1.2, 1.08, 0.9)).tinted(inside * np.exp(-((share / 0.12) ** 2)), (0.6, 0.55, 0.5))
    shadow = np.clip(step(depth + 3.0, 6.0) - inside, 0.0, 1.0)
    flat = replace(warm.tinted(shadow, (0.7, 0.68, 0.66)), height=part.height * (1.0 - 0.75 * inside))
    return flat.raised(0.42 * dome).polished(inside * rng.uniform(110.0, 190.0))


def poke(part: Surface, rng: np.random.Generator) -> Surface:
    """A hole pressed in by something blunt: a dent, a dark middle, a torn pale edge."""
    canvas = part.canvas
    radius = rng.uniform(4.5, 10.0)
    depth = Outline(somewhere(rng, margin=28.0), radius, rng.uniform(1.0, 1.7), any_angle(rng), 0.16).depth(canvas, rng)
    share = np.clip(1.0 - depth / radius, 0.0, 3.0)
    dent = -rng.uniform(2.0, 3.8) * np.exp(-((share / 0.8) ** 2)) + 0.5 * np.exp(-(((share - 1.5) / 0.35) ** 2))
    hole = canvas.edge(depth - radius * rng.uniform(0.35, 0.75), 2.0)
    torn = np.exp(-(((depth - 0.3 * radius) / 1.0) ** 2)) * step(canvas.noise(4.0, rng) - rng.uniform(0.4, 1.4), 0.8)
    surface = part.raised(dent).tinted(step(depth, 5.0), (0.72, 0.7, 0.68))
    return surface.painted(hole * rng.uniform(0.5, 0.95), (30.0, 22.0, 20.0)).painted(torn, (200.0, 188.0, 165.0))

"""From a surface to a photograph: colour, relief and gloss under a lamp, then a camera's noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float32, UInt8

from cvad_cli.core.textures.canvas import SIDE, Canvas


@dataclass(frozen=True, slots=True)
class Surface:
    """A part as it lies there, before any light falls on it."""

    canvas: Canvas
    albedo: Float[np.ndarray, "h w c"]
    """Its colour in grey levels under a lamp of strength 1; c = 1 (gray) or 3."""
    height: Float32[np.ndarray, "h w"]
    """In units."""
    gloss: Float32[np.ndarray, "h w"] | None = None
    """Grey levels that its highlights add."""

    def painted(
        self, cover: Float[np.ndarray, "h w"], colour: Float[np.ndarray, "*#shape"] | tuple[float, ...]
    ) -> Surface:
        """Lay `colour`, one for all pixels or one for each, over it with opacity `cover`, 0..1."""
        share = cover[..., None].astype(np.float32)
        return replace(self, albedo=self.albedo + share * (np.asarray(colour, np.float32) - self.albedo))

    def tinted(self, cover: Float[np.ndarray, "h w"], filter_: tuple[float, ...]) -> Surface:
        """Look at it through a filter with a transmission for each colour, 0..1, as strong as `cover`, 0..1."""
        share = cover[..., None].astype(np.float32)
        return replace(self, albedo=self.albedo * (1.0 + share * (np.asarray(filter_, np.float32) - 1.0)))

    def raised(self, relief: Float[np.ndarray, "h w"]) -> Surface:
        """Add `relief`, in units, to its height."""
        return replace(self, height=self.height + relief.astype(np.float32))

    def polished(self, gloss: Float[np.ndarray, "h w"]) -> Surface:
        """Give it highlights of `gloss` grey levels."""
        return replace(self, gloss=gloss.astype(np.float32))


@dataclass(frozen=True, slots=True)
class Lamp:
    """One image's light and camera."""

    azimuth: float
    """Where the light comes from, in radians clockwise from the right."""
    relief: float
    """How much brighter a slope of 1 towards the light is."""
    exposure: float
    falloff: float
    """Loss of light from the lit border to the opposite one, as a share."""
    noise: float
    """Standard deviation of the camera's noise in grey levels."""

    @classmethod
    def drawn(cls, rng: np.random.Generator, *, relief: float, noise: float) -> Lamp:
        """A lamp at the upper left, a little different in every image."""
        return cls(
            azimuth=math.radians(rng.uniform(-150.0, -110.0)),
            relief=relief * rng.uniform(0.85, 1.15),
            exposure=rng.uniform(0.93, 1.06),
            falloff=rng.uniform(0.02, 0.16),
            noise=noise * rng.uniform(0.7, 1.3),
        )

    def shine(self, surface: Surface) -> Float32[np.ndarray, "h w c"]:
        """What reaches the sensor, in grey levels, not yet clipped or noisy.

        Lambert's law to first order in the slope, and a highlight where the slope turns the lamp towards the lens.
        """
        canvas = surface.canvas
        right, down = math.cos(self.azimuth), math.sin(self.azimuth)
        slope_y, slope_x = np.gradient(surface.height, canvas.pixel)
        facing = -(slope_x * right + slope_y * down)
        position = (canvas.x / SIDE - 0.5) * right + (canvas.y / SIDE - 0.5) * down
        light = (1.0 + self.falloff * (position - 0.3)) * np.clip(1.0 + self.relief * facing, 0.25, 2.2)
        image = surface.albedo * (self.exposure * light)[..., None]
        if surface.gloss is not None:
            miss = (slope_x + 0.45 * right) ** 2 + (slope_y + 0.45 * down) ** 2
            image = image + (surface.gloss * np.exp(-miss / 0.02))[..., None]
        lit: np.ndarray = image.astype(np.float32)
        return lit


def photograph(image: Float[np.ndarray, "h w c"], grain: Float[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    """Add the camera's noise `grain` and round to grey levels; an image of one channel becomes gray RGB."""
    levels = np.clip(np.rint(image + grain), 0.0, 255.0).astype(np.uint8)
    return np.repeat(levels, 3 // levels.shape[2], axis=2)

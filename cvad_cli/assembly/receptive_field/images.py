"""The images that a receptive field is measured and drawn on, and their original size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from cvad_cli.adapters.images import read_image, resize_image
from cvad_cli.assembly.data.images import open_dataset
from cvad_cli.config.schema import DataConfig, RunConfig
from cvad_cli.core.textures import SMALLEST_PX, normal_texture
from cvad_cli.errors import DataError
from cvad_cli.ports import Reporter

AVERAGED: Final = 4
"""Gradients are averaged over this many images."""

LARGEST_DRAWN: Final = 512
"""Generated images are drawn with at most this side, then enlarged."""


@dataclass(frozen=True, slots=True)
class FieldImages:
    """Images at the network's size, and where they came from."""

    images: tuple[np.ndarray, ...]
    """uint8 RGB (s, s, 3), with s = `data.image_size`; the charts show the first."""
    original_size: tuple[int, int]
    """Rows and columns of the first image, as the camera took it."""
    source: str
    """Where the images came from, in words."""


def field_images(settings: RunConfig, chosen: Path | None, reporter: Reporter) -> FieldImages:
    """The chosen image, or the first good training images, or generated ones, with a warning.

    Raises DataError, naming the file, if the chosen image cannot be read.
    """
    if chosen is not None:
        return _read((chosen,), settings.data, f"the image {chosen.name}")
    try:
        dataset = open_dataset(settings.data)
        return _read(
            tuple(record.path for record in dataset.train[:AVERAGED]),
            settings.data,
            f"the first good training images of {dataset.name}",
        )
    except DataError as error:
        reporter.warn(
            f"{str(error).splitlines()[0]}. Generated images are analysed, at the network's size instead of the "
            "camera's: give an image of yours with --image FILE"
        )
        return _generated(settings)


def _read(paths: tuple[Path, ...], data: DataConfig, source: str) -> FieldImages:
    if not paths:
        raise DataError(f"{data.root}: there is no good training image to analyse")
    sizes, images = [], []
    for path in paths:
        image = read_image(path, max_megapixels=data.max_megapixels)
        sizes.append((image.shape[0], image.shape[1]))
        images.append(resize_image(image, (data.image_size, data.image_size)))
    return FieldImages(tuple(images), sizes[0], source)


def _generated(settings: RunConfig) -> FieldImages:
    side = settings.data.image_size
    rng = np.random.default_rng([settings.seed, 5])
    drawn = [normal_texture("grid", size=min(max(side, SMALLEST_PX), LARGEST_DRAWN), rng=rng) for _ in range(AVERAGED)]
    images = tuple(resize_image(image, (side, side)) for image in drawn)
    return FieldImages(images, (side, side), "generated images of a grid")

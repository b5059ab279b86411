"""The images that a receptive field is measured on and drawn over, and the size that they had at first."""

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
"""Images that gradients are averaged over."""

LARGEST_DRAWN: Final = 512
"""Generated images are drawn no larger than this, and enlarged."""


@dataclass(frozen=True, slots=True)
class FieldImages:
    """Images at the network's size, and what is known of them."""

    images: tuple[np.ndarray, ...]
    """uint8 RGB (s, s, 3), with s = `data.image_size`; the first is drawn on."""
    original_size: tuple[int, int]
    """Rows and columns of the first image as the camera took it."""
    source: str
    """Where the images came from, in words."""


def field_images(settings: RunConfig, chosen: Path | None, reporter: Reporter) -> FieldImages:
    """The image that the caller chose; else the first good training images; else generated ones, with a warning.

    Raises DataError, naming the file, where the chosen image cannot be read.
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
            f"{str(error).splitlines()[0]}. Generated images are analysed, and the camera's image is taken to have "
            "the network's size: give one of yours with --image FILE"
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

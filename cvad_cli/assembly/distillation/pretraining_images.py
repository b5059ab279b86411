"""Images that a teacher learns from: generated scenes and crops of real images.

Each image is a pure function of the seed, its stream (training, calibration, held out), its step and its index in the
batch. So a run that continues from a checkpoint sees exactly the images of an uninterrupted run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, final

import numpy as np

from cvad_cli.adapters.datasets import IMAGE_SUFFIXES
from cvad_cli.adapters.images import read_image
from cvad_cli.adapters.images.random_crops import random_crop, shrunk
from cvad_cli.core.dead_leaves import dead_leaves
from cvad_cli.errors import DataError

IMAGE_SIDE: Final = 256
"""Pixels of the backbones' input. The PDN gets the same image at half the side (EfficientAD: 512 and 256)."""

LONGEST_SIDE: Final = 1024  # pixels of a real image that is kept; enough for crops of a quarter of it
HELD_OUT_EVERY: Final = 8
CACHED_IMAGES: Final = 64
DRAWS: Final = 10
"""A run stops after this many unreadable images in a row, since a few bad files must not end a run of hours."""

SAMPLES: Final = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png"),
    *("coins.png", "color.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png"),
    *("motorcycle_left.png", "motorcycle_right.png", "page.png", "retina.jpg", "rocket.jpg", "text.png"),
)
"""scikit-image's sample photographs that come inside its wheel: nothing is downloaded."""

Stream = Literal["training", "calibration", "held_out"]
_STREAM_NUMBERS: Final[dict[Stream, int]] = {"training": 1, "calibration": 2, "held_out": 3}


@dataclass(frozen=True, slots=True)
class RealImages:
    """Real images, split once: held-out images are never trained on."""

    training: tuple[Path, ...]
    held_out: tuple[Path, ...]
    sources: tuple[tuple[str, int], ...]
    """(name of the folder or package, number of images)."""
    fingerprint: str
    """Hash of the files' names and sizes. It changes when images are added or removed."""


def find_real_images(
    folders: Sequence[Path], *, samples: bool, remedy: str = "--images takes a folder of images"
) -> RealImages:
    """List the images below `folders` and, with `samples`, scikit-image's own where it is installed.

    Raises DataError for a folder that is missing or holds no image.
    """
    found: list[Path] = []
    sources = []
    for folder in folders:
        images = _images_below(folder, remedy)
        sources.append((folder.resolve().name, len(images)))
        found += images
    if samples and (bundled := bundled_samples()):
        sources.append(("scikit-image samples", len(bundled)))
        found += bundled
    digest = hashlib.sha256("\n".join(f"{path.name} {path.stat().st_size}" for path in found).encode())
    if len(found) < HELD_OUT_EVERY:  # too few to hold any out: other crops of the same images are used
        return RealImages(tuple(found), tuple(found), tuple(sources), digest.hexdigest()[:16])
    held = found[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]
    kept = tuple(path for path in found if path not in set(held))
    return RealImages(kept, tuple(held), tuple(sources), digest.hexdigest()[:16])


def bundled_samples() -> tuple[Path, ...]:
    """scikit-image's sample photographs on this machine; none where it is not installed."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        return ()
    folder = Path(spec.origin).parent / "data"
    return tuple(folder / name for name in SAMPLES if (folder / name).is_file())


def _images_below(folder: Path, remedy: str) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {remedy}")
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not images:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{folder}: holds no image ({kinds}), at any depth; name another folder")
    return images


@final
class ImageSource:
    """Batches of pretraining images. Safe to use from several threads."""

    def __init__(self, real: RealImages, *, generated_share: float, seed: int) -> None:
        """Without real images, every image is generated."""
        self._real = real
        self._generated_share = generated_share if real.training else 1.0
        self._seed = seed
        self._unreadable: dict[Path, str] = {}
        self._read = lru_cache(CACHED_IMAGES)(_read_shrunk)

    def batch(self, stream: Stream, step: int, count: int) -> np.ndarray:
        """uint8 RGB (count, s, s, 3) with s = `IMAGE_SIDE`. Raises DataError where too many images cannot be read."""
        return np.stack([self.image(stream, step, index) for index in range(count)])

    def image(self, stream: Stream, step: int, index: int) -> np.ndarray:
        """One image of a batch: uint8 RGB (s, s, 3)."""
        rng = np.random.default_rng([self._seed, _STREAM_NUMBERS[stream], step, index])
        if rng.random() < self._generated_share:
            return dead_leaves(IMAGE_SIDE, rng=rng)
        paths = self._real.held_out if stream == "held_out" else self._real.training
        return random_crop(self._readable(paths, rng), IMAGE_SIDE, rng=rng)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process starts with an empty cache."""
        return _same_source, (self._real, self._generated_share, self._seed)

    @property
    def unreadable(self) -> dict[Path, str]:
        """Images that could not be read, and what was wrong with each."""
        return dict(self._unreadable)

    def note_unreadable(self, found: Mapping[Path, str]) -> None:
        """Add images that a copy in another process could not read."""
        self._unreadable.update(found)

    @property
    def skipped(self) -> tuple[str, ...]:
        """The errors of the images that could not be read; other images were drawn instead."""
        return tuple(self._unreadable[path] for path in sorted(self._unreadable))

    def _readable(self, paths: Sequence[Path], rng: np.random.Generator) -> np.ndarray:
        for _ in range(DRAWS):
            path = paths[int(rng.integers(len(paths)))]
            try:
                return self._read(path)
            except DataError as error:
                self._unreadable[path] = str(error)
        raise DataError(f"{DRAWS} images in a row cannot be read, the last one because: {self._unreadable[path]}")


def _same_source(real: RealImages, generated_share: float, seed: int) -> ImageSource:
    return ImageSource(real, generated_share=generated_share, seed=seed)


def _read_shrunk(path: Path) -> np.ndarray:
    return shrunk(read_image(path), LONGEST_SIDE)

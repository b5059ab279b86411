"""Image files with random damage are decoded, or refused as damaged; nothing else ever happens."""

from __future__ import annotations

import io
import random
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from cvad_cli.adapters.images import read_image
from cvad_cli.errors import DataError
from reliability.outcomes import Outcome

FORMATS = {"png": "PNG", "jpg": "JPEG", "bmp": "BMP", "tiff": "TIFF", "webp": "WEBP"}


def check_damaged_images(files: int, scratch: Path) -> Outcome:
    """`files` damaged files, the formats in turn."""
    chance, whole = random.Random(files), {suffix: encoded(kind) for suffix, kind in FORMATS.items()}
    decoded, refused, problems = 0, 0, []
    for number in range(files):
        suffix = list(FORMATS)[number % len(FORMATS)]
        path = scratch / f"damaged.{suffix}"
        path.write_bytes(damaged(whole[suffix], chance))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the decoders
                image = read_image(path)
        except DataError:
            refused += 1
        except Exception as error:  # noqa: BLE001 - each one is reported
            kept = scratch.parent / f"damaged_{number}.{suffix}"
            path.replace(kept)
            problems.append(f"{kept}: {error!r}")
        else:
            decoded += 1
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                problems.append(f"file {number}, {suffix}: an array of {image.dtype} {image.shape}")
    return Outcome({"files": files, "decoded": decoded, "refused": refused, "other": len(problems)}, problems)


def encoded(kind: str) -> bytes:
    """A small image with noise, as a file of this format."""
    levels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, kind)
    return file.getvalue()


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Cut the file short, change some of its bytes, insert or remove some; half of the changes hit the header."""
    kind, size = chance.randrange(4), len(content)
    if kind == 0:
        return content[: chance.randrange(size)]
    changed = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        index = chance.randrange(min(64, size) if chance.random() < 0.5 else size)
        if kind == 1:
            changed[index] = chance.randrange(256)
        elif kind == 2:
            changed[index:index] = chance.randbytes(chance.randint(1, 16))
        else:
            del changed[index : index + chance.randint(1, 16)]
            size = len(changed)
    return bytes(changed)

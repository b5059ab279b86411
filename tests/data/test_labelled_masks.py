"""A mask lies as its image lies: turned alike, of the same aspect, or refused with both files named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvad_cli.adapters.images import read_image, read_mask
from cvad_cli.adapters.images.masks import layout, one_warning, read_labelled_mask
from cvad_cli.errors import DataError
from cvad_cli.records import GOOD, ImageRecord

KINDS = ["PNG", "JPEG", "TIFF", "WEBP"]
RNG = np.random.default_rng(5)
IMAGE = RNG.integers(0, 255, (30, 48, 3), dtype=np.uint8)
MASK = np.zeros((30, 48), np.uint8)
MASK[3:6, 20:40] = 255


def save(path: Path, levels: np.ndarray, orientation: int = 1, kind: str = "PNG") -> Path:
    exif = Image.Exif()
    exif[274] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path, kind, **({} if orientation == 1 else {"exif": exif}))
    return path


def record(
    folder: Path, mask: np.ndarray, image: np.ndarray = IMAGE, tags: tuple[int, int] = (1, 1), kind: str = "PNG"
) -> ImageRecord:
    path = save(folder / "part.img", image, tags[0], kind)
    return ImageRecord(path, "part.img", "bent", save(folder / "part_mask.img", mask, tags[1], kind))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_a_layout_is_that_of_the_decoded_image(tmp_path: Path, kind: str, orientation: int) -> None:
    path = save(tmp_path / "part.img", IMAGE, orientation, kind)
    found = layout(path)
    assert (found.size, found.orientation) == (read_image(path).shape[:2], orientation)


def test_the_layout_of_a_palette_or_a_16_bit_image_is_known_too(tmp_path: Path) -> None:
    deep = save(tmp_path / "deep.png", MASK.astype(np.uint16) * 257)
    Image.fromarray(IMAGE).convert("P").save(tmp_path / "palette.png")
    for path in (deep, tmp_path / "palette.png"):
        assert (layout(path).size, layout(path).orientation) == ((30, 48), 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_the_orientation_is_applied_to_image_and_mask_alike(tmp_path: Path, kind: str, orientation: int) -> None:
    part = record(tmp_path, MASK, tags=(orientation, orientation), kind=kind)
    found = read_labelled_mask(part)
    assert found is not None
    assert found.caution is None
    assert found.mask.shape == read_image(part.path).shape[:2]
    np.testing.assert_array_equal(found.mask, read_mask(part.mask_path))
    if kind == "PNG":
        tall = orientation >= 5
        assert found.mask.shape == ((48, 30) if tall else (30, 48))
        assert found.mask.sum() == (MASK > 0).sum()


@pytest.mark.parametrize("tags", [(3, 1), (1, 3), (2, 1), (1, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_an_orientation_on_one_alone_is_a_warning(tmp_path: Path, tags: tuple[int, int], kind: str) -> None:
    part = record(tmp_path, MASK, tags=tags, kind=kind)
    found = read_labelled_mask(part)
    assert found is not None
    assert found.caution is not None
    assert str(part.path) in found.caution
    assert str(part.mask_path) in found.caution
    assert f"orientation {max(tags)}" in found.caution


def test_many_cautions_are_one_warning() -> None:
    assert one_warning(["a"]) == "a"
    assert one_warning(["a", "b", "c"]).startswith("a")
    assert "2 more" in one_warning(["a", "b", "c"])


@pytest.mark.parametrize(
    ("image", "mask", "fits"),
    [
        ((30, 48), (30, 48), True),
        ((3000, 4800), (300, 480), True),
        ((300, 480), (600, 960), True),
        ((1000, 1000), (500, 504), True),  # 0.8 %
        ((1000, 1000), (500, 506), False),  # 1.2 %, and more than rounding
        ((2000, 100), (256, 13), True),  # 12.8 rounded to whole pixels
        ((2000, 100), (256, 12), True),
        ((2000, 100), (256, 14), False),
        ((30, 48), (48, 30), False),
        ((300, 301), (301, 300), False),  # transposed, though within 1 %
        ((300, 480), (96, 60), False),
        ((300, 480), (256, 256), False),
    ],
)
def test_a_mask_of_the_same_aspect_is_resized_and_another_is_refused(
    tmp_path: Path, image: tuple[int, int], mask: tuple[int, int], fits: bool
) -> None:
    levels = np.zeros(mask, np.uint8)
    levels[mask[0] // 2, mask[1] // 3] = 255
    part = record(tmp_path, levels, np.zeros((*image, 3), np.uint8))
    if fits:
        found = read_labelled_mask(part)
        assert found is not None
        assert found.mask.shape == image
        assert found.mask.any()
        return
    with pytest.raises(DataError) as error:
        read_labelled_mask(part)
    message = str(error.value)
    assert str(part.path) in message
    assert str(part.mask_path) in message
    assert f"{image[1]} x {image[0]}" in message
    assert f"{mask[1]} x {mask[0]}" in message
    assert ("transposed" in message) == (mask != (256, 256) and image[0] < 1000)


def test_a_mask_that_was_drawn_on_the_stored_pixels_names_the_orientation(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"transposed.*EXIF orientation 6 of the image") as error:
        read_labelled_mask(record(tmp_path, MASK, tags=(6, 1)))
    assert "30 x 48" in str(error.value)


def test_what_has_no_mask_has_none(tmp_path: Path) -> None:
    path = save(tmp_path / "part.png", IMAGE)
    assert read_labelled_mask(ImageRecord(path, "part.png", "bent")) is None
    assert read_labelled_mask(ImageRecord(path, "part.png", GOOD)) is None


def test_a_header_is_read_without_the_pixels(tmp_path: Path) -> None:
    path = save(tmp_path / "part.png", IMAGE)
    content = bytearray(path.read_bytes())
    content[-20] ^= 255  # in the last checksum or pixels
    path.write_bytes(bytes(content))
    with pytest.raises(DataError):
        read_image(path)
    assert layout(path).size == (30, 48)


@pytest.fixture
def own_data(sample_data: Path, tmp_path: Path) -> Path:
    """A copy of the sample data with one image that is not square, and its mask."""
    root = shutil.copytree(sample_data, tmp_path / "data")
    for folder in (root / "grid" / "test").iterdir():
        if folder.name not in {"good", "bent"}:
            shutil.rmtree(folder)
    for path in (image_of(root), mask_of(root)):
        save(path, np.asarray(Image.open(path))[:96])
    return root


def image_of(root: Path) -> Path:
    return root / "grid" / "test" / "bent" / "000.png"


def mask_of(root: Path) -> Path:
    return root / "grid" / "ground_truth" / "bent" / "000_mask.png"


@pytest.fixture
def here(trained: Path, own_data: Path, tmp_path: Path) -> tuple[object, ...]:
    """The options of a trained run on one's own data."""
    shutil.copytree(trained.parent / "runs", tmp_path / "runs")
    options = [f"data.root={own_data}", f"output.root={tmp_path / 'runs'}", f"qdrant.path={tmp_path / 'index'}"]
    return ("--config", trained, *(part for option in options for part in ("--set", option)))


COMMANDS = pytest.mark.parametrize("command", [("evaluate",), ("index",)], ids=["evaluate", "index"])


@COMMANDS
def test_a_transposed_mask_stops_the_work_or_its_image_is_skipped(
    command: tuple, here: tuple, own_data: Path, cvad
) -> None:
    mask = mask_of(own_data)
    save(mask, np.asarray(Image.open(mask)).T)
    stopped = cvad(*command, *here, "-q")
    assert stopped.exit_code == 3, stopped.output
    for part in (str(image_of(own_data)), str(mask), "128 x 96", "96 x 128", "transposed"):
        assert part in stopped.stderr
    skipped = cvad(*command, *here, "--json", "--set", "data.on_error=skip")
    assert skipped.exit_code == 0, skipped.output
    (entry,) = json.loads(skipped.stdout)["skipped"]
    assert entry["key"].endswith("bent/000.png")
    assert "transposed" in entry["reason"]


@COMMANDS
def test_a_tag_on_the_image_alone_is_told_once(command: tuple, here: tuple, own_data: Path, cvad) -> None:
    for name in ("000", "001"):
        image = image_of(own_data).with_name(f"{name}.png")
        save(image, np.asarray(Image.open(image))[::-1, ::-1], 3)
    told = cvad(*command, *here)
    assert told.exit_code == 0, told.output
    assert told.stderr.count("EXIF orientation 3") == 1
    assert "1 more" in told.stderr


def test_a_smaller_mask_of_the_same_aspect_serves(here: tuple, own_data: Path, cvad) -> None:
    mask = mask_of(own_data)
    with Image.open(mask) as whole:
        whole.resize((64, 48), Image.Resampling.NEAREST).save(tmp := mask.with_suffix(".tmp"), "PNG")
    tmp.replace(mask)
    result = cvad("evaluate", *here, "--json", "--set", "evaluation.resolution=original")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["pixel"]["auroc"] is not None

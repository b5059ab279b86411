"""Generated data sets on disk: the layout, the bytes, and folders that are not ours to touch."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvad_cli.adapters import sample_data
from cvad_cli.adapters.datasets import load_mvtec
from cvad_cli.adapters.sample_data import PLAN_NAME, write_sample_dataset
from cvad_cli.core.textures import TEXTURES
from cvad_cli.errors import DataError
from cvad_cli.records import GOOD

SMALL = {"size": 64, "train": 3, "test_good": 2, "per_defect": 1, "seed": 7}

HALVES = json.dumps({**SMALL, "category": "grid", "train": 2.5, "cvad_version": "0.1.0"})


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("category", list(TEXTURES))
def test_the_layout_is_mvtec_s_and_loads(tmp_path, category):
    folder = write_sample_dataset(tmp_path, category, **SMALL)
    assert folder == tmp_path / category
    loaded = load_mvtec(tmp_path, category)
    assert [record.key for record in loaded.train] == [f"train/good/00{k}.png" for k in range(3)]
    assert sorted(record.defect_type for record in loaded.test) == sorted([GOOD, GOOD, *TEXTURES[category]])
    for record in loaded.test:
        assert (record.mask_path is None) == record.is_normal
        image = np.asarray(Image.open(record.path))
        assert image.shape == (64, 64, 3)
        if record.mask_path:
            mask = np.asarray(Image.open(record.mask_path))
            assert mask.shape == (64, 64)
            assert set(np.unique(mask)) == {0, 255}


def test_a_seed_fixes_every_byte(tmp_path):
    first = write_sample_dataset(tmp_path / "a", "tile", **SMALL)
    second = write_sample_dataset(tmp_path / "b", "tile", **SMALL)
    other = write_sample_dataset(tmp_path / "c", "tile", **{**SMALL, "seed": 8})
    assert digests(first) == digests(second)
    shared = set(digests(first).values()) & set(digests(other).values())
    assert not shared


def test_a_image_does_not_depend_on_how_many_are_written(tmp_path):
    few = digests(write_sample_dataset(tmp_path / "few", "grid", **SMALL))
    more = {"train": 4, "test_good": 3, "per_defect": 2}
    many = digests(write_sample_dataset(tmp_path / "many", "grid", **{**SMALL, **more}))
    assert {name for name in few if many[name] != few[name]} == {PLAN_NAME}


def test_all_images_of_a_set_differ(tmp_path):
    images = [digest for name, digest in digests(write_sample_dataset(tmp_path, "grid", **SMALL)).items()]
    assert len(set(images)) == len(images)


def test_the_same_set_is_used_again(tmp_path):
    folder = write_sample_dataset(tmp_path, "grid", **SMALL)
    for path in folder.rglob("*.png"):
        os.utime(path, (1, 1))
    write_sample_dataset(tmp_path, "grid", **SMALL)
    assert {path.stat().st_mtime for path in folder.rglob("*.png")} == {1}


@pytest.mark.parametrize("change", [{"seed": 8}, {"size": 65}, {"train": 2}, {"per_defect": 0}], ids=str)
def test_a_set_from_other_numbers_is_replaced(tmp_path, change):
    write_sample_dataset(tmp_path, "grid", **SMALL)
    replaced = write_sample_dataset(tmp_path, "grid", **{**SMALL, **change})
    fresh = write_sample_dataset(tmp_path / "fresh", "grid", **{**SMALL, **change})
    assert digests(replaced) == digests(fresh)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "grid"]


def test_a_set_from_another_version_is_replaced(tmp_path, monkeypatch):
    folder = write_sample_dataset(tmp_path, "grid", **SMALL)
    plan = json.loads((folder / PLAN_NAME).read_text())
    (folder / PLAN_NAME).write_text(json.dumps({**plan, "cvad_version": "0.0.1"}))
    write_sample_dataset(tmp_path, "grid", **SMALL)
    assert json.loads((folder / PLAN_NAME).read_text()) == plan


def test_a_set_with_a_image_missing_is_written_anew(tmp_path):
    folder = write_sample_dataset(tmp_path, "grid", **SMALL)
    whole = digests(folder)
    (folder / "test" / "bent" / "000.png").unlink()
    write_sample_dataset(tmp_path, "grid", **SMALL)
    assert digests(folder) == whole


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "grid" / "train").mkdir(parents=True)
    write_sample_dataset(tmp_path, "grid", **SMALL)
    assert load_mvtec(tmp_path, "grid").train


@pytest.mark.parametrize("marker", [None, "{}", "not JSON", "[1]", HALVES], ids=str)
def test_a_folder_of_others_is_refused_and_left_alone(tmp_path, marker):
    real = tmp_path / "grid" / "train" / "good" / "000.png"
    real.parent.mkdir(parents=True)
    real.write_bytes(b"years of work")
    if marker is not None:
        (tmp_path / "grid" / PLAN_NAME).write_text(marker)
    before = digests(tmp_path)
    with pytest.raises(DataError, match=r"grid: holds files that cvad did not generate"):
        write_sample_dataset(tmp_path, "grid", **SMALL)
    assert digests(tmp_path) == before


def test_a_file_put_among_ours_is_not_deleted(tmp_path):
    folder = write_sample_dataset(tmp_path, "grid", **SMALL)
    (folder / "test" / "bent" / "mine.png").write_bytes(b"years of work")
    before = digests(tmp_path)
    with pytest.raises(DataError, match=r"holds 'test/bent/mine.png' among generated images"):
        write_sample_dataset(tmp_path, "grid", **{**SMALL, "seed": 8})
    assert digests(tmp_path) == before
    write_sample_dataset(tmp_path, "grid", **SMALL)  # the same numbers replace nothing


def test_a_file_or_a_link_in_the_way_is_refused(tmp_path):
    (tmp_path / "grid").write_text("a file")
    with pytest.raises(DataError, match="found a link or a file"):
        write_sample_dataset(tmp_path, "grid", **SMALL)
    (tmp_path / "tile").symlink_to(write_sample_dataset(tmp_path / "else", "tile", **SMALL))
    with pytest.raises(DataError, match="found a link or a file"):
        write_sample_dataset(tmp_path, "tile", **SMALL)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError], ids=lambda error: error.__name__)
def test_an_interrupted_set_leaves_the_former_one_and_nothing_else(tmp_path, monkeypatch, error):
    write_sample_dataset(tmp_path, "grid", **SMALL)
    before = digests(tmp_path)
    draw = sample_data.normal_texture
    drawn = []

    def draw_some(*arguments, **named):
        drawn.append(arguments)
        if len(drawn) == 3:
            raise error
        return draw(*arguments, **named)

    monkeypatch.setattr(sample_data, "normal_texture", draw_some)
    with pytest.raises(error):
        write_sample_dataset(tmp_path, "grid", **{**SMALL, "seed": 8})
    assert digests(tmp_path) == before
    drawn.clear()
    with pytest.raises(error):
        write_sample_dataset(tmp_path / "new", "grid", **SMALL)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("category", "change", "message"),
    [
        pytest.param("bottle", {}, "no look-alike of 'bottle'; there are grid, leather, tile", id="category"),
        pytest.param("grid", {"size": 32}, "size: expected a whole number of at least 64, got 32", id="size"),
        pytest.param(
            "grid", {"train": 0}, "train: expected a whole number of at least 1, got 0", id="nothing to learn from"
        ),
        pytest.param(
            "grid", {"per_defect": -1}, "per_defect: expected a whole number of at least 0, got -1", id="negative count"
        ),
        pytest.param("grid", {"seed": -1}, "seed: expected a whole number of at least 0, got -1", id="negative seed"),
    ],
)
def test_impossible_numbers_are_refused_before_anything_is_written(tmp_path, category, change, message):
    with pytest.raises(DataError, match=message):
        write_sample_dataset(tmp_path, category, **{**SMALL, **change})
    assert list(tmp_path.iterdir()) == []

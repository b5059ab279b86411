"""The describer: fitted on good images alone, the same for the same seed, and whole again out of a bundle."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cvad_cli.adapters.images import read_image, write_image
from cvad_cli.adapters.storage.bundles import Bundle, read_bundle, write_bundle
from cvad_cli.assembly.data.images import open_dataset
from cvad_cli.assembly.defect_types import describer as describing
from cvad_cli.assembly.defect_types.describer import (
    Describer,
    FitLimits,
    FittedDescriber,
    fit_describer,
    open_describer,
)
from cvad_cli.config.load import load_config
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.descriptors import CELLS, ORIENTATIONS, query_vector
from cvad_cli.core.regions import Region, RegionRule, find_regions
from cvad_cli.errors import BundleError, DataError


class Quiet:
    """A reporter that keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.done = 0

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator:
        yield self._advance

    def note(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def _advance(self, steps: int) -> None:
        self.done += steps


LITTLE = FitLimits(views=24, cells=100, feature_bytes=1 << 22)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, sample_data: Path) -> RunConfig:
    from tests.conftest import SMALL_RUN

    folder = tmp_path_factory.mktemp("describing")
    path = folder / "small.yaml"
    path.write_text(SMALL_RUN.format(root=sample_data, output=folder / "runs"), encoding="utf-8")
    return load_config(path, [])


@pytest.fixture(scope="module")
def fitted(settings: RunConfig) -> FittedDescriber:
    found = fit_describer(settings, open_dataset(settings.data).train, "cpu", Quiet(), limits=LITTLE)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, fitted: FittedDescriber) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle(folder, {"name": "small"}, fitted.writers)
    return read_bundle(folder)


@pytest.fixture(scope="module")
def describer(bundle: Bundle) -> Describer:
    return open_describer(bundle, "cpu")


def region_at(rows: slice, columns: slice, image_size: tuple[int, int]) -> Region:
    values = np.zeros((64, 64))
    values[rows, columns] = 2.0
    return find_regions(values, image_size, RegionRule(seed=1.0))[0]


def test_the_same_seed_gives_the_same_describer(settings: RunConfig, fitted: FittedDescriber) -> None:
    records = open_dataset(settings.data).train
    again = fit_describer(settings, records, "cpu", Quiet(), limits=LITTLE)
    assert again is not None
    for mine, twin in zip(
        (*fitted.normal.stages, *fitted.normal.whitening), (*again.normal.stages, *again.normal.whitening), strict=True
    ):
        assert (mine == twin).all()
    assert fitted.normal.cell_threshold == again.normal.cell_threshold


def test_every_stage_of_the_backbone_is_described_and_no_more_cells_are_kept_than_asked(
    fitted: FittedDescriber,
) -> None:
    assert [stage.shape for stage in fitted.normal.stages] == [(100, width) for width in (64, 128, 256, 512)]
    assert all(np.isfinite(matrix).all() for matrix in fitted.normal.whitening)
    assert fitted.normal.cell_threshold > 0


def test_fitting_holds_no_more_features_than_its_bound(settings: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    limits = dataclasses.replace(LITTLE, feature_bytes=200_000)
    real = describing.normal_model
    monkeypatch.setattr(describing, "normal_model", lambda kept, cells: seen.append(cells) or real(kept, cells))
    assert fit_describer(settings, open_dataset(settings.data).train, "cpu", Quiet(), limits=limits) is not None
    (cells,) = seen
    assert sum(stage.nbytes for stage in cells.stages) <= 200_000
    assert len(np.unique(cells.images)) == 12  # every good image was looked at


def test_a_describer_comes_out_of_its_bundle_as_it_went_in(fitted: FittedDescriber, describer: Describer) -> None:
    image = np.random.default_rng(0).integers(0, 256, (300, 280, 3), dtype=np.uint8)
    regions = [region_at(slice(5, 9), slice(5, 20), (300, 280)), region_at(slice(40, 60), slice(50, 55), (300, 280))]
    straight = Describer(
        describing.feature_function(fitted.backbone.network, describing.VIEW_PX, "cpu"), fitted.normal, "cpu"
    )
    found = describer.describe(image, regions)
    assert found.shape == (2, ORIENTATIONS, describer.dimension)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=2), 1, atol=1e-5)
    np.testing.assert_allclose(found, straight.describe(image, regions), atol=1e-5)
    assert describer.describe(image, []).shape == (0, ORIENTATIONS, describer.dimension)


def test_a_turned_image_has_the_same_vectors_in_another_order(describer: Describer) -> None:
    image = np.random.default_rng(1).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    upright = describer.describe(image, [region_at(slice(8, 16), slice(20, 44), (256, 256))])[0]
    turned = np.ascontiguousarray(np.rot90(image))
    values = np.zeros((64, 64))
    values[8:16, 20:44] = 2.0
    (region,) = find_regions(np.rot90(values), (256, 256), RegionRule(seed=1.0))
    found = describer.describe(turned, [region])[0]
    np.testing.assert_allclose(found[[0, 1, 2, 3]], upright[[1, 2, 3, 0]], atol=1e-4)
    np.testing.assert_allclose(query_vector(found), query_vector(upright), atol=1e-4)


def test_only_what_is_seen_about_the_region_counts(describer: Describer) -> None:
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    region = region_at(slice(10, 12), slice(10, 12), (1024, 1024))  # about (176, 176): a view of 256 px
    before = describer.describe(image, [region])
    image[400:] = 0
    assert (describer.describe(image, [region]) == before).all()
    image[170:180, 170:180] = 0
    assert np.abs(describer.describe(image, [region]) - before).max() > 1e-3


def test_a_image_smaller_than_a_view_can_be_described(describer: Describer) -> None:
    image = np.random.default_rng(3).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    found = describer.describe(image, [region_at(slice(0, 64), slice(60, 64), (40, 90))])
    assert np.isfinite(found).all()


def test_the_same_kind_of_defect_is_nearer_than_another(describer: Describer, settings: RunConfig) -> None:
    image = read_image(open_dataset(settings.data).train[0].path)
    vectors = []
    for kind, rows in (("dark", 20), ("dark", 50), ("light", 20), ("light", 50)):
        damaged = image.copy()
        damaged[2 * rows : 2 * rows + 12, 40:70] = 0 if kind == "dark" else 255
        region = region_at(slice(rows, rows + 6), slice(20, 35), damaged.shape[:2])
        vectors.append(query_vector(describer.describe(damaged, [region]))[0])
    likeness = np.asarray(vectors) @ np.asarray(vectors).T
    assert min(likeness[0, 1], likeness[2, 3]) > max(likeness[0, 2], likeness[0, 3], likeness[1, 2], likeness[1, 3])


def test_a_image_that_cannot_be_read_is_named(settings: RunConfig, tmp_path: Path) -> None:
    records = open_dataset(settings.data).train[:4]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    records = (*records[:2], dataclasses.replace(records[2], path=broken), *records[3:])
    with pytest.raises(DataError, match=r"broken\.png"):
        fit_describer(settings, records, "cpu", Quiet(), limits=LITTLE)


def test_images_of_several_sizes_are_fitted_together(settings: RunConfig, tmp_path: Path) -> None:
    rng, records = np.random.default_rng(4), []
    for number, size in enumerate([(300, 500), (40, 60), (256, 256)]):
        path = tmp_path / f"{number}.png"
        write_image(path, rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        records.append(dataclasses.replace(open_dataset(settings.data).train[0], path=path))
    found = fit_describer(settings, records, "cpu", Quiet(), limits=LITTLE)
    assert found is not None
    assert len(found.normal.stages[0]) <= 100 < 3 * CELLS**2


def test_a_bundle_without_a_describer_says_what_to_do(tmp_path: Path) -> None:
    write_bundle(tmp_path, {"name": "old"}, {"other": (".txt", lambda path: path.write_text("x"))})
    with pytest.raises(BundleError, match=r"has no describer.*run `cvad train`"):
        open_describer(read_bundle(tmp_path), "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            {"version": 999}, r"version 999, this cvad makes version 1; run `cvad train`", id="another version"
        ),
        pytest.param({"cell_threshold": None}, "is not a describer that this cvad can read", id="no threshold"),
        pytest.param({"layers": ["layer1"]}, "is not a describer that this cvad can read", id="other layers"),
    ],
)
def test_a_describer_that_does_not_fit_is_refused(tmp_path: Path, bundle: Bundle, change: dict, message: str) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    path = bundle.file("describer")
    with safe_open(path, framework="np") as file:
        header = {**json.loads(file.metadata()["describer"]), **change}
    tensors = load_file(path)
    metadata = {"describer": json.dumps(header)}
    writers = {"describer": (".safetensors", lambda staged: save_file(tensors, staged, metadata=metadata))}
    write_bundle(tmp_path, {"name": "changed"}, writers)
    with pytest.raises(BundleError, match=message):
        open_describer(read_bundle(tmp_path), "cpu")

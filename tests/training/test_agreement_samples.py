"""Agreement samples are images that the model was not fitted on, drawn by the seed and not by their names."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cvad_cli.adapters.storage.bundles import read_bundle, write_bundle
from cvad_cli.adapters.storage.tensor_files import read_arrays, read_header, write_tensors
from cvad_cli.assembly.data.images import open_dataset, read_image
from cvad_cli.assembly.run_folders import bundle_folder
from cvad_cli.assembly.serving.engine_choice import as_reference
from cvad_cli.assembly.serving.open_bundle import open_detector
from cvad_cli.assembly.training.agreement_samples import ROLE, AgreementSamples, drawn, read_agreement_samples
from cvad_cli.assembly.training.calibration import plan_calibration
from cvad_cli.config.load import load_config
from cvad_cli.config.schema import RunConfig
from cvad_cli.records import GOOD, ImageRecord

SPLIT = ("calibration.method=split_conformal", "calibration.fraction=0.5")


def samples_of(settings: RunConfig) -> AgreementSamples:
    found = read_agreement_samples(read_bundle(bundle_folder(settings)))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def cross(trained: Path) -> RunConfig:
    """A run whose memory bank is chosen from every good image."""
    return load_config(trained)


@pytest.fixture(scope="module")
def split(trained: Path, cvad, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run that keeps half of the good images out of its memory bank."""
    changes = [*SPLIT, f"output.root={tmp_path_factory.mktemp('split')}"]
    arguments = [argument for change in changes for argument in ("--set", change)]
    result = cvad("train", "--config", trained, "--quiet", *arguments)
    assert result.exit_code == 0, result.output
    return load_config(trained, changes)


def test_samples_are_held_out_images_where_there_are_any(split: RunConfig) -> None:
    records = open_dataset(split.data).train
    fitted = {records[index].key for index in plan_calibration(split.calibration, len(records), seed=split.seed).final}
    by_key = {record.key: record for record in records}
    samples = samples_of(split)
    held_out = [key for key in samples.keys if key not in fitted]
    assert sorted(held_out) == sorted(by_key.keys() - fitted), "each of them, before any other image"
    assert samples.keys[: len(held_out)] == tuple(held_out)
    for image, key in zip(samples.images, held_out, strict=False):
        np.testing.assert_array_equal(image, read_image(by_key[key].path, split.data))


def test_where_the_bank_holds_every_good_image_no_sample_is_one_of_them(cross: RunConfig) -> None:
    samples, reference = samples_of(cross), replace(cross, runtime=as_reference(cross.runtime))
    images = [read_image(record.path, cross.data) for record in open_dataset(cross.data).train]
    known = {image.tobytes() for image in images}
    assert not [image for image in samples.images if image.tobytes() in known]
    judge = open_detector(reference, "cpu").detector.predict
    of_the_bank = np.mean([found.score for found in judge(images)])
    assert samples.scores[samples.good].mean() > of_the_bank + 0.2 * samples.good_std, (
        "the bank does not know them by heart"
    )


def test_a_bundle_with_the_names_of_earlier_releases_opens(cross: RunConfig, tmp_path: Path) -> None:
    former = tmp_path / cross.name / "bundle"
    shutil.copytree(bundle_folder(cross), former, ignore=shutil.ignore_patterns("cache"))
    rename_as_before(former)
    settings = replace(cross, output=replace(cross.output, root=str(tmp_path)))
    found, now = samples_of(settings), samples_of(cross)
    assert {path.name.split("-")[0] for path in former.glob("*.safetensors")} >= {"probes", "memory_bank"}
    assert (found.good_std, found.peak_std, found.keys, found.unseen) == (
        now.good_std,
        now.peak_std,
        now.keys,
        now.unseen,
    )
    for name in ("images", "good", "scores", "peaks"):
        np.testing.assert_array_equal(getattr(found, name), getattr(now, name))
    serving = open_detector(settings, "cpu").serving
    assert serving.agreement is None or serving.agreement["samples"] == len(now.scores)


def rename_as_before(folder: Path) -> None:
    """Rewrite a bundle's agreement samples under the names that they had in earlier releases."""
    bundle = read_bundle(folder)
    arrays, header = read_arrays(bundle.file(ROLE)), read_header(bundle.file(ROLE))
    arrays["pictures"] = arrays.pop("images")
    writers = {role: (".safetensors", partial(shutil.copyfile, bundle.file(role))) for role in bundle.roles}
    del writers[ROLE]
    writers["probes"] = (".safetensors", lambda path: write_tensors(path, arrays, {"probes": header[ROLE]}))
    made_by_cvad = ("schema_version", "cvad_version", "created", "versions", "files", "fingerprint")
    write_bundle(folder, {key: value for key, value in bundle.manifest.items() if key not in made_by_cvad}, writers)


NAMES = [f"train/good/{number:03d}.png" for number in range(60)]


def names_drawn(names: list[str], unseen: list[str], seed: int, count: int = 10) -> list[str]:
    records = [ImageRecord(Path(name), name, GOOD) for name in names]
    found = drawn(records, unseen, count, rng=np.random.default_rng(seed))
    assert [each.fitted for each in found] == [each.record.key not in unseen for each in found]
    return [each.record.key for each in found]


def test_images_are_drawn_by_the_seed_and_not_by_the_order_of_their_names() -> None:
    first = names_drawn(NAMES, [], 1)
    assert len(set(first)) == 10
    assert first != sorted(first)
    assert set(first) != set(NAMES[:10])
    assert names_drawn(NAMES[::-1], [], 1) == first, "however they are listed"
    assert names_drawn(NAMES, [], 2) != first


def test_what_the_model_was_not_fitted_on_is_drawn_before_anything_else() -> None:
    unseen = NAMES[50:56]
    found = names_drawn(NAMES, unseen, 1)
    assert sorted(found[:6]) == unseen
    assert found[:6] != unseen
    assert set(names_drawn(NAMES, unseen, 1, count=4)) < set(unseen)


def test_draws_are_spread_over_all_names_alike() -> None:
    counts = np.zeros(60)
    for seed in range(300):
        counts[[NAMES.index(name) for name in names_drawn(NAMES, [], seed)]] += 1
    assert counts.min() >= 50 - 5 * np.sqrt(50)
    assert counts.max() <= 50 + 5 * np.sqrt(50)

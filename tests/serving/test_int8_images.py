"""int8 takes its ranges from good images, is judged by others, and takes back what it adds to an image's peak."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import replace

import numpy as np
import pytest

from cvad_cli.adapters.pdn import build_pdn, save_teacher
from cvad_cli.adapters.runtime_openvino.compiled import processor_precisions
from cvad_cli.adapters.sample_data import write_sample_dataset
from cvad_cli.adapters.storage.bundles import read_bundle
from cvad_cli.assembly.data.images import open_dataset, read_image
from cvad_cli.assembly.run_folders import bundle_folder
from cvad_cli.assembly.serving.int8_images import Int8Images
from cvad_cli.assembly.serving.open_bundle import OpenBundle, open_detector
from cvad_cli.assembly.training.agreement_samples import AgreementSamples, read_agreement_samples
from cvad_cli.config.load import load_config
from cvad_cli.config.schema import RunConfig
from cvad_cli.errors import DataError
from cvad_cli.records import Prediction

with warnings.catch_warnings():  # anomalib imports deprecated modules
    warnings.simplefilter("ignore")
    importlib.import_module("anomalib.models.image.efficient_ad.torch_model")

CONFIG = """
name: small
seed: 3
device: cpu
data: {{root: {root}, category: grid, image_size: 256}}
model: {{name: efficient_ad, weights: {teacher}}}
trainer: {{preset: quick, max_steps: 6}}
calibration: {{false_alarm_rate: 0.4}}
output: {{root: {output}}}
"""


@pytest.fixture(scope="module")
def run(cvad, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A trained EfficientAD of few channels, with more good images than probes."""
    folder = tmp_path_factory.mktemp("int8")
    write_sample_dataset(folder / "data", "grid", size=128, train=28, test_good=2, per_defect=1, seed=11)
    teacher, config = folder / "tiny.safetensors", folder / "small.yaml"
    save_teacher(teacher, build_pdn("small", 6, padding=False, seed=1), {"steps": 0})
    config.write_text(CONFIG.format(root=folder / "data", teacher=teacher, output=folder / "runs"), encoding="utf-8")
    result = cvad("train", "-c", config)
    assert result.exit_code == 0, result.output
    return load_config(config)


@pytest.fixture(scope="module")
def samples(run: RunConfig) -> AgreementSamples:
    found = read_agreement_samples(read_bundle(bundle_folder(run)))
    assert found is not None
    return found


def served(run: RunConfig, precision: str) -> OpenBundle:
    return open_detector(replace(run, runtime=replace(run.runtime, engine="openvino", precision=precision)), "cpu")


def chosen(run: RunConfig, samples: AgreementSamples, seed: int = 3) -> Int8Images:
    return Int8Images.of(run.data, samples, seed=seed)


def keys_of(run: RunConfig, images: list[np.ndarray]) -> list[str | None]:
    """Names of good images in the data set; None for what is none of them."""
    names = {read_image(each.path, run.data).tobytes(): each.key for each in open_dataset(run.data).train}
    return [names.get(image.tobytes()) for image in images]


def test_two_in_three_images_give_the_ranges_in_the_order_of_the_seed(
    run: RunConfig, samples: AgreementSamples
) -> None:
    rest = [each.key for each in open_dataset(run.data).train if each.key not in samples.keys]
    found, other = chosen(run, samples), chosen(run, samples, seed=4)
    ranges = keys_of(run, found.ranges)
    assert len(ranges) == len(set(ranges)) == -(-2 * len(rest) // 3)
    assert set(ranges) <= set(rest)
    assert ranges != sorted(ranges, key=str), "not in the order of the names"
    assert keys_of(run, chosen(run, samples).ranges) == ranges
    assert set(keys_of(run, other.ranges)) != set(ranges)


def test_int8_is_judged_by_images_that_the_model_was_not_fitted_on(run: RunConfig, samples: AgreementSamples) -> None:
    unseen = ("train/good/001.png", "train/good/020.png")
    few = replace(samples, keys=("train/good/000.png",), unseen=unseen)
    found = chosen(run, few)
    assert {*keys_of(run, found.judging[:1]), *keys_of(run, found.peaks[:1])} == set(unseen)
    crops = [*found.judging[1:], *found.peaks[1:]]
    assert len(crops) == 27 // 3 - 2
    assert keys_of(run, crops) == [None] * len(crops), "of the others, crops that no model was fitted on"
    assert not set(unseen) & set(keys_of(run, found.ranges))


def test_where_all_good_images_are_probes_int8_says_what_it_lacks(run: RunConfig, samples: AgreementSamples) -> None:
    every = replace(samples, keys=tuple(record.key for record in open_dataset(run.data).train))
    with pytest.raises(DataError, match=r"int8 takes its ranges from good images .* set runtime\.precision to auto"):
        chosen(run, every)


def test_images_that_join_the_probes_count_as_good_ones(run: RunConfig, samples: AgreementSamples) -> None:
    added_images = chosen(run, samples)
    exact = served(run, "f32").detector.predict
    more = added_images.joined(samples, exact)
    added = len(added_images.judging)
    assert (len(more.scores), int(more.good.sum())) == (len(samples.scores) + added, int(samples.good.sum()) + added)

    def judge(images) -> list[Prediction]:
        """As float32 does, but two spreads higher for what joined."""
        joined = {pixels.tobytes() for pixels in added_images.judging}
        lift = [2 * samples.good_std * (np.asarray(image).tobytes() in joined) for image in images]
        return [
            Prediction(each.score + higher, each.anomaly_map + np.float32(higher))
            for each, higher in zip(exact(images), lift, strict=True)
        ]

    assert more.test(exact).shift == pytest.approx(0, abs=1e-3)
    assert more.test(judge).shift == pytest.approx(2 * added / more.good.sum(), rel=1e-2)


@pytest.mark.skipif("int8" not in processor_precisions(), reason="this processor has no int8 arithmetic")
def test_int8_adds_nothing_to_the_peaks_of_good_images_on_average(run: RunConfig, samples: AgreementSamples) -> None:
    pytest.importorskip("nncf")
    bundle = served(run, "int8")
    assert bundle.serving.agreement is not None
    assert bundle.serving.agreement["samples"] > len(samples.scores)
    images = chosen(run, samples).peaks
    peaks = [
        np.array([found.anomaly_map.max() for found in each.detector.predict(images)])
        for each in (bundle, served(run, "f32"))
    ]
    assert np.mean(peaks[0] - peaks[1]) == pytest.approx(0, abs=1e-4 * samples.good_std)
    assert np.abs(peaks[0] - peaks[1]).max() > 0, "the network was quantised"
    again = served(run, "int8")
    assert again.serving.cache is not None
    assert again.detector.predict(images[:1])[0].score == pytest.approx(float(peaks[0][0]), rel=1e-3)

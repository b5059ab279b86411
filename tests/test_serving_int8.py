"""int8 takes its ranges from good pictures, is judged by others, and takes back what it adds to a picture's peak."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import replace

import numpy as np
import pytest

from cvad_cli.adapters.bundles import read_bundle
from cvad_cli.adapters.pdn import build_pdn, save_teacher
from cvad_cli.adapters.runtime_openvino.compiled import processor_precisions
from cvad_cli.adapters.sample_data import write_sample_dataset
from cvad_cli.assembly.detectors import OpenBundle, bundle_folder, open_detector
from cvad_cli.assembly.pictures import open_dataset, read_picture
from cvad_cli.assembly.probes import Probes, read_probes
from cvad_cli.assembly.serving_int8 import Int8Pictures
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
    """A trained EfficientAD of few channels, with more good pictures than probes."""
    folder = tmp_path_factory.mktemp("int8")
    write_sample_dataset(folder / "data", "grid", size=128, train=28, test_good=2, per_defect=1, seed=11)
    teacher, config = folder / "tiny.safetensors", folder / "small.yaml"
    save_teacher(teacher, build_pdn("small", 6, padding=False, seed=1), {"steps": 0})
    config.write_text(CONFIG.format(root=folder / "data", teacher=teacher, output=folder / "runs"), encoding="utf-8")
    result = cvad("train", "-c", config)
    assert result.exit_code == 0, result.output
    return load_config(config)


@pytest.fixture(scope="module")
def probes(run: RunConfig) -> Probes:
    found = read_probes(read_bundle(bundle_folder(run)))
    assert found is not None
    return found


def served(run: RunConfig, precision: str) -> OpenBundle:
    return open_detector(replace(run, runtime=replace(run.runtime, engine="openvino", precision=precision)), "cpu")


def test_two_in_three_pictures_give_the_ranges_and_the_others_judge(run: RunConfig, probes: Probes) -> None:
    known = set(probes.keys)
    rest = [read_picture(each.path, run.data) for each in open_dataset(run.data).train if each.key not in known]
    found = Int8Pictures.of(run.data, probes)
    assert len(found.ranges) == -(-2 * len(rest) // 3)
    for mine, expected in zip([*found.ranges, *found.judging], rest, strict=True):
        np.testing.assert_array_equal(mine, expected)


def test_where_all_good_pictures_are_probes_int8_says_what_it_lacks(run: RunConfig, probes: Probes) -> None:
    every = replace(probes, keys=tuple(record.key for record in open_dataset(run.data).train))
    with pytest.raises(DataError, match=r"int8 takes its ranges from good pictures .* set runtime\.precision to auto"):
        Int8Pictures.of(run.data, every)


def test_pictures_that_join_the_probes_count_as_good_ones(run: RunConfig, probes: Probes) -> None:
    pictures = Int8Pictures.of(run.data, probes)
    exact = served(run, "f32").detector.predict
    more = pictures.joined(probes, exact)
    added = len(pictures.judging)
    assert (len(more.scores), int(more.good.sum())) == (len(probes.scores) + added, int(probes.good.sum()) + added)

    def judge(images) -> list[Prediction]:
        """As float32 does, but two spreads higher for what joined."""
        joined = {picture.tobytes() for picture in pictures.judging}
        lift = [2 * probes.spread * (np.asarray(image).tobytes() in joined) for image in images]
        return [
            Prediction(each.score + higher, each.anomaly_map + np.float32(higher))
            for each, higher in zip(exact(images), lift, strict=True)
        ]

    assert more.test(exact).shift == pytest.approx(0, abs=1e-3)
    assert more.test(judge).shift == pytest.approx(2 * added / more.good.sum(), rel=1e-2)


@pytest.mark.skipif("int8" not in processor_precisions(), reason="this processor has no int8 arithmetic")
def test_int8_adds_nothing_to_the_peaks_of_good_pictures_on_average(run: RunConfig, probes: Probes) -> None:
    pytest.importorskip("nncf")
    bundle = served(run, "int8")
    assert bundle.serving.agreement is not None
    assert bundle.serving.agreement["probes"] > len(probes.scores)
    pictures = Int8Pictures.of(run.data, probes).ranges
    peaks = [
        np.array([found.anomaly_map.max() for found in each.detector.predict(pictures)])
        for each in (bundle, served(run, "f32"))
    ]
    assert np.mean(peaks[0] - peaks[1]) == pytest.approx(0, abs=1e-4 * probes.spread)
    assert np.abs(peaks[0] - peaks[1]).max() > 0, "the network was quantised"
    again = served(run, "int8")
    assert again.serving.cache is not None
    assert again.detector.predict(pictures[:1])[0].score == pytest.approx(float(peaks[0][0]), rel=1e-3)

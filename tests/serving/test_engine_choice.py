"""Bundles are served by engines that prove themselves; what cannot go together is refused in plain words."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cvad_cli.adapters.runtime_openvino.compiled import processor_precisions
from cvad_cli.adapters.storage.bundles import read_bundle, write_bundle
from cvad_cli.assembly.data.images import ImageStream, open_dataset
from cvad_cli.assembly.run_folders import bundle_folder
from cvad_cli.assembly.serving.engine_choice import Candidate, choose_engine, plan_serving
from cvad_cli.assembly.serving.open_bundle import OpenBundle, open_detector
from cvad_cli.assembly.training.agreement_samples import AgreementSamples, read_agreement_samples
from cvad_cli.config.load import load_config
from cvad_cli.config.schema import RunConfig, RuntimeConfig
from cvad_cli.errors import BundleError, ConfigError, ModelError
from cvad_cli.records import Prediction

REDUCED = [name for name in ("bf16", "f16") if name in processor_precisions()]


@pytest.fixture(scope="module")
def served(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Settings of a copy of the trained run, to be served and damaged at will."""
    output = tmp_path_factory.mktemp("served")
    shutil.copytree(trained.parent / "runs" / "small" / "bundle", output / "small" / "bundle")
    shutil.rmtree(output / "small" / "bundle" / "cache", ignore_errors=True)
    return load_config(trained, [f"output.root={output}"])


def opened(settings: RunConfig, engine: str, precision: str = "auto") -> OpenBundle:
    return open_detector(
        replace(settings, runtime=replace(settings.runtime, engine=engine, precision=precision)), "cpu"
    )


@pytest.fixture(scope="module")
def images(served: RunConfig) -> list[np.ndarray]:
    return [image for _, image in ImageStream(open_dataset(served.data).test, served.data)]


@pytest.fixture(scope="module")
def exact(served: RunConfig, images: list[np.ndarray]) -> list[Prediction]:
    return opened(served, "torch").detector.predict(images)


def test_openvino_in_float32_equals_torch_to_rounding(
    served: RunConfig, images: list[np.ndarray], exact: list[Prediction]
) -> None:
    found = opened(served, "openvino", "f32").detector.predict(images)
    np.testing.assert_allclose([each.score for each in found], [each.score for each in exact], rtol=1e-4)
    for mine, reference in zip(found, exact, strict=True):
        np.testing.assert_allclose(mine.anomaly_map, reference.anomaly_map, rtol=1e-3)


@pytest.mark.skipif(not REDUCED, reason="this processor computes in float32 alone")
def test_what_serves_by_itself_has_proved_that_the_threshold_stays_valid(
    served: RunConfig, images: list[np.ndarray], exact: list[Prediction]
) -> None:
    bundle = opened(served, "auto")
    assert bundle.serving.engine == "openvino"
    assert bundle.serving.agreement is not None
    assert abs(bundle.serving.agreement["shift"]) <= 0.1
    found = np.array([each.score for each in bundle.detector.predict(images)])
    reference = np.array([each.score for each in exact])
    assert np.corrcoef(found, reference)[0, 1] > 0.99
    assert (found > bundle.calibration.threshold).tolist() == (reference > bundle.calibration.threshold).tolist()


def test_images_alone_and_in_batches_of_any_size_are_judged_alike(served: RunConfig, images: list[np.ndarray]) -> None:
    detector = opened(served, "openvino", "f32").detector
    together = [each.score for size in (1, 3, 8) for each in detector.predict(images[:size])]
    alone = [detector.predict([image])[0].score for size in (1, 3, 8) for image in images[:size]]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_a_detector_says_where_its_time_went(served: RunConfig, images: list[np.ndarray]) -> None:
    for engine, stages in (("openvino", {"network", "search", "post-processing"}), ("torch", {"network"})):
        detector = opened(served, engine, "f32").detector
        detector.predict(images[:2])
        assert set(detector.last_split) == stages
        assert all(seconds >= 0 for seconds in detector.last_split.values())


def test_a_cached_bundle_is_opened_without_torch_and_anomalib(served: RunConfig, trained: Path) -> None:
    opened(served, "auto")
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from cvad_cli.adapters.machine.devices import choose_device\n"
        "from cvad_cli.assembly.serving.open_bundle import open_detector\n"
        "from cvad_cli.config.load import load_config\n"
        f"settings = load_config(Path({str(trained)!r}), ['output.root={served.output.root}'])\n"
        "found = open_detector(settings, choose_device('cpu')).detector.predict([np.zeros((64, 64, 3), np.uint8)])\n"
        "assert found[0].anomaly_map.shape == (64, 64)\n"
        "heavy = {'torch', 'anomalib', 'timm', 'lightning', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_bundle_that_was_trained_anew_is_not_served_from_the_old_cache(served: RunConfig, tmp_path: Path) -> None:
    copy = tmp_path / "small" / "bundle"
    shutil.copytree(bundle_folder(served), copy)
    settings = replace(served, output=replace(served.output, root=str(tmp_path)))
    first = opened(settings, "openvino", "f32").serving
    manifest = dict(read_bundle(copy).manifest)
    manifest["calibration"] = {**manifest["calibration"], "threshold": 1.5}
    _rewrite(copy, manifest)
    second = opened(settings, "openvino", "f32").serving
    assert first.cache != second.cache
    assert first.cache is not None
    assert not first.cache.exists()


def _rewrite(folder: Path, manifest: dict, without: str = "") -> None:
    """The same bundle with another manifest, as `cvad train` would leave it."""
    files = {
        role: (folder / entry["name"]).read_bytes() for role, entry in manifest["files"].items() if role != without
    }
    writers = {
        role: (".safetensors", lambda path, content=content: path.write_bytes(content) and None)
        for role, content in files.items()
    }
    made_by_cvad = ("schema_version", "cvad_version", "created", "versions", "files", "fingerprint")
    write_bundle(folder, {key: value for key, value in manifest.items() if key not in made_by_cvad}, writers)


def test_a_bundle_of_an_earlier_cvad_is_served_exactly_and_says_so(served: RunConfig, tmp_path: Path) -> None:
    copy = tmp_path / "small" / "bundle"
    shutil.copytree(bundle_folder(served), copy, ignore=shutil.ignore_patterns("cache"))
    _rewrite(copy, dict(read_bundle(copy).manifest), without="agreement_samples")
    settings = replace(served, output=replace(served.output, root=str(tmp_path)))
    serving = opened(settings, "auto").serving
    assert (serving.precision, serving.agreement) == ("f32", None)
    assert serving.search is not None
    assert serving.search["kind"] == "exact"
    assert "earlier cvad" in str(serving.note)
    if REDUCED:
        with pytest.raises(ModelError, match="cannot be verified: this bundle was trained by an earlier cvad"):
            opened(settings, "openvino", REDUCED[0])


def test_damaged_agreement_samples_are_a_damaged_bundle(served: RunConfig, tmp_path: Path) -> None:
    import safetensors.numpy

    copy = tmp_path / "bundle"
    shutil.copytree(bundle_folder(served), copy, ignore=shutil.ignore_patterns("cache"))
    bundle = read_bundle(copy)
    safetensors.numpy.save_file({"images": np.zeros(1, np.uint8)}, bundle.file("agreement_samples"))
    with pytest.raises(BundleError, match="holds no agreement samples that this cvad can read"):
        read_agreement_samples(bundle)


@pytest.mark.parametrize(
    ("runtime", "device", "message"),
    [
        pytest.param({"engine": "openvino"}, "cuda:0", "openvino serves on a CPU, but the device is cuda", id="a GPU"),
        pytest.param({"engine": "torch", "precision": "int8"}, "cpu", "int8 is OpenVINO's", id="int8 by torch"),
        pytest.param({"precision": "int8"}, "cuda:0", "serves in bf16, f16, f32, not in int8", id="int8 on a GPU"),
        pytest.param({"engine": "torch", "precision": "f16"}, "cpu", "serves in f32, not in f16", id="f16 by torch"),
        pytest.param({"precision": "bf16"}, "mps", "not in bf16", id="bf16 on Apple's GPU"),
    ],
)
def test_what_cannot_go_together_is_refused(runtime: dict[str, str], device: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_serving(RuntimeConfig(**runtime), device)


def test_a_gpu_tries_half_precision_first_and_float32_after() -> None:
    plan = plan_serving(RuntimeConfig(), "cuda:0")
    assert (plan.engine, plan.precisions, plan.chosen) == ("torch", ("f16", "f32"), False)


class Judge:
    """A detector that is off by so many spreads."""

    image_size = (8, 8)

    def __init__(self, samples: AgreementSamples, off: float) -> None:
        self.answers = iter(zip(samples.scores + off * samples.good_std, samples.peaks, strict=True))

    def predict(self, images) -> list[Prediction]:
        return [Prediction(float(score), np.full((8, 8), peak, np.float32)) for score, peak in self._next(len(images))]

    def _next(self, count: int):
        return [next(self.answers) for _ in range(count)]


@pytest.fixture
def samples() -> AgreementSamples:
    scores = np.concatenate([np.linspace(1, 2, 4), np.linspace(4, 7, 4)]).astype(np.float32)
    images = np.zeros((8, 8, 8, 3), np.uint8)
    return AgreementSamples(images, np.arange(8) < 4, scores, scores * 2, good_std=0.4, peak_std=0.8, keys=())


def test_a_precision_that_does_not_hold_is_passed_over_with_its_figures(samples: AgreementSamples) -> None:
    plan = plan_serving(RuntimeConfig(), "cuda:0")
    offs = {"f16": 0.5, "f32": 0.0}
    choice = choose_engine(plan, samples, lambda wanted: Candidate(Judge(samples, offs[wanted])))
    assert choice.precision == "f32"
    assert choice.agreement is not None
    assert choice.agreement.holds
    assert "f16 was rejected: shift +0.500" in str(choice.note)
    assert choice.serving(plan).agreement == choice.agreement_facts


def test_a_precision_that_was_asked_for_and_does_not_hold_is_refused_with_its_figures(
    samples: AgreementSamples,
) -> None:
    plan = plan_serving(RuntimeConfig(precision="f16"), "cuda:0")
    with pytest.raises(ModelError, match=r"f16 was rejected: shift \+0\.500 .* set runtime.precision to auto"):
        choose_engine(plan, samples, lambda _: Candidate(Judge(samples, 0.5)))


@pytest.mark.skipif("int8" not in processor_precisions(), reason="this processor has no int8 arithmetic")
def test_int8_serves_where_it_holds_and_is_refused_with_figures_where_it_does_not(
    served: RunConfig, images: list[np.ndarray], exact: list[Prediction]
) -> None:
    pytest.importorskip("nncf")
    try:
        bundle = opened(served, "openvino", "int8")
    except ModelError as error:
        assert "int8 was rejected: shift" in str(error)  # noqa: PT017
        return
    found = np.array([each.score for each in bundle.detector.predict(images)])
    samples = read_agreement_samples(bundle.bundle)
    assert samples is not None
    # The limit allows a noise of a quarter of a standard deviation; four times that is seen at most once.
    assert np.abs(found - [each.score for each in exact]).max() < samples.good_std


def test_without_nncf_int8_says_what_to_install(served: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    if "int8" not in processor_precisions():
        pytest.skip("this processor has no int8 arithmetic")
    shutil.rmtree(bundle_folder(served) / "cache", ignore_errors=True)
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ModelError, match=r"pip install 'cvad\[int8\]'"):
        opened(served, "openvino", "int8")


def test_a_wrong_engine_is_named_with_what_there_is(cvad, trained: Path) -> None:
    result = cvad("evaluate", "--config", trained, "--set", "runtime.engine=tensorrt")
    assert result.exit_code == 2
    assert "runtime.engine" in result.output


def test_metrics_say_what_served(served: RunConfig, trained: Path, cvad, metrics_of: Callable[[Path], dict]) -> None:
    serving = metrics_of(trained)["provenance"]["serving"]
    assert serving["engine"] == "openvino"
    assert serving["precision"] in processor_precisions()
    assert json.dumps(serving)


REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("CVAD_DATA_ROOT", REPOSITORY.parent / "shared" / "data"))
WEIGHTS = Path(os.environ.get("CVAD_WEIGHTS_DIR", REPOSITORY.parent / "shared" / "weights"))


@pytest.mark.ci
def test_on_real_grid_the_quick_engine_and_the_exact_one_have_the_same_auroc(real_grid_evaluation: Path) -> None:
    from sklearn.metrics import roc_auc_score

    here = [f"data.root={DATA / 'mvtec_ad'}", f"output.root={real_grid_evaluation.parents[1]}"]
    settings = load_config(REPOSITORY / "configs" / "patchcore_grid.yaml", here)
    records = open_dataset(settings.data).test
    loaded = [pixels for _, pixels in ImageStream(records, settings.data)]
    defective = [not record.is_normal for record in records]
    area = np.stack([_mask(record, settings) for record in records])
    figures = []
    for engine in ("openvino", "torch"):
        found = opened(settings, engine).detector.predict(loaded)
        image = roc_auc_score(defective, [each.score for each in found])
        pixel = roc_auc_score(area.ravel(), np.stack([each.anomaly_map for each in found]).ravel())
        figures.append((image, pixel))
    np.testing.assert_allclose(*figures, atol=0.002)


def _mask(record, settings: RunConfig) -> np.ndarray:
    from cvad_cli.adapters.images import read_mask, resize_mask

    side = settings.data.image_size
    if record.is_normal:
        return np.zeros((side, side), dtype=np.bool_)
    return resize_mask(read_mask(record.mask_path), (side, side))

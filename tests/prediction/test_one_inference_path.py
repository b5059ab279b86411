"""`predict`, `classify`, `index` and `evaluate` judge the same file alike, whatever its format, size and depth.

Scores, maps and regions are equal up to float32 rounding: which images stand beside it in its batch may change the last
bits of a sum. In the same batches they are equal to the bit.
"""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cvad_cli.adapters.images import read_image
from cvad_cli.adapters.sample_data import write_sample_dataset

RUN = """
name: small
seed: 3
device: cpu
data: {{root: {root}, format: folders, normal_dir: train, abnormal_dirs: [odd], image_size: 128}}
model: {{backbone: resnet10t, layers: [layer1, layer2], weights: random, coreset_ratio: 0.05, num_neighbors: 3}}
calibration: {{false_alarm_rate: 0.1, folds: 3}}
evaluation: {{resolution: original}}
runtime: {{batch_size: {batch}}}
output: {{root: {output}}}
qdrant: {{path: {output}/index}}
"""
TOLERANCE = 1e-4
"""Relative: another batch may round otherwise. Where this was written, batches of 8 and of 3 agreed to the bit."""

opens: Counter[str] = Counter()
"""How often each file was opened, while `counted` is in use."""
counting = False


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    if counting and event == "open" and isinstance(arguments[0], str):
        opens[arguments[0]] += 1


@pytest.fixture
def counted() -> Iterator[Counter[str]]:
    global counting  # noqa: PLW0603 - an audit hook cannot be removed
    if not hasattr(audit, "hooked"):
        sys.addaudithook(audit)
        audit.hooked = True  # type: ignore[attr-defined]
    opens.clear()
    counting = True
    yield opens
    counting = False


def written(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    assert cv2.imwrite(str(path), image)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good parts to train on, and defective ones of many formats."""
    source, root = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("formats")
    write_sample_dataset(source, "leather", size=128, train=12, test_good=2, per_defect=2, seed=11)
    for path in sorted((source / "leather" / "train" / "good").glob("*.png")):
        written(root / "train" / path.name, cv2.imread(str(path)))
    kinds = ["color", "cut", "fold", "glue"]
    part = {kind: cv2.imread(str(source / "leather" / "test" / kind / "000.png")) for kind in kinds}
    large = {kind: cv2.resize(image, (640, 640), interpolation=cv2.INTER_CUBIC) for kind, image in part.items()}
    odd = root / "odd"
    written(odd / "plain.png", part["color"])
    written(odd / "odd.png", large["glue"][:601, :577])
    written(odd / "gray.png", cv2.cvtColor(large["fold"], cv2.COLOR_BGR2GRAY))
    written(odd / "deep.png", large["glue"].astype(np.uint16) * 257)
    written(odd / "deep_gray.png", cv2.cvtColor(large["color"], cv2.COLOR_BGR2GRAY).astype(np.uint16) * 257)
    written(odd / "small.jpg", part["cut"])
    written(odd / "large.jpg", large["glue"])  # decoded at reduced scale for the network
    written(odd / "odd.jpg", large["glue"][:599, :533])  # so is this one
    return root


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory, cvad) -> Callable[[int], Path]:
    """The config of one trained run, by batch size."""
    folder = tmp_path_factory.mktemp("run")
    for batch in (8, 3):
        path = folder / f"batches_of_{batch}.yaml"
        path.write_text(RUN.format(root=data, output=folder / "runs", batch=batch), encoding="utf-8")
    result = cvad("train", "--config", folder / "batches_of_8.yaml", "-q")
    assert result.exit_code == 0, result.output
    return lambda batch: folder / f"batches_of_{batch}.yaml"


def output(cvad, *arguments: object) -> Any:
    result = cvad(*arguments, "-q")
    assert result.exit_code == 0, result.output
    return result.stdout


def predicted(cvad, config: Path, data: Path) -> dict[str, dict]:
    lines = map(json.loads, output(cvad, "predict", data / "odd", "--config", config, "--jsonl").splitlines())
    return {Path(line["image"]).name: line for line in lines}


def classified(cvad, config: Path, data: Path) -> dict[str, dict]:
    images = json.loads(output(cvad, "classify", data / "odd", "--config", config, "--json"))["images"]
    return {Path(image["image"]).name: image for image in images}


def evaluated(cvad, config: Path, *options: str) -> dict[str, dict]:
    output(cvad, "evaluate", "--config", config, *options)
    with (config.parent / "runs/small/evaluation/per_image.csv").open(encoding="utf-8") as file:
        return {Path(row["image"]).name: row for row in csv.DictReader(file) if row["image"].startswith("odd/")}


def indexed(cvad, config: Path) -> dict[str, list[dict]]:
    output(cvad, "index", "--config", config)
    entries = json.loads(output(cvad, "index", "--config", config, "--list", "--json"))["entries"]
    found: dict[str, list[dict]] = {}
    for entry in entries:
        found.setdefault(Path(entry["source"]).name, []).append(entry)
    return found


def require_same_regions(ours: list[dict], theirs: list[dict]) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["box"] == other["box"]
        assert mine["area_px"] == pytest.approx(other["area_px"], rel=TOLERANCE)
        for figure in ("peak", "mean_score", "mass"):
            assert mine[figure] == pytest.approx(other[figure], rel=TOLERANCE)
        assert np.allclose(np.concatenate(mine["contours"]), np.concatenate(other["contours"]), atol=0.11)


def test_four_commands_say_the_same_of_a_file(trained: Callable[[int], Path], data: Path, cvad) -> None:
    labels = indexed(cvad, trained(8))
    by_predict, by_classify = predicted(cvad, trained(8), data), classified(cvad, trained(8), data)
    by_evaluate = evaluated(cvad, trained(3), "--classification")
    assert len(by_predict) == len(by_classify) == len(by_evaluate) == len(labels) == 8
    rejected = {name for name, line in by_predict.items() if line["rejected"]}
    assert {"deep.png", "gray.png", "large.jpg", "odd.jpg", "odd.png", "plain.png"} <= rejected
    for name, line in by_predict.items():
        verdict, row = by_classify[name], by_evaluate[name]
        assert (verdict["score"], verdict["rejected"]) == (line["score"], line["rejected"]), name
        assert float(row["score"]) == pytest.approx(line["score"], rel=TOLERANCE), name
        assert row["rejected"] == str(int(line["rejected"]))
        require_same_regions(verdict["regions"], line["regions"])
        assert bool(line["regions"]) == line["rejected"]
        regions = {tuple(region["box"]): region for region in line["regions"]}
        for entry in labels[name] if line["rejected"] else ():
            region = regions[tuple(entry["box"])]
            assert entry["score"] == pytest.approx(region["peak"], rel=TOLERANCE)
            assert entry["area_px"] == pytest.approx(region["area_px"], rel=TOLERANCE)


def test_a_score_does_not_depend_on_the_size_of_batches(trained: Callable[[int], Path], data: Path, cvad) -> None:
    one, other = (predicted(cvad, trained(batch), data) for batch in (8, 3))
    for name, line in one.items():
        assert other[name]["score"] == pytest.approx(line["score"], rel=TOLERANCE)
        require_same_regions(other[name]["regions"], line["regions"])


@pytest.mark.parametrize("options", [(), ("--classification",)], ids=["figures", "figures and names"])
def test_evaluate_decodes_each_image_once(
    trained: Callable[[int], Path], data: Path, options: tuple, counted: Counter[str], cvad
) -> None:
    """At the original resolution, with a page and panels, all of which want to know of the image itself."""
    read = evaluated(cvad, trained(8), *options)
    hashed = 1  # the fingerprint of the test set
    for name in read:
        again = options and name in {"large.jpg", "odd.jpg"}  # reduced for the network, described whole
        assert counted[str(data / "odd" / name)] == hashed + 1 + bool(again), name


def test_workers_say_the_same_as_one_process(trained: Callable[[int], Path], data: Path, cvad) -> None:
    here = classified(cvad, trained(3), data) if indexed(cvad, trained(3)) else {}
    distributed = ("--set", "executor.workers=2", "--set", "executor.shard_images=3")
    there = json.loads(output(cvad, "classify", data / "odd", "--config", trained(3), *distributed, "--json"))["images"]
    assert [Path(image["image"]).name for image in there] == list(here)
    for image in there:
        mine = here[Path(image["image"]).name]
        assert image["score"] == pytest.approx(mine["score"], rel=TOLERANCE)
        require_same_regions(image["regions"], mine["regions"])


def test_an_overlay_of_a_reduced_image_is_drawn_at_its_own_size(
    trained: Callable[[int], Path], data: Path, tmp_path: Path, cvad
) -> None:
    for command in ("predict", "classify"):
        folder = tmp_path / command
        output(cvad, command, data / "odd" / "large.jpg", "--config", trained(8), "--overlays", folder)
        (overlay,) = folder.rglob("*.png")
        assert read_image(overlay).shape[1] >= 640

"""From a few labelled images to a name for every defect, through the command line."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cvad_cli.adapters.images import read_image
from cvad_cli.adapters.sample_data import write_sample_dataset
from cvad_cli.adapters.storage.bundles import read_bundle, write_bundle
from cvad_cli.assembly.defect_types.open_store import open_store
from cvad_cli.config.schema import QdrantConfig
from cvad_cli.core.descriptors import DESCRIPTOR_VERSION
from cvad_cli.records import DefectPoint

TYPES = ["color", "cut", "fold", "glue", "poke"]
ODD = 'Riß "quer"; 50 %/δ $x$'

Run = Callable[..., dict]


RUN = """
name: small
seed: 3
device: cpu
data: {{root: {root}, category: leather, image_size: 128}}
model: {{backbone: resnet10t, layers: [layer1, layer2], weights: random, coreset_ratio: 0.05, num_neighbors: 3}}
calibration: {{false_alarm_rate: 0.1, folds: 3}}
evaluation: {{images: 0}}
output: {{root: {output}}}
"""


@pytest.fixture(scope="module")
def sample_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated leather, on which a random backbone rejects most defects. Read only."""
    root = tmp_path_factory.mktemp("leather")
    write_sample_dataset(root, "leather", size=128, train=16, test_good=4, per_defect=3, seed=11)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, sample_data: Path, cvad) -> Path:
    """Config of a trained run. Read only."""
    folder = tmp_path_factory.mktemp("trained")
    path = folder / "small.yaml"
    path.write_text(RUN.format(root=sample_data, output=folder / "runs"), encoding="utf-8")
    result = cvad("train", "--config", path, "--quiet")
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture(scope="module")
def index_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("index")


@pytest.fixture(scope="module")
def at(trained: Path, index_path: Path) -> tuple[object, ...]:
    """The options of a trained run with an index of its own."""
    return ("--config", trained, "--set", f"qdrant.path={index_path}")


@pytest.fixture(scope="module")
def first_indexing(at: tuple, cvad) -> dict:
    result = cvad("index", *at, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def classified(at: tuple, first_indexing: dict, sample_data: Path, cvad) -> dict:
    result = cvad(
        "classify", sample_data / "leather" / "test", sample_data / "leather/train/good/000.png", *at, "--json"
    )
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def other_index(path: Path, name: str = "small") -> QdrantConfig:
    return QdrantConfig(path=str(path), collection=name)


def fingerprint(trained: Path) -> str:
    return read_bundle(trained.parent / "runs" / "small" / "bundle").fingerprint


def test_every_labelled_image_is_indexed_and_no_good_one(first_indexing: dict) -> None:
    assert {kind: len(keys) for kind, keys in first_indexing["images"].items()} == dict.fromkeys(TYPES, 3)
    assert first_indexing["added"] == first_indexing["total"] >= 15


def test_indexing_twice_changes_nothing(at: tuple, first_indexing: dict, tmp_path: Path, cvad) -> None:
    assert cvad("index", *at, "--export", tmp_path / "before.cvad", "-q").exit_code == 0
    again = json.loads(cvad("index", *at, "--json").stdout)
    assert (again["added"], again["unchanged"], again["removed"]) == (0, first_indexing["total"], 0)
    assert cvad("index", *at, "--export", tmp_path / "after.cvad", "-q").exit_code == 0
    assert (tmp_path / "after.cvad").read_bytes() == (tmp_path / "before.cvad").read_bytes()


def test_the_payload_says_what_was_labelled_by_whom_and_through_what(at: tuple, first_indexing, trained, cvad) -> None:
    listing = json.loads(cvad("index", *at, "--list", "--json").stdout)
    assert {kind: counts["images"] for kind, counts in listing["types"].items()} == dict.fromkeys(TYPES, 3)
    assert len(listing["entries"]) == listing["regions"] == first_indexing["total"]
    for entry in listing["entries"]:
        assert entry["source"].startswith(f"test/{entry['defect_type']}/")
        assert (entry["category"], entry["labelled_by"]) == ("leather", "dataset")
        assert (entry["bundle"], entry["descriptor"]) == (fingerprint(trained), DESCRIPTOR_VERSION)
        assert len(entry["source_sha256"]) == 64
        top, left, bottom, right = entry["box"]
        assert 0 <= top < bottom <= 128
        assert 0 <= left < right <= 128


def test_a_labelled_image_is_its_own_nearest_neighbour(classified: dict) -> None:
    seen = 0
    for image in classified["images"]:
        if image["rejected"] and image["regions"] and "/good/" not in image["image"]:
            nearest = image["regions"][0]["neighbours"][0]
            if nearest["similarity"] > 0.999:
                assert nearest["path"] == image["image"]
                seen += 1
    assert seen >= 5


def test_every_region_has_a_name_a_confidence_and_its_neighbours(classified: dict) -> None:
    assert classified["types"] == TYPES
    regions = [region for image in classified["images"] for region in image["regions"]]
    assert regions
    for region in regions:
        assert region["defect_type"] in {*TYPES, "unknown"}
        assert sum(region["confidences"].values()) == pytest.approx(1)
        assert region["confidence"] == max(region["confidences"].values())
        assert region["confidences"][region["likeliest"]] == region["confidence"]
        assert 0 < region["p_value"] <= 1
        assert len(region["neighbours"]) == 5
        likeness = [neighbour["similarity"] for neighbour in region["neighbours"]]
        assert likeness == sorted(likeness, reverse=True)


def test_a_part_that_passes_has_no_region_and_no_type(classified: dict) -> None:
    passed = [image for image in classified["images"] if not image["rejected"]]
    assert passed
    for image in passed:
        assert image["score"] <= image["threshold"]
        assert (image["defect_type"], image["regions"]) == (None, [])


def test_a_rejected_part_always_shows_a_region(classified: dict) -> None:
    assert all(image["regions"] for image in classified["images"] if image["rejected"])


def test_lines_tables_and_the_exit_status_say_the_same(
    at: tuple, classified: dict, first_indexing: dict, sample_data: Path, tmp_path: Path, cvad
) -> None:
    here = (sample_data / "leather" / "test" / "cut", *at)
    result = cvad("classify", *here, "--jsonl", "--csv", tmp_path / "table.csv", "--fail-on-defect", "-q")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    expected = [image for image in classified["images"] if "/cut/" in image["image"]]
    assert [line["image"] for line in lines] == [image["image"] for image in expected]
    assert [line["defect_type"] for line in lines] == [image["defect_type"] for image in expected]
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(max(1, len(image["regions"])) for image in expected)
    assert {row["image"] for row in rows} == {image["image"] for image in expected}
    assert result.exit_code == int(any(image["rejected"] for image in expected))
    assert cvad("classify", *here, "-q").exit_code == 0


def test_overlays_of_images_of_one_name_keep_apart_below_their_folder(
    at: tuple, first_indexing: dict, sample_data: Path, tmp_path: Path, cvad
) -> None:
    test = sample_data / "leather" / "test"
    result = cvad("classify", test / "fold/000.png", test / "glue/000.png", *at, "--overlays", tmp_path / "marked")
    assert result.exit_code == 0, result.output
    drawn = sorted(path.relative_to(tmp_path / "marked").as_posix() for path in (tmp_path / "marked").rglob("*.png"))
    assert drawn == ["fold/000.png", "glue/000.png"]
    assert read_image(tmp_path / "marked/fold/000.png").shape[1] >= 640


@pytest.mark.parametrize("output", [(), ("--json",)], ids=["text", "json"])
def test_relative_and_absolute_paths_may_be_mixed(  # noqa: PLR0917
    at: tuple, first_indexing: dict, sample_data: Path, tmp_path: Path, output: tuple, monkeypatch, cvad
) -> None:
    monkeypatch.chdir(sample_data / "leather")
    absolute = tmp_path / "part.png"
    shutil.copy(sample_data / "leather/test/glue/000.png", absolute)
    result = cvad("classify", "test/fold", absolute, *at, *output, "--overlays", tmp_path / "marked")
    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in ("fold/000.png", "fold/002.png", "part.png"))
    assert len(list((tmp_path / "marked").rglob("*.png"))) == 4


def test_two_leading_slashes_are_as_good_as_one(at: tuple, first_indexing: dict, sample_data: Path, cvad) -> None:
    """pathlib keeps two leading slashes apart from one, as it does drives."""
    fold = sample_data / "leather" / "test" / "fold"
    result = cvad("classify", f"/{fold}/000.png", fold / "001.png", *at)
    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in ("000.png", "001.png"))


def test_patterns_folders_and_repeated_names_give_each_image_once(
    at: tuple, first_indexing: dict, sample_data: Path, cvad
) -> None:
    test = sample_data / "leather" / "test"
    result = cvad("classify", f"{test}/fold/*.png", test / "fold", test / "fold" / "000.png", *at, "--json", "-q")
    assert [Path(image["image"]).name for image in json.loads(result.stdout)["images"]] == [
        "000.png",
        "001.png",
        "002.png",
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere.png", "no such file or folder"), ("nowhere/*.png", "matches no image"), ("", "no images in it")],
)
def test_a_meaningless_name_is_reported(at: tuple, tmp_path: Path, name: str, message: str, cvad) -> None:
    (tmp_path / "empty").mkdir()
    result = cvad("classify", tmp_path / (name or "empty"), *at, "-q")
    assert (result.exit_code, message in result.stderr) == (3, True), result.stderr


def test_a_damaged_image_stops_or_is_listed(
    at: tuple, first_indexing: dict, sample_data: Path, tmp_path: Path, cvad
) -> None:
    shutil.copy(sample_data / "leather/test/fold/000.png", tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:500])
    stopped = cvad("classify", tmp_path, *at, "-q")
    assert (stopped.exit_code, "b.png" in stopped.stderr) == (3, True)
    skipped = cvad("classify", tmp_path, *at, "--set", "data.on_error=skip", "--json", "-q")
    assert skipped.exit_code == 0, skipped.output
    summary = json.loads(skipped.stdout)
    assert [Path(image["image"]).name for image in summary["images"]] == ["a.png"]
    assert [Path(image["key"]).name for image in summary["skipped"]] == ["b.png"]


def test_shots_are_drawn_by_the_seed_and_named(trained: Path, tmp_path: Path, cvad) -> None:
    drawn = []
    for number, seed in enumerate((1, 1, 2)):
        run = ("--config", trained, "--set", f"qdrant.path={tmp_path / str(number)}")
        drawn.append(json.loads(cvad("index", *run, "--shots", 1, "--seed", seed, "--json").stdout)["images"])
    assert all(len(keys) == 1 for keys in drawn[0].values())
    assert list(drawn[0]) == TYPES
    assert drawn[0] == drawn[1] != drawn[2]


def test_one_image_a_type_names_and_says_that_it_is_not_calibrated(
    trained: Path, sample_data: Path, tmp_path: Path, cvad
) -> None:
    run = ("--config", trained, "--set", f"qdrant.path={tmp_path}")
    assert cvad("index", *run, "--shots", 1, "-q").exit_code == 0
    result = cvad("classify", sample_data / "leather/test/fold", *run, "--json", "-q")
    assert result.exit_code == 0, result.output
    assert "confidences are not calibrated" in result.stderr
    assert len(json.loads(result.stdout)["types"]) == 5


def test_without_an_index_or_with_an_empty_one_the_remedy_is_named(
    trained: Path, sample_data: Path, tmp_path: Path, cvad
) -> None:
    run = ("--config", trained, "--set", f"qdrant.path={tmp_path}")
    ask = ("classify", sample_data / "leather/test/fold", *run, "-q")
    for result in (cvad(*ask), cvad("index", *run, "--list"), cvad("index", *run, "--delete", "fold")):
        assert result.exit_code == 6
        assert "run `cvad index` with the same config" in result.stderr
    assert cvad("index", *run, "--shots", 1, "-q").exit_code == 0
    for kind in TYPES:
        assert cvad("index", *run, "--delete", kind, "-q").exit_code == 0
    result = cvad(*ask)
    assert (result.exit_code, "the defect index is empty" in result.stderr) == (6, True)


@pytest.mark.parametrize(
    ("dimension", "own", "message"),
    [
        pytest.param(967, False, "was indexed through bundle 0123456789ab", id="another bundle"),
        pytest.param(4, True, "with 4 values, this cvad makes", id="another dimension"),
    ],
)
def test_an_index_of_another_model_is_refused_with_the_remedy(  # noqa: PLR0917
    trained: Path, sample_data: Path, tmp_path: Path, dimension: int, own: bool, message: str, cvad
) -> None:
    bundle = fingerprint(trained) if own else "0123456789abcdef"
    with open_store(other_index(tmp_path)) as store:
        store.create(dimension, {"bundle": bundle, "descriptor": DESCRIPTOR_VERSION, "category": "leather"})
    run = ("--config", trained, "--set", f"qdrant.path={tmp_path}")
    for command in (("classify", sample_data / "leather/test/fold"), ("index",)):
        result = cvad(*command, *run, "-q")
        assert result.exit_code == 6
        assert message in result.stderr
        assert "`cvad index --rebuild`" in result.stderr
    assert cvad("index", *run, "--rebuild", "--shots", 1, "-q").exit_code == 0
    assert cvad("classify", sample_data / "leather/test/fold", *run, "-q").exit_code == 0


def test_a_point_that_cvad_did_not_write_is_named(trained: Path, sample_data: Path, tmp_path: Path, cvad) -> None:
    alien = "6f9619ff-8b86-5011-b42d-00c04fc964ff"
    run = ("--config", trained, "--set", f"qdrant.path={tmp_path}")
    assert cvad("index", *run, "--shots", 1, "-q").exit_code == 0
    with open_store(other_index(tmp_path)) as store:
        info = store.info()
        assert info is not None
        store.upsert([DefectPoint(alien, np.ones(info.dimension, np.float32), {"colour": "red"})])
    for command in (("classify", sample_data / "leather/test/fold"), ("index", "--stats")):
        result = cvad(*command, *run, "-q")
        assert (result.exit_code, alien in result.stderr) == (6, True), result.stderr


def test_a_bundle_without_a_describer_evaluates_and_says_why_it_cannot_name(
    trained: Path, sample_data: Path, tmp_path: Path, cvad
) -> None:
    bundle = read_bundle(trained.parent / "runs/small/bundle")
    made = {"schema_version", "cvad_version", "created", "versions", "files", "fingerprint"}
    contents = {key: value for key, value in bundle.manifest.items() if key not in made}
    writers = {
        role: (".safetensors", lambda path, role=role: shutil.copy(bundle.file(role), path))
        for role in ("backbone", "memory_bank")
    }
    write_bundle(tmp_path / "small" / "bundle", contents, writers)
    run = ("--config", trained, "--set", f"output.root={tmp_path}", "--set", f"qdrant.path={tmp_path / 'index'}")
    assert cvad("evaluate", *run, "-q").exit_code == 0
    for command in (("index",), ("classify", sample_data / "leather/test/fold"), ("evaluate", "--classification")):
        result = cvad(*command, *run, "-q")
        assert result.exit_code == 5
        assert "has no describer" in result.stderr
        assert "run `cvad train`" in result.stderr


def test_prune_forgets_images_that_are_gone_or_changed(trained: Path, sample_data: Path, tmp_path: Path, cvad) -> None:
    shutil.copytree(sample_data, tmp_path / "data")
    run = (
        *("--config", trained, "--set", f"data.root={tmp_path / 'data'}"),
        *("--set", f"qdrant.path={tmp_path / 'index'}", "--json"),
    )
    before = json.loads(cvad("index", *run).stdout)["total"]
    test = tmp_path / "data" / "leather" / "test"
    (test / "fold" / "000.png").unlink()
    (tmp_path / "data" / "leather" / "ground_truth" / "fold" / "000_mask.png").unlink()
    kept = json.loads(cvad("index", *run).stdout)
    assert (kept["removed"], kept["total"]) == (0, before)
    pruned = json.loads(cvad("index", *run, "--prune").stdout)
    assert pruned["removed"] >= 1
    assert pruned["total"] == before - pruned["removed"]
    listing = json.loads(cvad("index", *run, "--list").stdout)
    assert "test/fold/000.png" not in {entry["source"] for entry in listing["entries"]}
    shutil.copy(test / "glue" / "000.png", test / "cut" / "000.png")  # other content under the same name
    changed = json.loads(cvad("index", *run).stdout)
    assert changed["removed"] >= 1


def test_an_index_moves_through_one_file(  # noqa: PLR0917
    at: tuple, trained: Path, first_indexing: dict, classified: dict, sample_data: Path, tmp_path: Path, cvad
) -> None:
    there = ("--config", trained, "--set", f"qdrant.path={tmp_path / 'there'}")
    assert cvad("index", *at, "--export", tmp_path / "leather.cvad", "-q").exit_code == 0
    moved = json.loads(cvad("index", *there, "--import", tmp_path / "leather.cvad", "--json").stdout)
    assert (moved["what"], moved["regions"], moved["total"]) == ("imported", *(first_indexing["total"],) * 2)
    result = json.loads(cvad("classify", sample_data / "leather/test/glue", *there, "--json", "-q").stdout)
    expected = [image for image in classified["images"] if "/glue/" in image["image"]]
    assert result["images"] == expected
    (tmp_path / "leather.cvad").write_bytes((tmp_path / "leather.cvad").read_bytes()[:-40])
    damaged = cvad("index", *there, "--import", tmp_path / "leather.cvad", "-q")
    assert (damaged.exit_code, "leather.cvad" in damaged.stderr) == (6, True)


def test_a_label_may_hold_any_character(trained: Path, sample_data: Path, tmp_path: Path, cvad) -> None:
    root = tmp_path / "plant"
    shutil.copytree(sample_data / "leather" / "train" / "good", root / "ok")
    shutil.copytree(sample_data / "leather" / "test" / "cut", root / "cut")
    shutil.copytree(sample_data / "leather" / "test" / "fold", root / "others")
    with (root / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [("others/000.png", ODD), ("others/001.png", ODD), ("others/002.png", ODD)]
        csv.writer(file).writerows([("path", "label"), *rows])
    run = ("--config", trained)
    for setting in (
        *("data.format=folders", f"data.root={root}", "data.normal_dir=ok", "data.labels=labels.csv"),
        *("data.abnormal_dirs=[cut]", f"qdrant.path={tmp_path / 'index'}"),
    ):
        run = (*run, "--set", setting)
    indexed = cvad("index", *run, "--labelled-by", "Zoë", "--json")
    assert indexed.exit_code == 0, indexed.output
    assert sorted(json.loads(indexed.stdout)["images"]) == sorted([ODD, "cut"])
    named = cvad("classify", root / "others", *run, "--json", "-q", "--overlays", tmp_path / "marked")
    assert named.exit_code == 0, named.output
    assert json.loads(named.stdout)["types"] == sorted([ODD, "cut"])
    measured = cvad("evaluate", *run, "--classification", "--json", "--set", f"output.root={trained.parent / 'runs'}")
    assert ODD in json.loads(measured.stdout)["classification"]["types"]
    removed = cvad("index", *run, "--delete", ODD, "--json")
    assert json.loads(removed.stdout)["removed"] >= 2


def test_no_type_may_be_called_unknown(trained: Path, sample_data: Path, tmp_path: Path, cvad) -> None:
    shutil.copytree(sample_data, tmp_path / "data")
    test = tmp_path / "data" / "leather" / "test"
    (test / "fold").rename(test / "unknown")
    run = ("--config", trained, "--set", f"data.root={tmp_path / 'data'}", "--set", f"qdrant.path={tmp_path / 'index'}")
    result = cvad("index", *run, "-q")
    assert (result.exit_code, "no type can be called 'unknown'" in result.stderr) == (3, True)


def test_deleting_a_type_that_is_not_there_names_the_nearest(at: tuple, first_indexing: dict, cvad) -> None:
    result = cvad("index", *at, "--delete", "foldd", "-q")
    assert (result.exit_code, "Did you mean 'fold'?" in result.stderr) == (6, True)


def test_a_neighbour_of_an_imported_index_leads_nowhere_outside_the_root(
    trained: Path, sample_data: Path, tmp_path: Path, cvad
) -> None:
    run = ("--config", trained, "--set", f"qdrant.path={tmp_path}")
    assert cvad("index", *run, "--shots", 1, "-q").exit_code == 0
    with open_store(other_index(tmp_path)) as store:
        points = list(store.scroll())
        store.upsert([DefectPoint(p.id, p.vector, {**p.payload, "source": "../../secret.png"}) for p in points])
    result = cvad("classify", sample_data / "leather/test/poke", *run, "--json", "-q")
    assert result.exit_code == 0, result.output
    neighbours = [
        neighbour
        for image in json.loads(result.stdout)["images"]
        for region in image["regions"]
        for neighbour in region["neighbours"]
    ]
    assert neighbours
    assert {neighbour["path"] for neighbour in neighbours} == {None}


def test_naming_is_measured_with_nothing_tested_in_the_index(trained: Path, tmp_path: Path, cvad) -> None:
    shutil.copytree(trained.parent / "runs", tmp_path / "runs")
    run = ("--config", trained, "--set", f"output.root={tmp_path / 'runs'}")
    result = cvad("evaluate", *run, "--classification", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["classification"]
    assert found["types"] == dict.fromkeys(TYPES, 3)
    assert 0 <= found["leave_one_out"]["accuracy"] <= 1
    assert np.sum(found["leave_one_out"]["confusion"]["rows_are_true"]) == found["images"] == 15
    assert found["shots"]["1"]["tested"] == 10
    assert found["shots"]["5"] is None
    assert "the rarest type has 3 images" in found["unavailable"]["shots.5"]
    assert 0 <= found["open_set"]["auroc_mean"] <= 1
    folder = tmp_path / "runs" / "small" / "evaluation"
    assert json.loads((folder / "metrics.json").read_text("utf-8"))["classification"] == found
    for name in ("confusion.png", "reliability.png"):
        assert read_image(folder / name).shape[1] > 400


def test_one_defect_type_alone_cannot_be_classified(trained: Path, sample_data: Path, tmp_path: Path, cvad) -> None:
    shutil.copytree(sample_data, tmp_path / "data")
    for folder in (tmp_path / "data" / "leather" / "test").iterdir():
        if folder.name not in {"good", "cut"}:
            shutil.rmtree(folder)
    shutil.copytree(trained.parent / "runs", tmp_path / "runs")
    run = ("--config", trained, "--set", f"output.root={tmp_path / 'runs'}", "--set", f"data.root={tmp_path / 'data'}")
    found = json.loads(cvad("evaluate", *run, "--classification", "--json").stdout)["classification"]
    assert found["leave_one_out"] is None
    assert found["unavailable"]["leave_one_out"] == "there is only one defect type"


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("index", "--list", "--delete", "fold"), 2, "give one of"),
        (("classify", "x.png", "--json", "--jsonl"), 2, "not both"),
        (("index", "--shots", "0"), 2, "--shots"),
        (("index", "--set", "classify.unknown_rate=1"), 2, "a share between 0 and 1"),
        (("index", "--set", "classify.min_area_mm2=2"), 2, "needs data.pixel_size_mm"),
    ],
)
def test_options_that_contradict_are_refused(at: tuple, options: tuple, status: int, message: str, cvad) -> None:
    result = cvad(options[0], *at, *options[1:])
    assert (result.exit_code, message in result.output) == (status, True), result.output

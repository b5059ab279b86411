"""The pipeline and its memory, with a detector whose answers are known."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from cvad_cli.adapters.images import read_image
from cvad_cli.assembly.data.path_arguments import walk
from cvad_cli.assembly.prediction.image_item import ImageId, ImageItem
from cvad_cli.assembly.prediction.pipeline import (
    Failed,
    Judged,
    Keep,
    Loaded,
    Loader,
    Pipeline,
    keep_nothing,
    keep_original,
)
from cvad_cli.assembly.prediction.sources import STANDARD_INPUT, Sources
from cvad_cli.cli.progress import QuietReporter
from cvad_cli.config.load import load_config
from cvad_cli.errors import DataError
from cvad_cli.records import Prediction
from cvad_cli.tasks.predict import PredictRequest, predict

MAX_GROWTH_MB = 16
"""4,000 kept images of 64 x 64 would be 49 MB, kept maps 66 MB."""


class Brightness:
    """Scores an image by its first level; says how long its parts took."""

    image_size = (8, 8)

    def __init__(self, seconds: float = 0.0) -> None:
        self.last_split: dict[str, float] = {}
        self.batches: list[int] = []
        self._seconds = seconds

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        started = time.perf_counter()
        time.sleep(self._seconds)
        self.batches.append(len(images))
        took = time.perf_counter() - started
        self.last_split = {"network": took * 0.75, "search": took * 0.25}
        scores = [float("nan") if image[0, 0, 0] == 255 else float(image[0, 0, 0]) for image in images]
        return [Prediction(score, np.zeros((8, 8), np.float32)) for score in scores]


def of(number: int) -> ImageItem:
    image = np.full((8, 8, 3), number, dtype=np.uint8)
    return ImageItem(ImageId(str(number), str(number)), DataError(f"{number}: broken") if number == 5 else image)


def run(detector: Brightness, image_items: Iterator[ImageItem], **options) -> list[float | str]:
    pipeline = Pipeline(detector, batch_size=4, workers=3)
    load = Loader((8, 8), max_megapixels=1)
    outcomes = pipeline.run(
        image_items, lambda image_item: Sources.load(load, image_item), lambda judged: judged, **options
    )
    return [one.prediction.score if isinstance(one, Judged) else str(one.error) for one in outcomes]


def test_results_keep_the_order_unreadable_images_included() -> None:
    found = run(Brightness(), (of(number) for number in range(60)))
    assert found == ["5: broken" if number == 5 else float(number) for number in range(60)]


def test_a_score_that_is_no_number_is_no_verdict() -> None:
    assert "gives no finite score for it" in str(run(Brightness(), iter([of(255)]))[0])


def test_batches_are_full_for_files_and_small_for_what_trickles_in() -> None:
    full = Brightness()
    run(full, (of(number) for number in range(10, 20)))
    assert full.batches == [4, 4, 2]

    def slow() -> Iterator[ImageItem]:
        for number in range(10, 13):
            yield of(number)
            time.sleep(0.1)

    trickling = Brightness()
    run(trickling, slow(), live=True)
    assert trickling.batches == [1, 1, 1]


def test_the_stages_of_a_image_explain_its_latency() -> None:
    pipeline = Pipeline(Brightness(0.02), batch_size=2, workers=2)
    load = Loader((8, 8), max_megapixels=1)
    now: list[float] = []
    outcomes = pipeline.run(map(of, range(10, 18)), load, lambda judged: (judged, time.perf_counter()))
    for outcome in outcomes:
        assert not isinstance(outcome, Failed)
        judged, finished = outcome
        whole = judged.judged - judged.loaded.started
        assert list(judged.stages) == ["decode", "resize", "wait", "network", "search"]
        assert sum(judged.stages.values()) == pytest.approx(whole, rel=0.1, abs=0.01)
        now.append(finished)
    assert now == sorted(now)


def test_no_more_than_a_bound_is_under_way_when_results_are_not_taken() -> None:
    begun: list[int] = []

    def image_items() -> Iterator[ImageItem]:
        for number in range(1000):
            begun.append(number)
            yield of(number % 4)

    pipeline = Pipeline(Brightness(), batch_size=2, workers=2)
    outcomes = pipeline.run(image_items(), Loader((8, 8), max_megapixels=1), lambda judged: judged)
    next(outcomes)
    time.sleep(0.5)
    assert len(begun) <= 20
    outcomes.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("cvad-load", "cvad-feed"))]


def test_an_interrupt_lets_go_of_a_source_that_waits() -> None:
    ending = threading.Event()

    def image_items() -> Iterator[ImageItem]:
        yield of(1)
        ending.wait(60)

    pipeline = Pipeline(Brightness(), batch_size=2, workers=2)
    load = Loader((8, 8), max_megapixels=1)
    outcomes = pipeline.run(image_items(), load, lambda judged: judged, live=True, ending=ending)
    next(outcomes)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        outcomes.throw(KeyboardInterrupt())
    assert time.monotonic() - started < 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("cvad-load", "cvad-feed"))]


def test_a_detector_that_fails_ends_the_run_with_its_error() -> None:
    class Broken(Brightness):
        def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
            raise ZeroDivisionError("the network")

    with pytest.raises(ZeroDivisionError, match="the network"):
        run(Broken(), (of(number) for number in range(100)))


def test_a_finish_that_meets_bad_data_fails_its_image_alone() -> None:
    def finish(judged: Judged) -> float:
        if judged.prediction.score == 2:
            raise DataError("2: its mask is broken")
        return judged.prediction.score

    outcomes = Pipeline(Brightness(), batch_size=4, workers=2).run(map(of, range(4)), loading(), finish)
    found = [f"failed: {one.error}" if isinstance(one, Failed) else one for one in outcomes]
    assert found == [0, 1, "failed: 2: its mask is broken", 3]


def loading(keep: Keep = keep_nothing, *, side: int = 8) -> Callable[[ImageItem], Loaded | Failed]:
    loader = Loader((side, side), max_megapixels=20, keep=keep)
    return lambda image_item: Sources.load(loader, image_item)


def file_item(path: Path, image: np.ndarray) -> ImageItem:
    assert cv2.imwrite(str(path), image)
    return ImageItem(ImageId(str(path), path.name), path)


@pytest.mark.parametrize(
    ("name", "shape", "kept"),
    [("small.png", (60, 40, 3), True), ("reduced.jpg", (60, 40, 3), False), ("large.png", (3200, 4000), False)],
)
def test_an_image_at_its_own_size_is_kept_or_read_again(
    tmp_path: Path, name: str, shape: tuple[int, ...], kept: bool
) -> None:
    levels = np.random.default_rng(0).integers(0, 256, shape[:2], dtype=np.uint8)
    image = np.broadcast_to(levels.reshape(*shape[:2], *[1] * (len(shape) - 2)), shape)
    image_item = file_item(tmp_path / name, np.ascontiguousarray(image))
    loaded = loading(keep_original)(image_item)
    assert isinstance(loaded, Loaded)
    assert (loaded.kept is not None) == kept
    assert np.array_equal(loaded.original(), read_image(tmp_path / name))


def test_what_was_changed_before_it_was_read_again_is_no_longer_that_image(tmp_path: Path) -> None:
    image_item = file_item(tmp_path / "reduced.jpg", np.zeros((60, 40, 3), np.uint8))
    loaded = loading(keep_original)(image_item)
    assert isinstance(loaded, Loaded)
    file_item(tmp_path / "reduced.jpg", np.zeros((60, 41, 3), np.uint8))
    with pytest.raises(DataError, match=r"reduced\.jpg: was changed while"):
        loaded.original()
    (tmp_path / "reduced.jpg").unlink()
    with pytest.raises(DataError, match="no such file"):
        loaded.original()


def test_a_frame_is_kept_where_it_is_needed(tmp_path: Path) -> None:
    loaded = loading(keep_original)(ImageItem(ImageId("line.mp4#1", "line/1"), np.zeros((3200, 4000, 3), np.uint8)))
    assert isinstance(loaded, Loaded)
    assert loaded.original().shape == (3200, 4000, 3)


def test_a_folder_that_disappears_during_the_walk_is_an_error_in_order(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    found = walk(tmp_path)
    assert next(found) == tmp_path / "a" / "1.png"
    (tmp_path / "b" / "1.png").unlink()
    (tmp_path / "b").rmdir()
    gone, last = found
    assert isinstance(gone, DataError)
    assert "cannot be listed" in str(gone)
    assert last == tmp_path / "c" / "1.png"


def test_names_of_files_about_images_differ_and_lead_nowhere_else(tmp_path: Path) -> None:
    for path in ("x/1.png", "y/1.png", "y/deep/1.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    sources = Sources(
        [str(tmp_path / "x" / "1.png"), str(tmp_path / "y"), str(tmp_path / "x" / ".." / "y" / "deep")],
        threading.Event(),
        listing=STANDARD_INPUT,
    )
    assert [image_item.image_id.name for image_item in sources.image_items()] == [
        "x/1.png",
        "y/1.png",
        "y/deep/1.png",
        "y/deep/1.png",
    ]
    listed = Sources(["-"], threading.Event(), listing=STANDARD_INPUT)
    names = [image_item.image_id.name for image_item in listed._of_path(Path("../../etc/x.png"))]
    assert ".." not in Path(names[0]).parts
    assert not Path(names[0]).is_absolute()


@pytest.fixture
def tiny(small_config: Path, cvad) -> Path:
    """A trained run that takes a millisecond or two an image."""
    text = small_config.read_text("utf-8").replace("image_size: 64", "image_size: 32")
    text = text.replace("coreset_ratio: 0.05, num_neighbors: 3", "coreset_ratio: 0.01, num_neighbors: 1")
    small_config.write_text(text.replace("[layer1, layer2]", "[layer1]"), "utf-8")
    result = cvad("train", "-c", small_config, "-q")
    assert result.exit_code == 0, result.output
    return small_config


@pytest.mark.ci
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the resident memory from /proc")
def test_memory_does_not_grow_with_the_number_of_images(tiny: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    for number in range(50):
        cv2.imwrite(str(tmp_path / f"{number:05d}.png"), rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for number in range(50, 5000):  # other names for the same content: what counts is how many there are
        os.link(tmp_path / f"{number % 50:05d}.png", tmp_path / f"{number:05d}.png")
    resident: dict[int, float] = {}

    def tell(_line: object, tally) -> None:
        if tally.judged in {1000, 5000}:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident[tally.judged] = pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    settings = load_config(tiny, ["runtime.batch_size=64"])
    summary = predict(settings, PredictRequest(sources=(str(tmp_path),), on_result=tell), QuietReporter())
    assert summary.images == 5000
    assert abs(resident[5000] - resident[1000]) < MAX_GROWTH_MB, resident

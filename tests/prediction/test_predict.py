"""`cvad predict` through the command line: every kind of source, every kind of output, everything that can go wrong."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cvad_cli.adapters.images import read_image, resize_image
from cvad_cli.assembly.benchmark.latency import single_image_latency
from cvad_cli.assembly.prediction.image_item import ImageId
from cvad_cli.assembly.prediction.results import Finished, ImageResult, Tally
from cvad_cli.assembly.serving.open_bundle import open_detector
from cvad_cli.cli.render.predict import PredictionLines
from cvad_cli.config.load import load_config
from cvad_cli.tasks.predict import PredictRequest, predict

ODD_NAMES = ['a "quoted", name.png', "line\nbreak.png", "Prüfling Ø 5.png", "-dash.png", os.fsdecode(b"latin-\xe9.png")]


def anomalous(rows: int, columns: int) -> np.ndarray:
    """Black and white blocks: no part looks like this."""
    blocks = np.random.default_rng(1).integers(0, 2, (rows // 8, columns // 8, 1), dtype=np.uint8) * np.uint8(255)
    return np.broadcast_to(blocks.repeat(8, 0).repeat(8, 1), (rows, columns, 3)).copy()


@pytest.fixture(scope="module")
def good(sample_data: Path) -> Path:
    return sample_data / "grid" / "test" / "good"


@pytest.fixture
def parts(tmp_path: Path, good: Path) -> Path:
    """A folder of three good parts and a strange one, in two folders, with what is no image beside them."""
    folder = tmp_path / "parts"
    (folder / "b").mkdir(parents=True)
    shutil.copy(good / "000.png", folder / "a.png")
    shutil.copy(good / "001.png", folder / "b" / "a.png")
    shutil.copy(good / "002.png", folder / "c.png")
    Image.fromarray(anomalous(120, 160)).save(folder / "strange.png")
    (folder / "notes.txt").write_text("no image")
    shutil.copy(good / "000.png", folder / ".hidden.png")
    return folder


@pytest.fixture
def lines(cvad, trained: Path) -> Callable[..., list[dict]]:
    """The lines of JSON that a run prints."""

    def run(*arguments: object, status: int = 0) -> list[dict]:
        result = cvad("predict", "-c", trained, "--jsonl", "-q", *arguments)
        assert result.exit_code == status, result.output
        return [json.loads(line) for line in result.stdout_bytes.decode("utf-8").splitlines()]

    return run


@pytest.fixture
def standard_input() -> Iterator[Callable[[bytes], None]]:
    """Put bytes where file descriptor 0 reads them."""
    kept = os.dup(0)

    def give(content: bytes) -> None:
        reading, writing = os.pipe()
        os.write(writing, content)
        os.close(writing)
        os.dup2(reading, 0)
        os.close(reading)

    yield give
    os.dup2(kept, 0)
    os.close(kept)


def test_scores_are_those_of_evaluate(lines, trained: Path, sample_data: Path) -> None:
    with (trained.parent / "runs/small/evaluation/per_image.csv").open(newline="") as file:
        expected = {row["image"]: float(row["score"]) for row in csv.DictReader(file)}
    root = sample_data / "grid"
    found = {Path(line["image"]).relative_to(root).as_posix(): line["score"] for line in lines(root / "test")}
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=2e-5)


def test_folders_files_and_patterns_in_the_order_of_the_command_line(lines, parts: Path) -> None:
    found = [line["image"] for line in lines(parts / "c.png", parts, parts / "*.png")]
    inside = [parts / "a.png", parts / "b" / "a.png", parts / "c.png", parts / "strange.png"]
    expected = [parts / "c.png", *inside, parts / "a.png", parts / "c.png", parts / "strange.png"]
    assert found == [str(path) for path in expected]


def test_a_line_says_verdict_regions_and_latency(lines, parts: Path) -> None:
    passed, _, _, rejected = lines(parts)
    assert (passed["rejected"], passed["regions"]) == (False, [])
    assert passed["score"] <= passed["threshold"] == rejected["threshold"] < rejected["score"]
    assert rejected["rejected"]
    assert rejected["latency_ms"] > 0
    for region in rejected["regions"]:
        top, left, bottom, right = region["box"]
        assert 0 <= top < bottom <= 120
        assert 0 <= left < right <= 160
        assert top <= region["centre"][0] <= bottom
        assert left <= region["centre"][1] <= right
        assert region["peak"] >= region["mean_score"]


@pytest.mark.parametrize(("option", "separator"), [((), b"\n"), ((), b"\r\n"), (("--null",), b"\0")])
def test_paths_come_from_standard_input(lines, parts: Path, standard_input, option, separator: bytes) -> None:
    paths = [os.fsencode(parts / "c.png"), b"", os.fsencode(parts / "a.png")]
    standard_input(separator.join(paths))  # the last one without its end
    assert [line["image"] for line in lines("-", *option)] == [str(parts / "c.png"), str(parts / "a.png")]


def test_odd_file_names_survive_every_output(lines, cvad, trained, good: Path, tmp_path: Path, standard_input) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    paths = [folder / name for name in ODD_NAMES]
    for path in paths:
        shutil.copy(good / "000.png", path)
    standard_input(b"\0".join(map(os.fsencode, paths)))
    maps, overlays, table = tmp_path / "maps", tmp_path / "overlays", tmp_path / "table.csv"
    found = lines("-", "-0", "--maps", maps, "--overlays", overlays, "--csv", table)
    assert [line["image"] for line in found] == [str(path) for path in paths]
    for line in found:
        assert Path(line["map"]).is_relative_to(maps)
        assert Path(line["map"]).is_file()
        assert Path(line["overlay"]).is_file()
    with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert [row["image"] for row in csv.DictReader(file)] == [str(path) for path in paths]
    assert cvad("predict", "-c", trained, folder).exit_code == 0


def test_maps_are_lossless_and_at_the_networks_size(lines, trained: Path, parts: Path, tmp_path: Path) -> None:
    lines(parts, "--maps", tmp_path / "maps", "--set", "runtime.batch_size=1")
    detector = open_detector(load_config(trained), "cpu").detector
    names = {
        path.relative_to(tmp_path / "maps").as_posix() for path in (tmp_path / "maps").rglob("*") if path.is_file()
    }
    assert names == {"a.png.tiff", "b/a.png.tiff", "c.png.tiff", "strange.png.tiff"}
    image = resize_image(read_image(parts / "strange.png"), detector.image_size)
    expected = detector.predict([image])[0].anomaly_map
    for read in (
        np.asarray(Image.open(tmp_path / "maps/strange.png.tiff")),
        cv2.imread(str(tmp_path / "maps/strange.png.tiff"), -1),
    ):
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, expected)


def test_overlays_show_the_regions_and_change_no_score(lines, good: Path, tmp_path: Path) -> None:
    large = read_image(good / "000.png").repeat(8, axis=0).repeat(8, axis=1)
    path = tmp_path / "large.jpg"
    Image.fromarray(large).save(path, quality=90)  # decoded at an eighth for the network, whole for the drawing
    (plain,) = lines(path)
    (drawn,) = lines(path, "--overlays", tmp_path / "overlays")
    assert drawn["score"] == plain["score"]
    assert Path(drawn["overlay"]) == tmp_path / "overlays" / "large.jpg.png"
    assert read_image(Path(drawn["overlay"])).shape[1] >= 1024


def test_a_table_has_a_row_a_image(lines, parts: Path, tmp_path: Path) -> None:
    (parts / "empty.png").touch()
    found = lines(parts, "--csv", tmp_path / "table.csv", "--set", "data.on_error=skip")
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [line["image"] for line in found]
    by_name = {Path(row["image"]).name: row for row in rows}
    assert "is empty" in by_name["empty.png"]["error"]
    assert (by_name["strange.png"]["rejected"], by_name["c.png"]["rejected"]) == ("1", "0")
    anomalous = next(line for line in found if line["image"].endswith("strange.png"))
    assert [int(by_name["strange.png"][edge]) for edge in ("top", "left", "bottom", "right")] == anomalous["regions"][
        0
    ]["box"]


def test_an_unreadable_image_stops_the_run_after_those_before_it(cvad, trained: Path, parts: Path) -> None:
    whole = (parts / "c.png").read_bytes()
    (parts / "c.png").write_bytes(whole[: len(whole) // 2])
    result = cvad("predict", "-c", trained, "--jsonl", "-q", parts)
    assert result.exit_code == 3
    assert "c.png: is cut short" in result.stderr
    assert [json.loads(line)["image"] for line in result.stdout.splitlines()] == [
        str(parts / "a.png"),
        str(parts / "b" / "a.png"),
    ]


def test_an_unreadable_image_is_passed_over_where_asked(lines, parts: Path) -> None:
    whole = (parts / "c.png").read_bytes()
    (parts / "c.png").write_bytes(whole[: len(whole) // 2])
    found = lines(parts, "--set", "data.on_error=skip")
    assert ["error" in line for line in found] == [False, False, True, False]
    assert "is cut short" in found[2]["error"]


def test_a_folder_that_vanishes_is_named(cvad, trained: Path, parts: Path, monkeypatch) -> None:
    """It goes away between the check of the sources and the reading."""
    from cvad_cli.tasks import predict as task

    opened = task.open_detector

    def slow_opening(*arguments):
        shutil.rmtree(parts)
        return opened(*arguments)

    monkeypatch.setattr(task, "open_detector", slow_opening)
    result = cvad("predict", "-c", trained, parts)
    assert result.exit_code == 3
    assert str(parts) in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, good: Path) -> Path:
    """A video of twelve frames: ten good ones, then two of noise."""
    path = tmp_path_factory.mktemp("video") / "line 1.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (128, 128))
    assert writer.isOpened()
    frame = cv2.cvtColor(read_image(good / "000.png"), cv2.COLOR_RGB2BGR)
    noise = anomalous(128, 128)
    for number in range(12):
        writer.write(noise if number >= 10 else frame)
    writer.release()
    return path


def test_a_video_is_judged_frame_by_frame(lines, clip: Path, tmp_path: Path) -> None:
    found = lines(clip, "--maps", tmp_path / "maps")
    assert [line["image"] for line in found] == [f"{clip}#{number}" for number in range(12)]
    assert [line["rejected"] for line in found[8:]] == [False, False, True, True]
    assert (tmp_path / "maps" / "line 1.avi" / "00000011.tiff").is_file()


def test_a_pattern_finds_videos_too_and_a_folder_only_images(lines, clip: Path, good: Path) -> None:
    assert len(lines(clip.parent / "*.avi")) == 12
    assert len(lines(good)) == 4


def test_a_file_that_is_no_video_is_named(cvad, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no video" * 100)
    result = cvad("predict", "-c", trained, tmp_path / "clip.mp4")
    assert result.exit_code == 3
    assert "clip.mp4: cannot be opened: is no video that OpenCV reads" in result.stderr


def test_a_camera_that_is_not_there_is_named(cvad, trained: Path) -> None:
    result = cvad("predict", "-c", trained, "camera:97")
    assert result.exit_code == 3
    assert "camera:97: cannot be opened: no such camera" in result.stderr


WRONG = [
    pytest.param(("camera:left",), 2, "a camera is named by its number, as in camera:0", id="a camera's name"),
    pytest.param((), 2, "name images, folders, patterns, videos or cameras, or give --watch FOLDER", id="nothing"),
    pytest.param(("{parts}", "/nowhere/x.png"), 3, "/nowhere/x.png: no such file or folder", id="a missing file"),
    pytest.param(("{parts}/*.bmp",), 3, "matches no image", id="an empty pattern"),
    pytest.param(("{parts}", "--watch", "{parts}"), 2, "or give --watch FOLDER", id="sources and a watched folder"),
    pytest.param(("{parts}", "--results", "x.jsonl"), 2, "--results: is only for --watch", id="results alone"),
    pytest.param(("--watch", "{parts}", "--csv", "x.csv"), 2, "--csv: is written at the end", id="a table of a watch"),
    pytest.param(("--watch", "/nowhere/at/all"), 3, "/nowhere/at/all: no such folder", id="a missing watched folder"),
    pytest.param(("{parts}", "--maps", "{parts}/maps"), 2, "is inside {parts}, which is read", id="maps in a source"),
    pytest.param(("{parts}", "--maps", "{parts}/a.png/m"), 2, "is inside {parts}", id="maps below a file in a source"),
    pytest.param(("{parts}/b", "--maps", "{parts}/a.png/m"), 7, "cannot be written", id="maps that cannot be written"),
    pytest.param(("{parts}", "--csv", "{parts}/a.png/t.csv"), 7, "cannot be written", id="a table likewise"),
    pytest.param(("{parts}", "--json", "--jsonl"), 2, "not both", id="two kinds of JSON"),
    pytest.param(("-", "-"), 2, "standard input can be read once", id="standard input twice"),
]


@pytest.mark.parametrize(("arguments", "status", "message"), WRONG)
def test_what_cannot_be_done_is_reported_first(cvad, trained, parts, arguments, status, message) -> None:
    filled = [argument.format(parts=parts) for argument in arguments]
    result = cvad("predict", "-c", trained, *filled)
    assert result.exit_code == status, result.output
    assert message.format(parts=parts) in " ".join(result.stderr.replace("│", " ").split())
    assert result.stdout == ""


def test_a_rejected_part_fails_the_run_where_asked(cvad, trained: Path, parts: Path) -> None:
    assert cvad("predict", "-c", trained, "-q", parts).exit_code == 0
    assert cvad("predict", "-c", trained, "-q", parts, "--fail-on-defect").exit_code == 1
    assert cvad("predict", "-c", trained, "-q", parts / "b", "--fail-on-defect").exit_code == 0


def test_the_summary_explains_where_the_time_goes(cvad, trained: Path, parts: Path) -> None:
    (parts / "empty.png").touch()
    result = cvad("predict", "-c", trained, "--json", parts, "--set", "data.on_error=skip")
    summary = json.loads(result.stdout)
    assert (summary["images"], summary["rejected"], summary["unreadable"]) == (4, 1, 1)
    assert [Path(skipped["key"]).name for skipped in summary["skipped"]] == ["empty.png"]
    assert {"decode", "resize", "wait", "post-processing"} < summary["stages"].keys()
    assert sum(stage["mean_ms"] for stage in summary["stages"].values()) == pytest.approx(
        summary["explained"] * summary["latency"]["mean_ms"]
    )
    assert 0.95 < summary["explained"] < 1.001
    assert summary["latency"]["count"] == 4
    assert summary["images_per_second"] > 0


def test_people_get_a_line_a_image_and_a_summary(cvad, trained: Path, parts: Path) -> None:
    text = cvad("predict", "-c", trained, parts).stdout
    assert [line.split()[0] for line in text.splitlines()[:4]] == ["passed", "passed", "passed", "rejected"]
    assert "4 images" in text
    assert "1 rejected (25.0%)" in text


def test_an_interrupted_run_leaves_no_thread_and_no_half_file(trained: Path, good: Path, tmp_path: Path, cvad) -> None:
    settings = load_config(trained)
    from cvad_cli.cli.progress import QuietReporter

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    request = PredictRequest(
        sources=(str(good),), csv=tmp_path / "table.csv", maps=tmp_path / "maps", on_result=interrupt
    )
    with pytest.raises(KeyboardInterrupt):
        predict(settings, request, QuietReporter())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("cvad-load", "cvad-feed"))]
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".tiff"}


def test_a_single_images_latency_is_explained_by_its_stages(trained: Path, good: Path) -> None:
    settings = load_config(trained)
    found = single_image_latency(open_detector(settings, "cpu"), settings, sorted(good.iterdir()), repeats=3)
    assert found.whole.count == 12
    assert {"decode", "resize", "post-processing"} < found.stages.keys()
    assert all(latency.count == 12 for latency in found.stages.values())
    assert 0.95 < found.explained <= 1
    with pytest.raises(ValueError, match="one or more images"):
        single_image_latency(open_detector(settings, "cpu"), settings, [])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_how_it_goes_and_a_pipe_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    result = ImageResult("a.png", score=2.0, threshold=1.0, rejected=True, regions=(), latency_ms=40.0)
    tally = Tally()
    tally.count(Finished(ImageId("a.png", "a.png"), result, 0.04, {"decode": 0.04}))
    shown = {}
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setattr("sys.stdout", io.StringIO())
        with PredictionLines(jsonl=False, silent=False, live=True) as teller:
            teller.print_result(dataclasses.asdict(result), tally)
        shown[stream.isatty()] = stream.getvalue()
    assert "1 judged" in shown[True]
    assert "40 / 40 / 40 ms (p50/p95/p99)" in shown[True]
    assert "100.0% rejected" in shown[True]
    assert shown[False] == ""

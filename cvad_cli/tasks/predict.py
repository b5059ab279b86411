"""`cvad predict`: a score, a verdict and the regions of each image, at the speed of a production line."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cvad_cli.adapters.machine.devices import choose_device
from cvad_cli.adapters.storage.result_journal import FILE, ResultJournal
from cvad_cli.assembly.execution.executors import is_distributed, keeping_threads, run_job
from cvad_cli.assembly.prediction.folder_watcher import Watcher
from cvad_cli.assembly.prediction.job import ImageJob, PredictStep
from cvad_cli.assembly.prediction.pipeline import Failed
from cvad_cli.assembly.prediction.results import Finished, Tally
from cvad_cli.assembly.prediction.sources import (
    STANDARD_INPUT,
    Listing,
    Sources,
    camera_number,
    require_meaning,
    require_outside,
)
from cvad_cli.assembly.serving.open_bundle import open_bundle, open_detector
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.latency import LatencySummary
from cvad_cli.errors import ConfigError
from cvad_cli.files import replacing, require_writable
from cvad_cli.ports import Reporter
from cvad_cli.records import SkippedImage

COLUMNS: Final = (
    *("image", "rejected", "score", "threshold", "regions", "top", "left", "bottom", "right"),
    *("peak", "latency_ms", "map", "overlay", "error"),
)
MAX_LISTED: Final = 20
"""Maximum number of unreadable images in the summary; the lines of results name all of them."""

Line = Mapping[str, Any]
"""About one image: the fields of `ImageResult`, or `image` and `error`; with --watch also `file`."""


def _ignore(line: Line, tally: Tally) -> None:
    """Ignore single results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictRequest:
    """Which images to judge, and what to write about them."""

    sources: tuple[str, ...] = ()
    """Files, folders, patterns, videos, `camera:N`, and `-` for the paths of `listing`."""
    watch: Path | None = None
    """A folder whose files are inspected as they appear, instead of `sources`."""
    results: Path | None = None
    """With `watch`: the file of results, which also records the finished files; None: a file below the run's folder."""
    csv: Path | None = None
    maps: Path | None = None
    overlays: Path | None = None
    listing: Listing = STANDARD_INPUT
    on_result: Callable[[Line, Tally], None] = _ignore
    """Gets a line about each image when it is judged, in order, with the counts so far. With `watch` the line is
    written to disk before."""
    stop: threading.Event | None = None
    """The run ends after the started images when another thread sets this event."""

    @property
    def is_endless(self) -> bool:
        """Whether the run normally ends by a signal."""
        return self.watch is not None or any(camera_number(source) is not None for source in self.sources)


@dataclass(frozen=True, slots=True)
class PredictSummary:
    """The result of `cvad predict`. Its size does not grow with the number of images."""

    name: str
    images: int
    """Judged in this run."""
    rejected: int
    unreadable: int
    skipped: tuple[SkippedImage, ...]
    """The first unreadable images."""
    seconds: float
    """From the opened detector to the last result."""
    images_per_second: float
    latency: LatencySummary
    """From the start of reading an image until its result is ready, including waits."""
    stages: Mapping[str, LatencySummary]
    explained: float
    """Share of the latency that the stages account for."""
    results: Path | None
    """With `watch`: the file of results."""


@keeping_threads
def predict(settings: RunConfig, request: PredictRequest, reporter: Reporter) -> PredictSummary:
    """Judge every image of the sources, or those that appear in the watched folder until `request.stop` is set.

    Results go to `request.on_result` one by one; the record sums them up. Raises a CvadError that names the remedy.
    """
    _check(request)
    for folder in filter(None, (request.maps, request.overlays)):
        require_writable(folder)
    distributed = is_distributed(settings) and not request.is_endless
    ending = request.stop or threading.Event()
    judge = _by_workers(settings, request, reporter) if distributed else _by_this_process(settings, request, ending)
    with contextlib.ExitStack() as stack:
        keep = stack.enter_context(_records(settings, request, reporter))
        feed = _feed(settings, request, reporter, keep.journal, ending)
        outcomes = stack.enter_context(contextlib.closing(judge(feed)))
        stack.callback(ending.set)  # before the outcomes are closed, because a source may be waiting
        seen = _Seen(Tally(), [])
        for outcome in outcomes:
            if isinstance(outcome, Failed) and request.watch is None and settings.data.on_error == "stop":
                raise outcome.error
            line = seen.take(outcome, reporter)
            keep.write(line)
            if isinstance(feed, Watcher):
                feed.done(outcome.image_id)
            request.on_result(line, seen.tally)
        return seen.summary(settings.name, None if keep.journal is None else keep.journal.path)


Judging = Callable[[Sources | Watcher], Generator[Finished | Failed, None, None]]
"""Takes a source of images and yields their outcomes in order."""


def _by_this_process(settings: RunConfig, request: PredictRequest, ending: threading.Event) -> Judging:
    opened = open_detector(settings, choose_device(settings.device))
    job = ImageJob(settings, opened.bundle.folder, PredictStep(request.maps, request.overlays), opened)
    job.opened()  # raises an error before the first image if something does not fit
    return lambda feed: job.run(feed.image_items(), feed.load, live=feed.is_live, ending=ending)


def _by_workers(settings: RunConfig, request: PredictRequest, reporter: Reporter) -> Judging:
    """Each worker opens the bundle, and writes the files about its images."""
    job = ImageJob(settings, open_bundle(settings).folder, PredictStep(request.maps, request.overlays))
    return lambda feed: run_job(settings, job, feed.image_items(), reporter.warn)


def _check(request: PredictRequest) -> None:
    if (request.watch is None) == (not request.sources):
        raise ConfigError("predict: name images, folders, patterns, videos or cameras, or give --watch FOLDER")
    if request.results is not None and request.watch is None:
        raise ConfigError("--results: is only for --watch; without --watch, redirect the output of --jsonl to a file")
    if request.csv is not None and request.watch is not None:
        raise ConfigError("--csv: is written at the end, and --watch has no end; its file of results lists every image")
    require_meaning(request.sources)
    read = request.sources if request.watch is None else (str(request.watch),)
    for option, folder in (("--maps", request.maps), ("--overlays", request.overlays)):
        if folder is not None:
            require_outside(folder, read, option)


def _feed(
    settings: RunConfig,
    request: PredictRequest,
    reporter: Reporter,
    journal: ResultJournal | None,
    enough: threading.Event,
) -> Sources | Watcher:
    if request.watch is not None and journal is not None:
        return Watcher(request.watch, journal, settings.watch, enough=enough, note=reporter.note)
    bound = settings.data.max_megapixels
    return Sources(request.sources, enough, listing=request.listing, max_megapixels=bound)


@dataclass
class _Seen:
    """Counts and failures so far."""

    tally: Tally
    skipped: list[SkippedImage]

    def take(self, outcome: Finished | Failed, reporter: Reporter) -> Line:
        """Count an outcome, and return it as a line."""
        stamp = outcome.image_id.stamp
        about = {} if stamp is None else {FILE: dataclasses.asdict(stamp)}
        if isinstance(outcome, Finished):
            self.tally.count(outcome)
            return dataclasses.asdict(outcome.result) | about
        self.tally.failed += 1
        if len(self.skipped) < MAX_LISTED:
            self.skipped.append(SkippedImage(outcome.image_id.image, str(outcome.error)))
        reporter.warn(f"skipped {outcome.error}")
        return {"image": outcome.image_id.image, "error": str(outcome.error)} | about

    def summary(self, name: str, results: Path | None) -> PredictSummary:
        """The figures of the whole run."""
        tally = self.tally
        return PredictSummary(
            name=name,
            images=tally.judged,
            rejected=tally.rejected,
            unreadable=tally.failed,
            skipped=tuple(self.skipped),
            seconds=tally.seconds,
            images_per_second=tally.rate,
            latency=tally.times.whole.summary(),
            stages=tally.times.stages,
            explained=tally.times.explained,
            results=results,
        )


@dataclass(frozen=True, slots=True)
class _Records:
    """Where lines are stored."""

    journal: ResultJournal | None
    row: Callable[[list[Any]], object] | None

    def write(self, line: Line) -> None:
        """Store a line: durably in the file of results, or as a row of the table."""
        if self.journal is not None:
            self.journal.append(line)
        if self.row is not None:
            self.row(_row(line))


@contextmanager
def _records(settings: RunConfig, request: PredictRequest, reporter: Reporter) -> Iterator[_Records]:
    """Open the journal of --watch, or the table of --csv, which replaces the former file at the end."""
    with contextlib.ExitStack() as stack:
        if request.watch is not None:
            path = request.results or _default_results(settings, request.watch)
            yield _Records(stack.enter_context(ResultJournal(path, reporter.warn)), None)
        elif request.csv is not None:
            staged = stack.enter_context(replacing(request.csv))
            opened = staged.open("w", newline="", encoding="utf-8", errors="surrogateescape")
            writer = csv.writer(stack.enter_context(opened))
            writer.writerow(COLUMNS)
            yield _Records(None, writer.writerow)
        else:
            yield _Records(None, None)


def _default_results(settings: RunConfig, folder: Path) -> Path:
    """A file per watched folder, below the run's folder."""
    whole = folder.expanduser().resolve()
    tag = hashlib.sha256(str(whole).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return Path(settings.output.root).expanduser() / settings.name / "watch" / f"{whole.name}-{tag}.jsonl"


def _row(line: Line) -> list[Any]:
    """One image as a row of the table: its verdict, and the box of the region with the largest mass."""
    if "error" in line:
        return [line["image"], *[""] * (len(COLUMNS) - 2), line["error"]]
    strongest = line["regions"][0] if line["regions"] else None
    box, peak = ([""] * 4, "") if strongest is None else (strongest["box"], f"{strongest['peak']:.6g}")
    verdict = (line["image"], int(line["rejected"]), f"{line['score']:.6g}", f"{line['threshold']:.6g}")
    return [*verdict, len(line["regions"]), *box, peak, line["latency_ms"], line["map"], line["overlay"], ""]

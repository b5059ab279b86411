"""`cvad predict`: a score, a verdict and the regions of each image, at line speed, for as long as images come."""

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
"""Unreadable images that the summary names; the lines name all."""

Line = Mapping[str, Any]
"""About one image: the fields of `ImageResult`, or `image` and `error`; with --watch also `file`."""


def _ignore(line: Line, tally: Tally) -> None:
    """Nobody reads the results one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictRequest:
    """Which images, and what to write about them."""

    sources: tuple[str, ...] = ()
    """Files, folders, patterns, videos, `camera:N`, and `-` for the paths of `listing`."""
    watch: Path | None = None
    """A folder whose files are inspected as they appear, in place of `sources`."""
    results: Path | None = None
    """With `watch`: the file of lines that is its memory; None: one below the run's folder."""
    csv: Path | None = None
    maps: Path | None = None
    overlays: Path | None = None
    listing: Listing = STANDARD_INPUT
    on_result: Callable[[Line, Tally], None] = _ignore
    """Gets a line about each image when it is judged, in order, with the counts so far. With `watch` the line is
    written to disk before."""
    stop: threading.Event | None = None
    """Set from elsewhere, it ends the run after the images that were begun."""

    @property
    def is_endless(self) -> bool:
        """Whether a signal is the ordinary way to end it."""
        return self.watch is not None or any(camera_number(source) is not None for source in self.sources)


@dataclass(frozen=True, slots=True)
class PredictSummary:
    """What `cvad predict` did. Nothing in it grows with the number of images."""

    name: str
    images: int
    """Judged in this run."""
    rejected: int
    unreadable: int
    skipped: tuple[SkippedImage, ...]
    """The first of the unreadable ones."""
    seconds: float
    """From the opened detector to the last result."""
    images_per_second: float
    latency: LatencySummary
    """From the moment that reading an image began until its result was ready, waiting included."""
    stages: Mapping[str, LatencySummary]
    explained: float
    """Share of the latency that the stages account for."""
    results: Path | None
    """With `watch`: the file of results."""


@keeping_threads
def predict(settings: RunConfig, request: PredictRequest, reporter: Reporter) -> PredictSummary:
    """Judge every image of the sources, or those that appear in the watched folder until `request.stop` is set.

    Results go to `request.on_result` one by one; the record sums them up. Raises the CvadError that names what to mend.
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
        stack.callback(ending.set)  # before what judges is closed: a source may be waiting
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
"""Takes what brings the images, gives their outcomes in order."""


def _by_this_process(settings: RunConfig, request: PredictRequest, ending: threading.Event) -> Judging:
    opened = open_detector(settings, choose_device(settings.device))
    job = ImageJob(settings, opened.bundle.folder, PredictStep(request.maps, request.overlays), opened)
    job.opened()  # what does not fit is told before the first image
    return lambda feed: job.run(feed.image_items(), feed.load, live=feed.is_live, ending=ending)


def _by_workers(settings: RunConfig, request: PredictRequest, reporter: Reporter) -> Judging:
    """Workers open the bundle for themselves, and write the files about an image."""
    job = ImageJob(settings, open_bundle(settings).folder, PredictStep(request.maps, request.overlays))
    return lambda feed: run_job(settings, job, feed.image_items(), reporter.warn)


def _check(request: PredictRequest) -> None:
    if (request.watch is None) == (not request.sources):
        raise ConfigError("predict: name images, folders, patterns, videos or cameras, or give --watch FOLDER")
    if request.results is not None and request.watch is None:
        raise ConfigError("--results: is the memory of --watch; without it, send what --jsonl prints to a file")
    if request.csv is not None and request.watch is not None:
        raise ConfigError("--csv: is written at the end, which --watch has not; its file of results has every image")
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
    """What has been done so far."""

    tally: Tally
    skipped: list[SkippedImage]

    def take(self, outcome: Finished | Failed, reporter: Reporter) -> Line:
        """Count it, and say it as a line."""
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
        """The whole run in figures."""
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
    """Where lines are kept."""

    journal: ResultJournal | None
    row: Callable[[list[Any]], object] | None

    def write(self, line: Line) -> None:
        """Keep a line: in the file of results durably, in the table as a row."""
        if self.journal is not None:
            self.journal.append(line)
        if self.row is not None:
            self.row(_row(line))


@contextmanager
def _records(settings: RunConfig, request: PredictRequest, reporter: Reporter) -> Iterator[_Records]:
    """The journal of --watch, or the table of --csv, which takes its place when all is done."""
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
    """A file for each watched folder, below the run's own."""
    whole = folder.expanduser().resolve()
    tag = hashlib.sha256(str(whole).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return Path(settings.output.root).expanduser() / settings.name / "watch" / f"{whole.name}-{tag}.jsonl"


def _row(line: Line) -> list[Any]:
    """One image as a row of the table: its verdict, and the box of the region of most mass."""
    if "error" in line:
        return [line["image"], *[""] * (len(COLUMNS) - 2), line["error"]]
    strongest = line["regions"][0] if line["regions"] else None
    box, peak = ([""] * 4, "") if strongest is None else (strongest["box"], f"{strongest['peak']:.6g}")
    verdict = (line["image"], int(line["rejected"]), f"{line['score']:.6g}", f"{line['threshold']:.6g}")
    return [*verdict, len(line["regions"]), *box, peak, line["latency_ms"], line["map"], line["overlay"], ""]

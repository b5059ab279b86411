"""`cvad classify`: a verdict for each image, and a type for each of its defects."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import numpy as np

from cvad_cli.adapters.image_panels.defect_overlay import NEUTRAL, PALETTE, Mark, defect_overlay
from cvad_cli.adapters.machine.devices import choose_device
from cvad_cli.assembly.data.path_arguments import distinct_names, expand, with_suffix_added
from cvad_cli.assembly.defect_types.classifier import DefectClassifier
from cvad_cli.assembly.defect_types.index_points import index_name, open_index, require_fitting, require_index
from cvad_cli.assembly.defect_types.inspector import Inspection, RegionInspector
from cvad_cli.assembly.defect_types.jobs import ClassifyStep
from cvad_cli.assembly.execution.executors import keeping_threads, run_job
from cvad_cli.assembly.prediction.image_item import ImageId, ImageItem
from cvad_cli.assembly.prediction.job import ImageJob
from cvad_cli.assembly.prediction.pipeline import Failed
from cvad_cli.config.schema import RunConfig
from cvad_cli.files import replacing, require_writable
from cvad_cli.ports import Reporter
from cvad_cli.records import UNKNOWN, ImageVerdict, RegionVerdict, SkippedImage

COLUMNS: Final = (
    *("image", "rejected", "score", "threshold", "image_type", "image_confidence", "region", "type", "confidence"),
    *("p_value", "likeliest", "top", "left", "bottom", "right", "area_px", "area_mm2", "peak", "nearest"),
)


def _ignore(verdict: ImageVerdict) -> None:
    """Ignore single verdicts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyRequest:
    """Which images to classify, and what to write about them."""

    inputs: tuple[str, ...]
    """Files, folders and patterns."""
    csv: Path | None = None
    """A table to write: one row per region, and one for a part that passes."""
    overlays: Path | None = None
    """A folder for images with their defects marked."""
    on_result: Callable[[ImageVerdict], None] = _ignore
    """Gets each verdict when it is made, in order."""


@dataclass(frozen=True, slots=True)
class ClassifySummary:
    """The result of `cvad classify`."""

    name: str
    index: str
    types: tuple[str, ...]
    labelled_regions: int
    images: tuple[ImageVerdict, ...]
    skipped: tuple[SkippedImage, ...]
    caveats: tuple[str, ...]

    @property
    def rejected(self) -> int:
        """How many images have a defect."""
        return sum(image.rejected for image in self.images)


@keeping_threads
def classify(settings: RunConfig, request: ClassifyRequest, reporter: Reporter) -> ClassifySummary:
    """Judge images, find the regions of rejected images, and classify each region with the defect index.

    Verdicts go to `request.on_result` one by one; the record has all of them. Raises a CvadError that names the remedy.
    """
    paths = expand(request.inputs)
    if request.overlays is not None:
        require_writable(request.overlays)
    inspector = RegionInspector.open(settings, choose_device(settings.device))
    location = index_name(settings)
    found = _Found([], [])
    step = ClassifyStep(inspector, with_images=request.overlays is not None)
    job = ImageJob(settings, inspector.opened.bundle.folder, step, inspector.opened)
    image_items = [
        ImageItem(ImageId(str(path), name), path) for name, path in zip(distinct_names(paths), paths, strict=True)
    ]
    with open_index(settings) as store, closing(run_job(settings, job, image_items, reporter.warn)) as outcomes:
        require_fitting(require_index(store, location), inspector, location)
        classifier = DefectClassifier(store, settings, location)
        for caveat in classifier.caveats:
            reporter.warn(caveat)
        colours = _colours(classifier.types)
        stops = settings.data.on_error == "stop"
        for image_item, inspection in _inspected(image_items, outcomes, found.skipped, reporter, stops=stops):
            verdict = classifier.verdict(image_item.image_id.image, inspection, inspector.threshold)
            found.verdicts.append(verdict)
            request.on_result(verdict)
            if request.overlays is not None and inspection.image is not None:
                name = image_item.image_id.name
                path = request.overlays / with_suffix_added(name, ".png")
                _draw(path, inspection.image, verdict, colours, title=name)
    if request.csv is not None:
        with replacing(request.csv) as staged, staged.open("w", newline="", encoding="utf-8") as file:
            _write_rows(file, found.verdicts)
    return ClassifySummary(
        name=settings.name,
        index=location,
        types=classifier.types,
        labelled_regions=classifier.regions,
        images=tuple(found.verdicts),
        skipped=tuple(found.skipped),
        caveats=tuple(classifier.caveats),
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """The results so far."""

    verdicts: list[ImageVerdict]
    skipped: list[SkippedImage]


def _inspected(
    image_items: Sequence[ImageItem],
    outcomes: Iterable[Inspection | Failed],
    skipped: list[SkippedImage],
    reporter: Reporter,
    *,
    stops: bool,
) -> Iterator[tuple[ImageItem, Inspection]]:
    """Each readable image with its inspection, in order; `stops`: an unreadable image ends the work."""
    with reporter.stage("Judging the images", len(image_items)) as advance:
        for image_item, outcome in zip(image_items, outcomes, strict=True):
            if not isinstance(outcome, Failed):
                yield image_item, outcome
            elif stops:
                raise outcome.error
            else:
                skipped.append(SkippedImage(image_item.image_id.image, str(outcome.error)))
                reporter.warn(f"skipped {outcome.error}")
            advance(1)


def type_text(region: RegionVerdict) -> str:
    """The label of a region in an overlay: 'thread 97 %', or 'unknown (most like thread)'."""
    if region.defect_type == UNKNOWN:
        return f"{UNKNOWN} (most like {region.likeliest})"
    return f"{region.defect_type} {_percent(region.confidence)}"


def _percent(share: float) -> str:
    """A percentage, never 100 %: no labelled set is large enough for certainty."""
    return "> 99 %" if share >= 0.995 else f"{share:.0%}".replace("%", " %")


def _colours(types: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    return {name: PALETTE[number % len(PALETTE)] for number, name in enumerate(types)} | {UNKNOWN: NEUTRAL}


def _draw(
    path: Path, image: np.ndarray, verdict: ImageVerdict, colours: dict[str, tuple[int, int, int]], *, title: str
) -> None:
    marks = [
        Mark(region.box, [np.array(loop) for loop in region.contours], type_text(region), colours[region.defect_type])
        for region in verdict.regions
    ]
    what = "passed" if not verdict.rejected else f"rejected: {verdict.defect_type}"
    defect_overlay(
        path, image, marks, title=f"{title}   {what}   score {verdict.score:.3g}, threshold {verdict.threshold:.3g}"
    )


def _write_rows(file: IO[str], verdicts: Sequence[ImageVerdict]) -> None:
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for verdict in verdicts:
        image = (
            *(verdict.image, int(verdict.rejected), f"{verdict.score:.6g}", f"{verdict.threshold:.6g}"),
            *(verdict.defect_type or "", "" if verdict.confidence is None else f"{verdict.confidence:.4f}"),
        )
        for number, region in enumerate(verdict.regions, 1):
            nearest = region.neighbours[0].source if region.neighbours else ""
            area_mm2 = "" if region.area_mm2 is None else f"{region.area_mm2:.4g}"
            named = (number, region.defect_type, f"{region.confidence:.4f}", f"{region.p_value:.4f}", region.likeliest)
            writer.writerow(
                [*image, *named, *region.box, f"{region.area_px:.1f}", area_mm2, f"{region.peak:.6g}", nearest]
            )
        if not verdict.regions:
            writer.writerow([*image, *[""] * (len(COLUMNS) - len(image))])

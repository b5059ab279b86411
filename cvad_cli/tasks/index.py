"""`cvad index`: adds labelled images to the defect index, and lists, exports, imports and deletes regions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from cvad_cli.adapters.images.masks import one_warning
from cvad_cli.adapters.machine.devices import choose_device
from cvad_cli.adapters.prefetch import batched
from cvad_cli.adapters.storage.index_export import export_index, import_index
from cvad_cli.assembly.data.images import open_dataset
from cvad_cli.assembly.defect_types.index_points import (
    DATASET,
    Labeller,
    index_name,
    metadata_for,
    open_index,
    payload_text,
    require_fitting,
    require_index,
    same_label,
)
from cvad_cli.assembly.defect_types.inspector import LabelledInspection, RegionInspector
from cvad_cli.assembly.defect_types.jobs import IndexStep
from cvad_cli.assembly.execution.executors import keeping_threads, run_job
from cvad_cli.assembly.prediction.job import ImageJob
from cvad_cli.assembly.prediction.pipeline import Failed
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.regions import Region
from cvad_cli.errors import ConfigError, DataError, StoreError, did_you_mean
from cvad_cli.files.digests import file_sha256
from cvad_cli.ports import DefectStore, Reporter
from cvad_cli.records import UNKNOWN, DefectPoint, ImageRecord, SkippedImage

SOURCES_AT_ONCE: Final = 200
"""Images whose regions are read with one request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRequest:
    """What to index, and how."""

    shots: int | None = None
    """Images per type; None: all."""
    seed: int = 0
    """Seed of the draw if there are more than `shots` images."""
    labelled_by: str = DATASET
    prune: bool = False
    """Also remove regions of images that were removed from the data set, or changed."""
    rebuild: bool = False
    """Delete the index first, even if another bundle made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingRequest:
    """What to list of an index."""

    entries: bool = False
    """Also list the payload of every region."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteTypeRequest:
    """Which type to delete."""

    defect_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """Where to write the index."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRequest:
    """Where to read regions from."""

    path: Path
    """A file from an export."""


@dataclass(frozen=True, slots=True)
class IndexSummary:
    """The result of `cvad index`."""

    index: str
    images: Mapping[str, tuple[str, ...]]
    """Type -> the keys of the indexed images."""
    added: int
    """Regions that are new, or had another label."""
    unchanged: int
    removed: int
    """Regions of the same images that are no longer found, and pruned regions."""
    skipped: tuple[SkippedImage, ...]
    total: int
    """Regions in the index now."""


@dataclass(frozen=True, slots=True)
class IndexListing:
    """The content of an index."""

    index: str
    bundle: str
    descriptor: Any
    dimension: int
    regions: int
    types: Mapping[str, Mapping[str, int]]
    """Type -> its numbers of regions and images."""
    entries: tuple[Mapping[str, Any], ...] = ()
    """The payload of every region, with its id, if requested."""


@dataclass(frozen=True, slots=True)
class TransferSummary:
    """The result of an export or an import."""

    index: str
    file: Path
    what: str
    """'exported' or 'imported'."""
    regions: int
    total: int
    """Regions in the index now."""


@keeping_threads
def index_defects(settings: RunConfig, request: IndexRequest, reporter: Reporter) -> IndexSummary:
    """Describe the regions of labelled images and store them. Indexing twice changes nothing.

    Raises a CvadError that names the remedy; regions stored before the error stay.
    """
    if request.shots is not None and request.shots < 1:
        raise ConfigError(f"--shots: expected a whole number from 1, got {request.shots}")
    inspector = RegionInspector.open(settings, choose_device(settings.device))
    dataset = open_dataset(settings.data)
    defects = _labelled_defects(dataset.test, settings)
    chosen = _draw(defects, request)
    labeller = Labeller.of(inspector, dataset.name, request.labelled_by)
    location = index_name(settings)
    with open_index(settings) as store:
        info = store.info()
        if info is not None and request.rebuild:
            store.drop()
            info = None
        if info is None:
            store.create(inspector.describer.dimension, metadata_for(inspector, dataset.name))
        else:
            require_fitting(info, inspector, location)
        before = _indexed_before(store, dataset.name, None if request.prune else [record.key for record in chosen])
        run = _Run(labeller, before)
        for record, (sha256, described) in _described(chosen, inspector, settings, run.skipped, reporter):
            store.upsert(run.fresh(record, sha256, described.regions, described.vectors))
            run.done.append(record)
            run.cautions += [] if described.caution is None else [described.caution]
        removed = store.delete(ids=run.stale()) if run.stale() else 0
        if request.prune:
            removed += _prune(store, {key: held for key, held in before.items() if key not in run.found}, defects)
        total = store.count()
    for image in run.skipped:
        reporter.warn(f"skipped {image.key}: {image.reason}")
    if run.cautions:
        reporter.warn(one_warning(run.cautions))
    return IndexSummary(location, _by_type(run.done), run.added, run.unchanged, removed, tuple(run.skipped), total)


def _indexed_before(store: DefectStore, category: str, sources: Sequence[str] | None) -> dict[str, Mapping[str, Any]]:
    """The stored payloads by id, of `sources` or of all images: an index may be larger than memory."""
    if sources is None:
        return {point.id: point.payload for point in store.scroll(where={"category": category})}
    return {
        point.id: point.payload
        for some in batched(sources, SOURCES_AT_ONCE)
        for point in store.scroll(where={"category": category, "source": some})
    }


def _described(
    records: Sequence[ImageRecord],
    inspector: RegionInspector,
    settings: RunConfig,
    skipped: list[SkippedImage],
    reporter: Reporter,
) -> Iterator[tuple[ImageRecord, tuple[str, LabelledInspection]]]:
    """Each readable image with its hash and labelled regions, in order; the others go to `skipped`."""
    job = ImageJob(settings, inspector.opened.bundle.folder, IndexStep(inspector), inspector.opened)
    with (
        closing(run_job(settings, job, records, reporter.warn)) as outcomes,
        reporter.stage("Describing labelled defects", len(records)) as advance,
    ):
        for record, outcome in zip(records, outcomes, strict=True):
            if not isinstance(outcome, Failed):
                yield record, outcome
            elif settings.data.on_error == "stop":
                raise outcome.error
            else:
                skipped.append(SkippedImage(record.key, str(outcome.error)))
            advance(1)


class _Run:
    """One pass over labelled images, and its counts."""

    def __init__(self, labeller: Labeller, before: Mapping[str, Mapping[str, Any]]) -> None:
        self.done: list[ImageRecord] = []
        self.skipped: list[SkippedImage] = []
        self.cautions: list[str] = []
        self.added = self.unchanged = 0
        self.found: set[str] = set()
        self._labeller, self._before = labeller, before

    def fresh(
        self, record: ImageRecord, sha256: str, regions: Sequence[Region], vectors: np.ndarray
    ) -> list[DefectPoint]:
        """The points of an image that are not in the index yet."""
        found = [self._labeller.point(record, sha256, *pair) for pair in zip(regions, vectors, strict=True)]
        self.found |= {point.id for point in found}
        fresh = [p for p in found if p.id not in self._before or not same_label(self._before[p.id], p.payload)]
        self.added += len(fresh)
        self.unchanged += len(found) - len(fresh)
        return fresh

    def stale(self) -> list[str]:
        """Ids of regions that were indexed from the same images and are no longer found there."""
        again = {record.key for record in self.done}
        return [key for key, held in self._before.items() if held.get("source") in again and key not in self.found]


def index_listing(settings: RunConfig, request: ListingRequest, reporter: Reporter) -> IndexListing:
    """List the index of a config. Needs no trained bundle."""
    del reporter
    location = index_name(settings)
    with open_index(settings) as store:
        info = require_index(store, location)
        points = list(store.scroll())
    labels = [(payload_text(point, "defect_type"), payload_text(point, "source")) for point in points]
    regions, images = Counter(kind for kind, _ in labels), Counter(kind for kind, _ in set(labels))
    types = {kind: {"regions": regions[kind], "images": images[kind]} for kind in sorted(regions)}
    rows = sorted(
        ({"id": point.id, **point.payload} for point in points),
        key=lambda row: (str(row["defect_type"]), str(row["source"]), str(row["id"])),
    )
    held = info.metadata
    return IndexListing(
        index=location,
        bundle=str(held.get("bundle")),
        descriptor=held.get("descriptor"),
        dimension=info.dimension,
        regions=len(points),
        types=types,
        entries=tuple(rows) if request.entries else (),
    )


def delete_type(settings: RunConfig, request: DeleteTypeRequest, reporter: Reporter) -> IndexSummary:
    """Delete all regions of a type. Raises StoreError, with similar names, if there is none."""
    del reporter
    location, defect_type = index_name(settings), request.defect_type
    with open_index(settings) as store:
        require_index(store, location)
        removed = store.delete(where={"defect_type": defect_type})
        if not removed:
            known = sorted({payload_text(point, "defect_type") for point in store.scroll()})
            hint = did_you_mean(defect_type, known) or f" Its types: {', '.join(known) or 'none'}."
            raise StoreError(f"{location}: holds no region of type {defect_type!r}.{hint}")
        total = store.count()
    return IndexSummary(location, {}, 0, 0, removed, (), total)


def export_index_to(settings: RunConfig, request: ExportRequest, reporter: Reporter) -> TransferSummary:
    """Write the whole index to one file, which any cvad with the same bundle can import."""
    del reporter
    location, path = index_name(settings), request.path
    with open_index(settings) as store:
        require_index(store, location)
        return TransferSummary(location, path, "exported", export_index(store, path), store.count())


def import_index_from(settings: RunConfig, request: ImportRequest, reporter: Reporter) -> TransferSummary:
    """Add the regions of an export. Raises StoreError if it is damaged or of another bundle."""
    del reporter
    with open_index(settings) as store:
        return TransferSummary(
            index_name(settings), request.path, "imported", import_index(store, request.path), store.count()
        )


def _labelled_defects(records: Sequence[ImageRecord], settings: RunConfig) -> list[ImageRecord]:
    defects = [record for record in records if not record.is_normal]
    if not defects:
        raise DataError(f"{settings.data.root}: no image with a defect type to index; see datasets/README.md")
    for record in defects:
        if record.defect_type.casefold() == UNKNOWN:
            raise DataError(f"{record.path}: no type can be called {UNKNOWN!r}: that is the answer for what has none")
    return defects


def _draw(records: Sequence[ImageRecord], request: IndexRequest) -> list[ImageRecord]:
    """All images, or `shots` of each type, in the data set's order."""
    if request.shots is None:
        return list(records)
    rng = np.random.default_rng(request.seed)
    chosen: set[str] = set()
    for kind in sorted({record.defect_type for record in records}):
        keys = [record.key for record in records if record.defect_type == kind]
        chosen |= {keys[number] for number in rng.permutation(len(keys))[: request.shots]}
    return [record for record in records if record.key in chosen]


def _prune(store: DefectStore, before: Mapping[str, Mapping[str, Any]], records: Sequence[ImageRecord]) -> int:
    """Remove regions whose image was removed, relabelled or changed."""
    current = {record.key: record for record in records}
    hashes: dict[str, str] = {}
    gone = []
    for key, held in before.items():
        record = current.get(str(held["source"]))
        if record is not None and held["defect_type"] == record.defect_type:
            if record.key not in hashes:
                hashes[record.key] = file_sha256(record.path)
            if hashes[record.key] == held["source_sha256"]:
                continue
        gone.append(key)
    return store.delete(ids=gone) if gone else 0


def _by_type(records: Sequence[ImageRecord]) -> dict[str, tuple[str, ...]]:
    kinds = sorted({record.defect_type for record in records})
    return {kind: tuple(record.key for record in records if record.defect_type == kind) for kind in kinds}

"""The points that cvad stores in a defect index: one per labelled region, with the bundle of their descriptors."""

from __future__ import annotations

import dataclasses
import datetime as dt
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cvad_cli.assembly.defect_types.inspector import RegionInspector
from cvad_cli.assembly.defect_types.open_store import open_store
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.descriptors import DESCRIPTOR_VERSION
from cvad_cli.core.regions import Region
from cvad_cli.errors import StoreError
from cvad_cli.ports import DefectStore
from cvad_cli.records import DefectMatch, DefectPoint, ImageRecord, IndexInfo

NAMESPACE: Final = uuid.UUID("6d1bb0ad-3c5c-5f0e-9b6f-0f5b8a4a7c11")
"""The namespace of the ids, which are hashes of the regions that they identify."""

DATASET: Final = "dataset"
"""The name of the labeller for labels that came with a data set."""


@dataclass(frozen=True, slots=True)
class Labeller:
    """The fields that all points of one run of `cvad index` have in common."""

    category: str
    bundle: str
    labelled_by: str
    now: str

    @classmethod
    def of(cls, inspector: RegionInspector, category: str, labelled_by: str) -> Labeller:
        """For this bundle, at the present time."""
        now = dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")
        return cls(category, inspector.fingerprint, labelled_by, now)

    def point(self, record: ImageRecord, sha256: str, region: Region, vector: np.ndarray) -> DefectPoint:
        """A region of a labelled image. Its id follows from bundle, image, content and box."""
        identity = "\0".join([self.bundle, self.category, record.key, sha256, *map(str, region.box)])
        payload = {
            "category": self.category,
            "defect_type": record.defect_type,
            "source": record.key,
            "source_sha256": sha256,
            "box": list(region.box),
            "area_px": region.area_px,
            "area_mm2": region.area_mm2,
            "score": region.peak,
            "mass": region.mass,
            "bundle": self.bundle,
            "descriptor": DESCRIPTOR_VERSION,
            "labelled_by": self.labelled_by,
            "labelled_at": self.now,
        }
        return DefectPoint(str(uuid.uuid5(NAMESPACE, identity)), vector, payload)


def same_label(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two payloads of the same id have the same label; the id includes image, content, bundle and box.

    The date does not count, and a store may change the last digit of a score.
    """
    return all(one.get(key) == other.get(key) for key in ("defect_type", "labelled_by", "descriptor"))


def payload_text(point: DefectPoint | DefectMatch, field: str) -> str:
    """A text of a point's payload. Raises StoreError if it is missing, because cvad did not write the point."""
    value = point.payload.get(field)
    if not isinstance(value, str) or not value:
        raise StoreError(f"point {point.id}: has no {field}; it was not written by `cvad index`, so remove it")
    return value


def metadata_for(inspector: RegionInspector, category: str) -> dict[str, Any]:
    """The metadata of an index: bundle and version of its descriptors."""
    return {"bundle": inspector.fingerprint, "descriptor": DESCRIPTOR_VERSION, "category": category}


def open_index(settings: RunConfig) -> DefectStore:
    """The store of a run: its collection has the name of the run if `qdrant.collection` is null."""
    return open_store(dataclasses.replace(settings.qdrant, collection=settings.qdrant.collection or settings.name))


def index_name(settings: RunConfig) -> str:
    """The location of the index of a config, for messages."""
    where = settings.qdrant.url or settings.qdrant.path
    return f"{where.rstrip('/')}/{settings.qdrant.collection or settings.name}"


def require_index(store: DefectStore, config: str) -> IndexInfo:
    """Size and metadata of the index. Raises StoreError, with the remedy, if it does not exist."""
    info = store.info()
    if info is None:
        raise StoreError(f"{config}: there is no defect index of this name yet; run `cvad index` with the same config")
    return info


def require_fitting(info: IndexInfo, inspector: RegionInspector, config: str) -> None:
    """Raise StoreError if an index was made with another bundle or another descriptor."""
    held = info.metadata
    remedy = (
        "vectors of two models cannot be compared. Run `cvad index --rebuild` with this config, or set "
        "qdrant.collection to an index of this bundle"
    )
    if held.get("bundle") != inspector.fingerprint:
        theirs, ours = str(held.get("bundle"))[:12], inspector.fingerprint[:12]
        raise StoreError(f"{config}: was indexed through bundle {theirs}, the config's bundle is {ours}; {remedy}")
    if held.get("descriptor") != DESCRIPTOR_VERSION or info.dimension != inspector.describer.dimension:
        raise StoreError(
            f"{config}: holds descriptors of version {held.get('descriptor')} with {info.dimension} values, this cvad "
            f"makes version {DESCRIPTOR_VERSION} with {inspector.describer.dimension}; {remedy}"
        )

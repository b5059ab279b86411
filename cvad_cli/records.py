"""Frozen records that the layers exchange. They check their values and use no library but NumPy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from uuid import UUID

import numpy as np

GOOD: Final = "good"
"""The defect type of a part without a defect, as MVTec AD names its folder."""

UNKNOWN: Final = "unknown"
"""The answer for a region that is like no labelled defect. No type may have this name."""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a data set: what is known before it is read."""

    path: Path
    key: str
    """Path relative to the data set's root, with forward slashes: what reports, tables and indexes store."""
    defect_type: str
    """`GOOD`, or the name of the defect type from folder or label file."""
    mask_path: Path | None = None

    @property
    def is_normal(self) -> bool:
        """True for a good part."""
        return self.defect_type == GOOD


@dataclass(frozen=True, slots=True)
class SkippedImage:
    """A file that `data.on_error: skip` skipped, and why."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """The images of a run: good images to learn from, and labelled images to measure on."""

    name: str
    train: tuple[ImageRecord, ...]
    test: tuple[ImageRecord, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The result of a detector for one image. Scores are unbounded distances; larger means more anomalous."""

    score: float
    anomaly_map: np.ndarray
    """float32 (h, w), one value per pixel of the network's input."""

    def __post_init__(self) -> None:
        if self.anomaly_map.ndim != 2:
            raise ValueError(f"anomaly_map: expected (h, w), got shape {self.anomaly_map.shape}")


RateKind = Literal["promised", "expected", "estimated"]
"""How reliable a stated rate is, and the word for it everywhere.

`promised`: a theorem guarantees it for the deployed model. `expected`: the usual rate, but the theorem allows more.
`estimated`: no theorem applies.
"""

_RATE_KINDS: Final[Mapping[str, RateKind]] = {"split_conformal": "promised", "cross_conformal": "expected"}


def rate_kind_of(method: str) -> RateKind:
    """How reliable the rate of this calibration method is."""
    return _RATE_KINDS.get(method, "estimated")


@dataclass(frozen=True, slots=True)
class Calibration:
    """The image-score threshold and its false-alarm rate. A part is rejected if its score is above `threshold`."""

    threshold: float
    pixel_threshold: float
    """Map value above which a pixel is anomalous: the same rule, applied to the map peaks of the same good images."""
    method: Literal["split_conformal", "cross_conformal"]
    requested_rate: float
    """The false-alarm rate of the config."""
    stated_rate: float
    """The false-alarm rate at this threshold, never below 1 / (n + 1); `rate_kind` says how reliable it is."""
    images: int
    """The number n of good images that set the threshold."""
    rate_kind: RateKind
    rate_bound: float | None = None
    """Upper bound on the rate by the method's theorem (cross-conformal: for all folds together), if known."""
    caveat: str | None = None
    """Why the requested rate cannot be reached; None if it can."""

    @classmethod
    def saved(cls, record: Mapping[str, Any]) -> Calibration:
        """Read from a manifest. Older bundles name only the method, which determines the kind of the rate."""
        return cls(**{"rate_kind": rate_kind_of(record["method"]), **record})


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """The result of `cvad train`."""

    name: str
    model: str
    bundle: Path
    images: int
    skipped: tuple[SkippedImage, ...]
    calibration: Calibration
    weights: str
    """The origin of the pretrained weights."""
    seconds: float
    details: Mapping[str, Any]
    """Facts about this kind of model, for example the size of the memory bank and its covering radius."""


Verdict = Literal["passed", "failed", "cannot tell", "skipped"]
"""`cannot tell`: the test set is too small to decide; `skipped`: the figure is missing and the gate is optional."""


@dataclass(frozen=True, slots=True)
class GateResult:
    """The verdict of one gate on one run."""

    name: str
    """Unique within the run: 'image.auroc >= 0.98', 'image.auroc against the baseline'."""
    metric: str
    """Dotted path into metrics.json."""
    bound: str
    """The requirement as text: '>= 0.98', '<= 0.05', 'drop <= 0.01'."""
    value: float | None
    """The figure of this run; None if it could not be measured."""
    passed: bool
    """Whether the build may continue. False for a figure that is missing or not a number."""
    reason: str
    """One sentence: the figures, and why a gate failed, was skipped, or cannot tell."""
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class EvaluationSummary:
    """The result of `cvad evaluate`, and its folder."""

    folder: Path
    metrics: Mapping[str, Any]
    """The content of metrics.json."""
    images: int
    """The number of side-by-side images that were drawn."""
    report: Path | None = None
    """The page for people; None if `evaluation.report` is none."""
    gates: tuple[GateResult, ...] = ()
    """The content of gates.json; empty if there was no gate."""


@dataclass(frozen=True, slots=True)
class FieldSummary:
    """The result of `cvad analyze-rf`, and its folder."""

    folder: Path
    report: Mapping[str, Any]
    """The content of receptive_field.json."""
    agrees: bool
    """Whether theory and measurement give the same field for every network and every measured cell."""


@dataclass(frozen=True, slots=True)
class BenchSummary:
    """The result of `cvad bench`, and its folder."""

    folder: Path
    report: Mapping[str, Any]
    """The content of bench.json."""


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """The result of `cvad demo`."""

    folder: Path
    weights: str
    """The origin of the backbone's weights, as a sentence."""
    metrics: Mapping[str, Mapping[str, Any]]
    """Category -> the content of its metrics.json."""


@dataclass(frozen=True, slots=True)
class DefectPoint:
    """One labelled defect of the index: its vector and its payload."""

    id: str
    """A UUID in canonical form, derived from the labelled region, so that indexing twice changes nothing."""
    vector: np.ndarray
    """float32 (d,), finite. Only its direction counts: a store returns it at unit length."""
    payload: Mapping[str, Any]
    """JSON values with text as keys."""

    def __post_init__(self) -> None:
        try:
            canonical = str(UUID(self.id)) == self.id
        except ValueError:
            canonical = False
        if not canonical:
            raise ValueError(f"id: expected a UUID such as 6f9619ff-8b86-5011-b42d-00c04fc964ff, got {self.id!r}")
        if self.vector.ndim != 1 or self.vector.dtype != np.float32:
            raise ValueError(f"vector: expected float32 (d,), got {self.vector.dtype} {self.vector.shape}")
        if not np.isfinite(self.vector).all() or not self.vector.any():
            raise ValueError("vector: expected finite values that are not all zero: a direction")
        try:
            json.dumps(dict(self.payload), allow_nan=False, ensure_ascii=False).encode("utf-8")
        except (TypeError, ValueError) as error:
            raise ValueError(f"payload: cannot be written as JSON: {error}") from error
        if not all(isinstance(key, str) for key in self.payload):
            raise ValueError("payload: expected text as keys")


@dataclass(frozen=True, slots=True)
class DefectMatch:
    """A labelled defect near the query."""

    id: str
    similarity: float
    """Cosine similarity, -1 to 1; larger is nearer."""
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """Size and metadata of a defect index."""

    dimension: int
    points: int
    metadata: Mapping[str, Any]
    """For example the version of the descriptor and the fingerprint of the bundle."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A labelled region near the one that is classified."""

    defect_type: str
    similarity: float
    """Cosine similarity, -1 to 1."""
    source: str
    """Its image, relative to the data set's root."""
    path: str | None
    """The same below this config's root; None if the name leads outside it."""
    box: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RegionVerdict:
    """One region of a rejected part and its type. Positions are (row, column) in pixels of the original image."""

    defect_type: str
    """A labelled type, or `UNKNOWN`."""
    likeliest: str
    """The likeliest of the labelled types, even if the region is unknown."""
    confidence: float
    """The confidence of `likeliest`, assuming a labelled type."""
    p_value: float
    """How often a region of a labelled type is as unusual as this; unknown if it is at most `classify.unknown_rate`."""
    confidences: Mapping[str, float]
    neighbours: tuple[Neighbour, ...]
    box: tuple[int, int, int, int]
    """(top, left, bottom, right), bottom and right exclusive."""
    contours: tuple[tuple[tuple[float, float], ...], ...]
    area_px: float
    area_mm2: float | None
    peak: float
    mean_score: float
    mass: float


@dataclass(frozen=True, slots=True)
class ImageVerdict:
    """The result of `cvad classify` for one image."""

    image: str
    score: float
    threshold: float
    rejected: bool
    defect_type: str | None
    """The vote of its regions, weighted by their mass; None for a part that passes."""
    confidence: float | None
    regions: tuple[RegionVerdict, ...]

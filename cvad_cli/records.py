"""Frozen values that the rings hand to each other. They check themselves at birth and know no library but NumPy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from uuid import UUID

import numpy as np

GOOD: Final = "good"
"""The defect type of a part without a defect: MVTec AD's own folder name."""

UNKNOWN: Final = "unknown"
"""What a region is called that is like no labelled one. No type may have this name."""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a data set and what is known about it before it is opened."""

    path: Path
    key: str
    """Path relative to the data set's root, with forward slashes: what reports, tables and indexes store."""
    defect_type: str
    """`GOOD`, or the name of the defect's folder or label."""
    mask_path: Path | None = None

    @property
    def is_normal(self) -> bool:
        """True for a good part."""
        return self.defect_type == GOOD


@dataclass(frozen=True, slots=True)
class SkippedImage:
    """A file that `data.on_error: skip` passed over, and why."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """The two halves that a run needs: good images to learn from, labelled ones to be measured on."""

    name: str
    train: tuple[ImageRecord, ...]
    test: tuple[ImageRecord, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a detector says of one image. Scores are unbounded distances, larger means stranger."""

    score: float
    anomaly_map: np.ndarray
    """float32 (h, w), one value a pixel of the network's input."""

    def __post_init__(self) -> None:
        if self.anomaly_map.ndim != 2:
            raise ValueError(f"anomaly_map: expected (h, w), got shape {self.anomaly_map.shape}")


RateKind = Literal["promised", "expected", "estimated"]
"""How far a stated rate can be relied on, and the word for it everywhere.

`promised`: a theorem holds the deployed model's rate to it. `expected`: the usual rate, while the theorem allows more.
`estimated`: no theorem applies.
"""

_RATE_KINDS: Final[Mapping[str, RateKind]] = {"split_conformal": "promised", "cross_conformal": "expected"}


def rate_kind_of(method: str) -> RateKind:
    """What a calibration by this method says of its rate."""
    return _RATE_KINDS.get(method, "estimated")


@dataclass(frozen=True, slots=True)
class Calibration:
    """The image-score threshold and its false-alarm rate. A part is rejected when its score is above `threshold`."""

    threshold: float
    pixel_threshold: float
    """Map value above which a pixel is called anomalous: the same rule on the maps' peaks of the same good images."""
    method: Literal["split_conformal", "cross_conformal"]
    requested_rate: float
    """The false-alarm rate that the config asked for."""
    stated_rate: float
    """The false-alarm rate at this threshold, never under 1 / (n + 1); `rate_kind` says how far it can be relied on."""
    images: int
    """How many good images the threshold was taken from, n."""
    rate_kind: RateKind
    rate_bound: float | None = None
    """What the rate cannot exceed by the method's theorem (cross-conformal: all folds' models together), if known."""
    caveat: str | None = None
    """Why the requested rate is out of reach; None where it is not."""

    @classmethod
    def saved(cls, record: Mapping[str, Any]) -> Calibration:
        """From a manifest. Bundles of before say the method alone: the kind of the rate follows from it."""
        return cls(**{"rate_kind": rate_kind_of(record["method"]), **record})


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """What `cvad train` made."""

    name: str
    model: str
    bundle: Path
    images: int
    skipped: tuple[SkippedImage, ...]
    calibration: Calibration
    weights: str
    """Where the pretrained weights came from."""
    seconds: float
    details: Mapping[str, Any]
    """What is worth knowing of this kind of model: the size of the memory bank and its covering radius, say."""


Verdict = Literal["passed", "failed", "cannot tell", "skipped"]
"""`cannot tell`: the test set is too small to say; `skipped`: the figure is missing and the gate optional."""


@dataclass(frozen=True, slots=True)
class GateResult:
    """What one gate says of one run."""

    name: str
    """Unique within the run: 'image.auroc >= 0.98', 'image.auroc against the baseline'."""
    metric: str
    """Dotted path into metrics.json."""
    bound: str
    """What was asked for, in words: '>= 0.98', '<= 0.05', 'drop <= 0.01'."""
    value: float | None
    """The figure of this run; None where it could not be measured."""
    passed: bool
    """Whether the build may go on. False for a figure that is missing or not a number."""
    reason: str
    """One sentence: the figures, and why a gate failed, was skipped, or cannot tell."""
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class EvaluationSummary:
    """What `cvad evaluate` measured and where it put it."""

    folder: Path
    metrics: Mapping[str, Any]
    """The content of metrics.json."""
    images: int
    """How many side-by-side images were drawn."""
    report: Path | None = None
    """The page for people; None where `evaluation.report` is none."""
    gates: tuple[GateResult, ...] = ()
    """The content of gates.json; empty where no gate was asked for."""


@dataclass(frozen=True, slots=True)
class FieldSummary:
    """What `cvad analyze-rf` found and where it put it."""

    folder: Path
    report: Mapping[str, Any]
    """The content of receptive_field.json."""
    agrees: bool
    """Whether theory and measurement give the same field, for every network and every cell that was probed."""


@dataclass(frozen=True, slots=True)
class BenchSummary:
    """What `cvad bench` measured and where it put it."""

    folder: Path
    report: Mapping[str, Any]
    """The content of bench.json."""


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """What `cvad demo` made."""

    folder: Path
    weights: str
    """Where the backbone's weights came from, in plain words."""
    metrics: Mapping[str, Mapping[str, Any]]
    """Category -> the content of its metrics.json."""


@dataclass(frozen=True, slots=True)
class DefectPoint:
    """One labelled defect of the index: where it lies among the others and what is known of it."""

    id: str
    """A UUID in its canonical spelling, made from what the point is about: indexing twice changes nothing."""
    vector: np.ndarray
    """float32 (d,), finite. Only its direction counts: a store gives it back at unit length."""
    payload: Mapping[str, Any]
    """What JSON can hold, with text as keys."""

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
    """A labelled defect near the one that was asked about."""

    id: str
    similarity: float
    """Cosine, from -1 to 1; larger is nearer."""
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What a defect index says of itself."""

    dimension: int
    points: int
    metadata: Mapping[str, Any]
    """What its maker wrote down: the descriptor's version and the bundle's fingerprint, say."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A labelled region near the one that is being named."""

    defect_type: str
    similarity: float
    """Cosine, from -1 to 1."""
    source: str
    """Its image, relative to the data set's root."""
    path: str | None
    """The same below this config's root; None where the name leads out of it."""
    box: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RegionVerdict:
    """One region of a rejected part and its name. Places are (row, column) in pixels of the original image."""

    defect_type: str
    """A labelled type, or `UNKNOWN`."""
    likeliest: str
    """The likeliest of the labelled types, also where it is unknown."""
    confidence: float
    """Of `likeliest`, were the region of a labelled type."""
    p_value: float
    """How often a region of a labelled type is as strange as this: unknown at `classify.unknown_rate` or less."""
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
    """What `cvad classify` says of one image."""

    image: str
    score: float
    threshold: float
    rejected: bool
    defect_type: str | None
    """The vote of its regions, each weighing its mass; None for a part that passes."""
    confidence: float | None
    regions: tuple[RegionVerdict, ...]

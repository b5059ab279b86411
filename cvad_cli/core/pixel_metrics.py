"""How well defective pixels are located, measured one map at a time.

anomalib's AUPRO and torchmetrics' exact curves keep every map until the end: 4 bytes per pixel for the scores and up to
8 for the labels, 1.2 GB for a hundred maps of 1024 x 1024. Here each map is added to three histograms and then freed;
the size of the histograms depends only on the range of the scores. They give the same figures: a bin is a set of tied
scores, and scikit-learn's curves take the counts as sample weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

AUPRO_FPR_LIMIT: Final = 0.3  # Bergmann et al.: The MVTec Anomaly Detection Dataset, IJCV 2021
_DROPPED_BITS: Final = 10  # of 23 mantissa bits: scores that differ by less than 2^-13 (0.012 %) count as tied
_NORMAL, _DEFECT, _REGION = range(3)


@dataclass(frozen=True, slots=True)
class PixelMetrics:
    """Localisation quality over all thresholds, 0..1."""

    auroc: float | None
    average_precision: float | None
    aupro: float | None
    """Mean overlap with the defect regions, averaged over false-positive rates up to the limit."""
    aupro_fpr_limit: float


@dataclass(frozen=True, slots=True)
class PixelReport:
    """All figures from anomaly maps, and why others are missing."""

    pixel: PixelMetrics
    unavailable: Mapping[str, str]
    """Dotted name of a value that is None, or `pixel.masks` if some images were left out -> the reason."""

    def as_dict(self) -> dict[str, Any]:
        """The parts `pixel` and `unavailable` of metrics.json."""
        return {"pixel": asdict(self.pixel), "unavailable": dict(self.unavailable)}


class PixelScores:
    """Weighted score histograms of normal pixels, defective pixels and defective regions.

    The bits of non-negative float32 numbers, read as integers, sort like the numbers. Dropping the lower bits of the
    mantissa gives bins of constant relative width, so that the range need not be known beforehand; a negative score
    gets the negated key of its magnitude. The error of AUROC is 1e-6 if the range of the scores is as large as the
    scores, and 3e-4 if all scores are within 1000 +- 0.5.
    """

    def __init__(self) -> None:
        self.images = 0
        """Maps added."""
        self.images_without_mask = 0
        """Defective images that could not be added."""
        self._first_key = 0
        self._counts = np.zeros((3, 0))

    @property
    def nbytes(self) -> int:
        """Bytes held: three times 64 kB for each power of two that the scores span, for any number of maps."""
        return self._counts.nbytes

    def add(self, anomaly_map: Float32[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"] | None) -> None:
        """Count the pixels of one image.

        Args:
            anomaly_map: finite scores, larger = more anomalous.
            mask: True where the part is defective; all False for a good part. None for a defective part whose mask is
                not known: it is left out, and the report gives the number of such parts.

        Raises:
            ValueError: shapes differ, or a score is not finite; the message names the map and the pixel.
        """
        if mask is None:
            self.images_without_mask += 1
            return
        keys, marked = _ordered_keys(self._checked(anomaly_map, mask)), np.asarray(mask, dtype=np.bool_)
        self._cover(int(keys.min()), int(keys.max()))
        if marked.any():
            self._count(_DEFECT, keys[marked])
            self._count(_REGION, keys[marked], weights=_region_weights(marked))
        self._count(_NORMAL, keys[~marked])
        self.images += 1

    def measure(self, *, fpr_limit: float = AUPRO_FPR_LIMIT) -> PixelReport:
        """AUROC, average precision and AUPRO of all pixels added so far.

        The PRO curve is the ROC curve in which a defective pixel weighs 1 / (area of its region), so that each
        region weighs the same (Bergmann et al. 2021). AUPRO is its area from 0 to `fpr_limit`, with linear
        interpolation there, divided by `fpr_limit`. Regions are 8-connected, as in anomalib.

        Raises:
            ValueError: `fpr_limit` is not in (0, 1].
        """
        from sklearn.metrics import average_precision_score, roc_auc_score

        if not 0 < fpr_limit <= 1:
            raise ValueError(f"fpr_limit: expected a number above 0 and up to 1, got {fpr_limit!r}")
        reason = self._reason()
        if reason:
            missing = {f"pixel.{field}": reason for field in ("auroc", "average_precision", "aupro")}
            return PixelReport(PixelMetrics(None, None, None, fpr_limit), missing)
        labels, keys, weights = self._samples(_DEFECT)
        metrics = PixelMetrics(
            auroc=float(roc_auc_score(labels, keys, sample_weight=weights)),
            average_precision=float(average_precision_score(labels, keys, sample_weight=weights)),
            aupro=_area_below(fpr_limit, *self._samples(_REGION)),
            aupro_fpr_limit=fpr_limit,
        )
        left_out = {}
        if self.images_without_mask:
            left_out["pixel.masks"] = (
                f"left out of the pixel metrics: defective images without a mask ({self.images_without_mask})"
            )
        return PixelReport(metrics, left_out)

    def region_curve(
        self, *, fpr_limit: float = AUPRO_FPR_LIMIT
    ) -> tuple[Float64[np.ndarray, " p"], Float64[np.ndarray, " p"]] | None:
        """The curve whose area is AUPRO: false-positive rates from 0 to `fpr_limit`, and mean overlaps.

        None if `measure` gives no AUPRO.
        """
        return None if self._reason() else _curve_below(fpr_limit, *self._samples(_REGION))

    def _reason(self) -> str | None:
        """Why nothing can be measured; None if it can."""
        if not self.images:
            return "no image has a mask" if self.images_without_mask else "there are no anomaly maps"
        if not self._counts[_DEFECT].any():
            if self.images_without_mask:
                return f"no defective image has a mask ({self.images_without_mask} without)"
            return "no mask marks a defective pixel"
        return None if self._counts[_NORMAL].any() else "the masks mark every pixel as defective"

    def _cover(self, lowest: int, highest: int) -> None:
        """Widen the histograms so that they cover the keys from `lowest` to `highest`."""
        held = self._counts.shape[1]
        if not held:
            self._first_key = lowest
        before = max(0, self._first_key - lowest)
        after = max(0, highest + 1 - self._first_key - held)
        if before or after:
            self._counts = np.pad(self._counts, ((0, 0), (before, after)))
            self._first_key -= before

    def _count(self, row: int, keys: Int32[np.ndarray, " p"], weights: Float64[np.ndarray, " p"] | None = None) -> None:
        if not keys.size:
            return
        lowest = int(keys.min())
        counts = np.bincount(keys.ravel() - lowest, weights)
        start = lowest - self._first_key
        self._counts[row, start : start + len(counts)] += counts

    def _samples(
        self, positives: int
    ) -> tuple[Bool[np.ndarray, " bins"], Int64[np.ndarray, " bins"], Float64[np.ndarray, " bins"]]:
        """Labels, keys and weights of the bins in use, for scikit-learn: normal pixels against row `positives`."""
        rows = [np.flatnonzero(self._counts[row]) for row in (_NORMAL, positives)]
        labels = np.repeat([False, True], [len(row) for row in rows])
        keys = np.concatenate(rows)
        return labels, keys, self._counts[np.where(labels, positives, _NORMAL), keys]

    def _checked(
        self, anomaly_map: Float32[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]
    ) -> Float32[np.ndarray, "h w"]:
        scores = np.ascontiguousarray(anomaly_map, dtype=np.float32)
        if scores.ndim != 2 or scores.size == 0 or scores.shape != np.shape(mask):
            raise ValueError(
                f"map {self.images}: expected a map and a mask of one shape (h, w), "
                f"got {np.shape(anomaly_map)} and {np.shape(mask)}"
            )
        if not np.isfinite(scores).all():
            row, column = np.argwhere(~np.isfinite(scores))[0]
            raise ValueError(
                f"map {self.images}: expected finite scores, got {scores[row, column]} in row {row}, column {column}"
            )
        return scores


def _ordered_keys(scores: Float32[np.ndarray, "h w"]) -> Int32[np.ndarray, "h w"]:
    """Integers in the order of the scores; the kept mantissa bits allow 2^13 of them per octave."""
    magnitude = (scores.view(np.int32) & np.int32(0x7FFFFFFF)) >> np.int32(_DROPPED_BITS)
    return np.where(np.signbit(scores), -magnitude, magnitude)


def _region_weights(mask: Bool[np.ndarray, "h w"]) -> Float64[np.ndarray, " p"]:
    """1 / (area of the 8-connected region) for each of the p True pixels of the mask, row by row."""
    from scipy.ndimage import label

    regions, _ = label(mask, structure=np.ones((3, 3), dtype=np.int8))
    own = regions[mask]
    return np.asarray(1.0 / np.bincount(own)[own])


def _area_below(
    limit: float,
    labels: Bool[np.ndarray, " bins"],
    keys: Int64[np.ndarray, " bins"],
    weights: Float64[np.ndarray, " bins"],
) -> float:
    """Area of the weighted ROC curve from 0 to `limit`, divided by `limit`."""
    from sklearn.metrics import auc

    return float(auc(*_curve_below(limit, labels, keys, weights)) / limit)


def _curve_below(
    limit: float,
    labels: Bool[np.ndarray, " bins"],
    keys: Int64[np.ndarray, " bins"],
    weights: Float64[np.ndarray, " bins"],
) -> tuple[Float64[np.ndarray, " p"], Float64[np.ndarray, " p"]]:
    """The weighted ROC curve from 0 to `limit`, interpolated there."""
    from sklearn.metrics import roc_curve

    fpr, tpr, _ = roc_curve(labels, keys, sample_weight=weights)
    inside = int(np.searchsorted(fpr, limit, side="right"))
    return np.append(fpr[:inside], limit), np.append(tpr[:inside], np.interp(limit, fpr, tpr))

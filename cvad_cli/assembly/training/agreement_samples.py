"""Agreement samples: a few images in each bundle, with the exact scores of the trained model.

Every engine that serves the bundle judges them first and is compared with these scores (the rule: core/agreement.py).
They are good images at the network's size that the model was not fitted on, drawn by the seed, and copies of them with
a foreign patch. They include no test images and no labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from cvad_cli.adapters.prefetch import batched
from cvad_cli.adapters.storage.bundles import Bundle
from cvad_cli.adapters.storage.tensor_files import read_arrays, read_header, write_tensors
from cvad_cli.assembly.data.images import read_image, read_part
from cvad_cli.assembly.training.calibration import scores_and_peaks
from cvad_cli.assembly.training.fitted_model import FittedModel
from cvad_cli.config.old_names import OLD_FILE_ROLES, OLD_TENSOR_NAMES
from cvad_cli.config.schema import DataConfig, RunConfig
from cvad_cli.core.agreement import Agreement, agreement, cropped, spoilt
from cvad_cli.errors import BundleError
from cvad_cli.ports import Reporter
from cvad_cli.records import ImageRecord, Prediction

ROLE: Final = "agreement_samples"
"""The role of the bundle's file that holds them."""

GOOD_SAMPLES: Final = 10
MAX_BYTES: Final = 16 << 20
"""Limit for all images together. Bundles with large inputs hold fewer samples, but at least two good ones."""

Judge = Callable[[Sequence[np.ndarray]], list[Prediction]]


@dataclass(frozen=True, slots=True)
class AgreementSamples:
    """Images and the trained model's scores for them in float32."""

    images: np.ndarray
    """uint8 RGB (n, h, w, 3)."""
    good: np.ndarray
    """bool (n,)."""
    scores: np.ndarray
    """float32 (n,)."""
    peaks: np.ndarray
    """float32 (n,): the maps' largest values."""
    good_std: float
    """Standard deviation of the held-out good image scores."""
    peak_std: float
    """Standard deviation of the held-out good images' map peaks."""
    keys: tuple[str, ...]
    """The good images' names in the data set."""
    unseen: tuple[str, ...] = ()
    """Names of all good images that the model was not fitted on. Further images are drawn from them first."""

    def test(self, judge: Judge) -> Agreement:
        """How well another engine agrees with the trained model: the worse of image scores and map peaks."""
        found = [prediction for batch in batched(self.images, 4) for prediction in judge(batch)]
        scores, peaks = scores_and_peaks(found)
        both = (
            agreement(self.scores, scores, self.good, good_std=self.good_std),
            agreement(self.peaks, peaks, self.good, good_std=self.peak_std),
        )
        return min(both, key=lambda each: (each.holds, -abs(each.shift) - each.noise))

    def with_good(self, images: Sequence[np.ndarray], found: Sequence[Prediction]) -> AgreementSamples:
        """These samples and more good images, uint8 (h, w, 3), with the trained model's predictions in float32."""
        scores, peaks = scores_and_peaks(found)
        return replace(
            self,
            images=np.concatenate([self.images, np.stack(images)]),
            good=np.concatenate([self.good, np.ones(len(images), bool)]),
            scores=np.concatenate([self.scores, scores.astype(np.float32)]),
            peaks=np.concatenate([self.peaks, peaks.astype(np.float32)]),
        )

    def judged(self, found: Sequence[Prediction]) -> AgreementSamples:
        """The same images with new predictions of the trained model in float32."""
        scores, peaks = scores_and_peaks(found)
        return replace(self, scores=scores.astype(np.float32), peaks=peaks.astype(np.float32))

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        tensors = {"images": self.images, "good": self.good, "scores": self.scores, "peaks": self.peaks}
        header = {"spread": self.good_std, "peak_spread": self.peak_std, "keys": self.keys, "unseen": self.unseen}
        write_tensors(path, tensors, {ROLE: json.dumps(header)})

    @property
    def writers(self) -> dict[str, tuple[str, Callable[[Path], None]]]:
        """The entry for `write_bundle`."""
        return {ROLE: (".safetensors", self.save)}


def make_agreement_samples(
    settings: RunConfig, fitted: FittedModel, good: Sequence[ImageRecord], reporter: Reporter
) -> AgreementSamples:
    """Draw good images that the model was not fitted on, spoil a copy of each, and judge them with the fitted model."""
    if fitted.judge is None:
        raise ValueError("this kind of model is served by one engine only")
    rng = np.random.default_rng([settings.seed, 8])
    room = MAX_BYTES // (2 * 3 * settings.data.image_size**2)
    count = min(len(good), max(2, min(GOOD_SAMPLES, room)))
    chosen = drawn(good, fitted.unseen, count, rng=rng)
    images, unspoilt = with_spoilt([each.read(settings.data, rng=rng) for each in chosen], rng=rng)
    found = []
    with reporter.stage("Judging the agreement samples", len(images)) as advance:
        for batch in batched(images, 4):
            found += fitted.judge(batch)
            advance(len(batch))
    scores, peaks = (np.concatenate(values) for values in zip(*fitted.held_out, strict=True))
    own_scores, own_peaks = scores_and_peaks(found)
    return AgreementSamples(
        images=images,
        good=unspoilt,
        scores=own_scores.astype(np.float32),
        peaks=own_peaks.astype(np.float32),
        good_std=_standard_deviation(scores),
        peak_std=_standard_deviation(peaks),
        keys=tuple(each.record.key for each in chosen),
        unseen=fitted.unseen,
    )


@dataclass(frozen=True, slots=True)
class Drawn:
    """A good image that was drawn."""

    record: ImageRecord
    fitted: bool
    """The model was fitted on it and scores it too low, so a crop of it is used instead."""

    def read(self, data: DataConfig, *, rng: np.random.Generator) -> np.ndarray:
        """The image, or a random crop of one that the model was fitted on: uint8 RGB (s, s, 3)."""
        if not self.fitted:
            return read_image(self.record.path, data)
        return read_part(self.record.path, data, partial(cropped, rng=rng))


def drawn(good: Sequence[ImageRecord], unseen: Collection[str], count: int, *, rng: np.random.Generator) -> list[Drawn]:
    """At most `count` of the good images in random order; those that the model was not fitted on come first.

    The order of `good` does not matter.
    """
    records = sorted(good, key=lambda record: record.key)
    held_out = set(unseen)
    shuffled = [records[index] for index in rng.permutation(len(records))]
    order = sorted(shuffled, key=lambda record: record.key not in held_out)  # stable: each part stays shuffled
    return [Drawn(record, fitted=record.key not in held_out) for record in order[:count]]


def with_spoilt(good: Sequence[np.ndarray], *, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Good images, uint8 (h, w, 3), then copies with a foreign patch: (2n, h, w, 3), and which ones are good (2n,)."""
    images = np.stack([*good, *(spoilt(image, rng=rng) for image in good)])
    return images, np.arange(len(images)) < len(good)


def read_agreement_samples(bundle: Bundle) -> AgreementSamples | None:
    """The agreement samples of a bundle; None where it holds none. Raises BundleError where they cannot be read."""
    if ROLE not in bundle.roles:
        return None
    path = bundle.file(ROLE)
    try:
        header = json.loads({OLD_FILE_ROLES.get(name, name): text for name, text in read_header(path).items()}[ROLE])
        tensors = {OLD_TENSOR_NAMES.get(name, name): each for name, each in read_arrays(path).items()}
        return AgreementSamples(
            **{name: tensors[name] for name in ("images", "good", "scores", "peaks")},
            good_std=float(header["spread"]),
            peak_std=float(header["peak_spread"]),
            keys=tuple(header["keys"]),
            unseen=tuple(header.get("unseen", ())),  # an earlier cvad did not write it
        )
    except (KeyError, ValueError, TypeError) as error:
        raise BundleError(
            f"{path}: holds no agreement samples that this cvad can read ({error}); run `cvad train` again"
        ) from error


def _standard_deviation(scores: np.ndarray) -> float:
    """The standard deviation, above 0 even where all good images have the same score."""
    return float(max(np.std(scores, dtype=np.float64), 1e-6 * np.abs(scores).max(), 1e-12))

"""Good training images that int8 on a CPU needs: for the ranges of activations, for the rise of map peaks by rounding,
and for verifying agreement on more images, since that rise differs from image to image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from cvad_cli.assembly.data.images import open_dataset, read_image
from cvad_cli.assembly.training.agreement_samples import AgreementSamples, drawn
from cvad_cli.config.schema import DataConfig
from cvad_cli.errors import DataError
from cvad_cli.records import Prediction

RANGE_IMAGES: Final = 128
"""At most this many images set the ranges."""

JUDGING_IMAGES: Final = 64
"""At most this many images join the agreement samples. They measure a shift to 1/50 of a standard deviation of good
scores, where ten samples measure it to 1/15."""

PEAK_IMAGES: Final = 64
"""At most this many images measure how much rounding raises map peaks."""


@dataclass(frozen=True, slots=True)
class Int8Images:
    """Good training images except the agreement samples, in random order: uint8 (h, w, 3) at the network's size.

    The three parts share no image. Only where there are fewer than six images, `ranges` and `peaks` are the same ones.
    """

    ranges: list[np.ndarray]
    peaks: list[np.ndarray]
    """`peaks` and `judging` are images that the model was not fitted on, or crops of others where there are too few."""
    judging: list[np.ndarray]

    @classmethod
    def of(cls, data: DataConfig, samples: AgreementSamples, *, seed: int) -> Int8Images:
        """Two thirds of the images set the ranges. Raises DataError where all images are agreement samples."""
        known = set(samples.keys)
        records = [record for record in open_dataset(data).train if record.key not in known]
        if not records:
            raise DataError(
                f"{data.root}: int8 takes its ranges from good images that are not among the bundle's {len(known)} "
                "agreement samples, and there are none; add good images, or set runtime.precision to auto"
            )
        rng = np.random.default_rng([seed, 9])
        order = drawn(records, samples.unseen, len(records), rng=rng)
        shown = order[: min(len(order) // 3, JUDGING_IMAGES + PEAK_IMAGES)]
        ranges = order[len(shown) :][:RANGE_IMAGES]
        images = [each.read(data, rng=rng) for each in shown]
        whole = [read_image(each.record.path, data) for each in ranges]
        return cls(whole, images[1::2] or whole[:PEAK_IMAGES], images[0::2])

    def joined(
        self, samples: AgreementSamples, judge: Callable[[Sequence[np.ndarray]], list[Prediction]]
    ) -> AgreementSamples:
        """The agreement samples and the `judging` images, with the scores of `judge`, the network in float32."""
        return samples.with_good(self.judging, judge(self.judging)) if self.judging else samples

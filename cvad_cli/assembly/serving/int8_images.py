"""int8 for a bundle that is served on a CPU: good training images for the ranges, for what rounding adds to an image's
peak, and, since that differs from image to image, for more of a proof than the probes alone give.
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
"""At most this many give the ranges."""

JUDGING_IMAGES: Final = 64
"""At most this many join the probes: they know a shift to a fiftieth of a spread, ten probes to a fifteenth."""

PEAK_IMAGES: Final = 64
"""At most this many show what rounding adds to an image's peak."""


@dataclass(frozen=True, slots=True)
class Int8Images:
    """Good training images, the probes left out, in random order: uint8 (h, w, 3) at the network's size.

    None is in two of the three parts, but where there are fewer than six: then those for the ranges show the peaks too.
    """

    ranges: list[np.ndarray]
    peaks: list[np.ndarray]
    """These and `judging` are images that the model was not fitted on, or crops of others where there are too few."""
    judging: list[np.ndarray]

    @classmethod
    def of(cls, data: DataConfig, samples: AgreementSamples, *, seed: int) -> Int8Images:
        """Two in three give the ranges. Raises DataError where there are no images beside the probes."""
        known = set(samples.keys)
        records = [record for record in open_dataset(data).train if record.key not in known]
        if not records:
            raise DataError(
                f"{data.root}: int8 takes its ranges from good images that are not among the bundle's {len(known)} "
                "probes, and there are none; add good images, or set runtime.precision to auto"
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
        """The probes, and the images for judging with what `judge`, the network in float32, says of them."""
        return samples.with_good(self.judging, judge(self.judging)) if self.judging else samples

"""int8 for a bundle that is served on a CPU: good training pictures for the ranges, for what rounding adds to a
picture's peak, and, since that differs from picture to picture, for more of a proof than the probes alone give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from cvad_cli.assembly.pictures import open_dataset, read_picture
from cvad_cli.assembly.probes import Probes
from cvad_cli.config.schema import DataConfig
from cvad_cli.errors import DataError
from cvad_cli.records import Prediction

RANGE_PICTURES: Final = 128
"""At most this many give the ranges."""

JUDGING_PICTURES: Final = 64
"""At most this many join the probes: they know a shift to a fiftieth of a spread, ten probes to a fifteenth."""

PEAK_PICTURES: Final = 64
"""Of those that give the ranges, so many show what rounding adds to a picture's peak."""


@dataclass(frozen=True, slots=True)
class Int8Pictures:
    """Good training pictures, the probes left out: uint8 (h, w, 3) at the network's size."""

    ranges: list[np.ndarray]
    judging: list[np.ndarray]
    """None of them is among `ranges`."""

    @classmethod
    def of(cls, data: DataConfig, probes: Probes) -> Int8Pictures:
        """Two in three give the ranges. Raises DataError where there are no pictures beside the probes."""
        known = set(probes.keys)
        records = [record for record in open_dataset(data).train if record.key not in known]
        if not records:
            raise DataError(
                f"{data.root}: int8 takes its ranges from good pictures that are not among the bundle's {len(known)} "
                "probes, and there are none; add good pictures, or set runtime.precision to auto"
            )
        count = min(-(-2 * len(records) // 3), RANGE_PICTURES)
        pictures = [read_picture(record.path, data) for record in records[: count + JUDGING_PICTURES]]
        return cls(pictures[:count], pictures[count:])

    def joined(self, probes: Probes, judge: Callable[[Sequence[np.ndarray]], list[Prediction]]) -> Probes:
        """The probes, and the pictures for judging with what `judge`, the network in float32, says of them."""
        return probes.with_good(self.judging, judge(self.judging)) if self.judging else probes

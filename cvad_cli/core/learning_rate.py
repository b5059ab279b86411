"""The learning rate of a step, as a share of its peak: it rises, stays constant, and falls in the last part of the run.

Hägele et al., "Scaling laws and compute-optimal training beyond fixed training durations", 2024: as good as a cosine
schedule, and the number of steps can still be changed while the rate is constant.
"""

from __future__ import annotations

import math
from typing import Final

WARM_UP_STEPS: Final = 50
FALL: Final = 0.3  # of all steps


def fall_begins(steps: int) -> int:
    """The first step, of `steps`, whose rate depends on how many steps there are."""
    return steps - round(steps * FALL)


def learning_share(step: int, steps: int) -> float:
    """The share of the peak rate at `step` of `steps`: linear rise, constant, then 1 - sqrt down to almost 0."""
    begins = fall_begins(steps)
    fallen = max(0, step - begins + 1) / (steps - begins + 1)
    return min((step + 1) / WARM_UP_STEPS, 1.0) * (1 - math.sqrt(fallen))

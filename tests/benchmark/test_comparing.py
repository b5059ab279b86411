"""Growth, exactly."""

from __future__ import annotations

import numpy as np
import pytest

from cvad_cli.core.comparing import growth_exponent


def test_growth_is_the_power_of_the_size() -> None:
    sizes = np.array([64.0, 128.0, 512.0])
    assert growth_exponent(sizes, 3e-4 * sizes**1.5) == pytest.approx(1.5)
    assert growth_exponent([7.0], [1.0]) is None

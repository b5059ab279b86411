"""How often a comparison with a baseline fails: by chance, and where the detector is worse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from simulate_gates import CASES, METHODS, failing

from reliability.outcomes import Figure, Outcome

DROP = 0.03
NOMINAL = 0.05
DEVIATIONS = 4.0
"""A share of n trials may exceed its nominal rate by so many standard deviations."""


def check_gates(trials: int, scratch: Path) -> Outcome:  # noqa: ARG001 - needs no folder
    """The shares of failing runs for the limit that cvad takes, with the same seeds as the table of docs/gates.md."""
    figures: dict[str, Figure] = {}
    problems = []
    percentile = METHODS.index("percentile")
    highest = NOMINAL + DEVIATIONS * (NOMINAL * (1 - NOMINAL) / trials) ** 0.5
    for number, (auroc, correlation) in enumerate(CASES):
        rng = np.random.default_rng([2026, number])
        unchanged = failing((auroc, auroc), correlation, trials, rng)[percentile]
        worse = failing((auroc, auroc - DROP), correlation, trials, rng)[percentile]
        figures[f"AUROC {auroc:g}, r {correlation:g}"] = f"{unchanged:.1%} unchanged, {worse:.1%} worse"
        if unchanged > highest:
            problems.append(f"AUROC {auroc:g}, r {correlation:g}: {unchanged:.1%} of unchanged runs fail")
    return Outcome(figures, problems)

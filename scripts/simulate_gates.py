#!/usr/bin/env python
"""How often a comparison with a baseline fails: by chance, and where the detector is truly worse.

    python scripts/simulate_gates.py [--trials 400] [--drop 0.03]

Two detectors score the same images with normal scores of a known true AUROC and a known correlation. Compared are four
ways to a one-sided lower limit of the lost AUROC at 95 %; a run fails where the limit is above 0. cvad uses the
percentile limit: cvad_cli/core/metrics/paired.py. The table in docs/gates.md was drawn with the defaults.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from scipy.stats import norm

GOOD, DEFECTIVE = 21, 57  # MVTec AD grid
RESAMPLES = 1000
METHODS = ("percentile", "BCa", "studentised", "DeLong")
CASES = ((0.95, 0.5), (0.95, 0.9), (0.98, 0.5), (0.98, 0.9), (0.995, 0.9))


def lost_pairs(rng: np.random.Generator, aurocs: tuple[float, float], correlation: float) -> np.ndarray:
    """(defective, good): 1 where only the first detector ranks the pair rightly, -1 where only the second does."""
    common, own = rng.normal(size=GOOD + DEFECTIVE), rng.normal(size=(2, GOOD + DEFECTIVE))
    scores = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own
    scores[:, GOOD:] += math.sqrt(2) * np.asarray(norm.ppf(aurocs))[:, None]
    wins = scores[:, GOOD:, None] > scores[:, None, :GOOD]
    lost: np.ndarray = wins[0].astype(float) - wins[1]
    return lost


def variance(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Of the mean of `values`, each drawn `weights` times; both (resamples, n)."""
    n = values.shape[1]
    mean = (weights * values).sum(axis=1) / n
    found: np.ndarray = ((weights * values**2).sum(axis=1) / n - mean**2) / (n - 1)
    return found


def lower_limits(lost: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """95 % one-sided lower limits of the mean of `lost`, rows and columns being resampled."""
    mean, rows, columns = lost.mean(), lost.mean(axis=1), lost.mean(axis=0)
    error = math.sqrt(rows.var(ddof=1) / DEFECTIVE + columns.var(ddof=1) / GOOD)
    drawn_rows = rng.multinomial(DEFECTIVE, np.full(DEFECTIVE, 1 / DEFECTIVE), size=RESAMPLES)
    drawn_columns = rng.multinomial(GOOD, np.full(GOOD, 1 / GOOD), size=RESAMPLES)
    of_columns, of_rows = drawn_rows @ lost / DEFECTIVE, drawn_columns @ lost.T / GOOD
    means = (of_columns * drawn_columns).sum(axis=1) / GOOD
    errors = np.sqrt(np.maximum(variance(drawn_rows, of_rows) + variance(drawn_columns, of_columns), 1e-12))
    influence = np.concatenate([(rows - mean) / DEFECTIVE, (columns - mean) / GOOD])
    squares = (influence**2).sum() ** 1.5
    acceleration = (influence**3).sum() / (6 * squares) if squares else 0.0
    bias = norm.ppf(np.clip(np.mean(means < mean) + np.mean(means == mean) / 2, 1e-3, 1 - 1e-3))
    shifted = bias + norm.ppf(0.05)
    return {
        "percentile": np.quantile(means, 0.05),
        "BCa": np.quantile(means, norm.cdf(bias + shifted / (1 - acceleration * shifted))),
        "studentised": mean - np.quantile((means - mean) / errors, 0.95) * error,
        "DeLong": mean - norm.ppf(0.95) * error,
    }


def failing(aurocs: tuple[float, float], correlation: float, trials: int, rng: np.random.Generator) -> list[float]:
    """Share of the trials in which each method's limit is above 0."""
    found = [lower_limits(lost_pairs(rng, aurocs, correlation), rng) for _ in range(trials)]
    return [float(np.mean([limits[method] > 1e-12 for limits in found])) for method in METHODS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--drop", type=float, default=0.03)
    options = parser.parse_args()
    heads = [f"{title}, {method}" for title in ("unchanged", f"{options.drop:g} worse") for method in METHODS]
    print(f"| AUROC | r | {' | '.join(heads)} |")
    print(f"| --- | --- |{' ---: |' * len(heads)}")
    for number, (auroc, correlation) in enumerate(CASES):
        rng = np.random.default_rng([2026, number])
        unchanged = failing((auroc, auroc), correlation, options.trials, rng)
        worse = failing((auroc, auroc - options.drop), correlation, options.trials, rng)
        print(
            f"| {auroc:g} | {correlation:g} | {' | '.join(f'{share:.1%}' for share in [*unchanged, *worse])} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

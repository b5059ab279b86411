"""Labelled regions for tests of the defect index."""

from __future__ import annotations

import uuid

import numpy as np

from cvad_cli.records import DefectPoint

DIMENSION = 8
METADATA = {"bundle": "3f1c", "descriptor": {"version": 2, "mean": [0.5, -1.25]}, "note": "größer \u2028 «x»"}


def point(number: int, **payload: object) -> DefectPoint:
    vector = np.random.default_rng(number).standard_normal(DIMENSION).astype(np.float32)
    standard = {"defect_type": ("cut", "hole", "thread")[number % 3], "category": "grid", "source": f"{number}.png"}
    return DefectPoint(str(uuid.uuid5(uuid.NAMESPACE_URL, str(number))), vector, {**standard, **payload})


def points(count: int) -> list[DefectPoint]:
    return [point(number) for number in range(count)]

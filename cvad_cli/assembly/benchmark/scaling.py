"""Measures how time and memory grow with image size, memory bank and number of images."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from cvad_cli.adapters.machine.subprocess_call import in_fresh_process
from cvad_cli.adapters.storage.bundles import Bundle
from cvad_cli.assembly.benchmark.bundle_variants import write_variant
from cvad_cli.assembly.benchmark.measurement import BenchmarkJob, measure, memory_over
from cvad_cli.assembly.serving.open_bundle import open_bundle, open_detector
from cvad_cli.config.schema import RunConfig
from cvad_cli.ports import Reporter

IMAGE_SIZES: Final = {"patchcore": (128, 256, 512), "efficient_ad": (256, 384, 512)}
"""EfficientAD's autoencoder needs 256 pixels or more."""
BANK_FACTORS: Final = (1 / 16, 1 / 4, 1, 4)
IMAGE_COUNTS: Final = (1, 4, 16)
"""Numbers of images, in multiples of the shortest run."""


def grow(job: BenchmarkJob, *, reporter: Reporter) -> dict[str, list[dict[str, Any]]]:
    """Axis -> one row per size: `value`, `ms_per_image` (end to end, in batches) and `memory_mb`; JSON-ready.

    Each image size or bank size is a separate bundle in a temporary folder (assembly/benchmark/bundle_variants.py). It
    is opened once to fill its serving cache, then measured in a new process. These rows also have `precision`: at
    another size than that of its training, a network may fail the verification in bf16.
    """
    bundle = open_bundle(job.settings)
    kind = bundle.manifest["model"]["kind"]
    sizes = IMAGE_SIZES.get(kind, ())
    rows = _bank_sizes(bundle)
    found: dict[str, list[dict[str, Any]]] = {}
    with reporter.stage("Measuring growth", len(sizes) + len(rows) + 1) as advance:
        for axis, values in (("image_size", sizes), ("bank_rows", rows)):
            if values:
                found[axis] = [_at(job, bundle, axis, value, advance) for value in values]
        counts = [len(job.records) * factor for factor in IMAGE_COUNTS]
        found["images"] = [
            {
                "value": row["value"],
                "ms_per_image": row["seconds"] * 1e3 / row["value"],
                "memory_mb": row["memory"] / 1e6,
            }
            for row in in_fresh_process(memory_over, job, counts)
        ]
        advance(1)
    return found


def _at(job: BenchmarkJob, bundle: Bundle, axis: str, value: int, advance: Callable[[int], None]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="cvad-bench-") as scratch:
        settings = in_fresh_process(_prepared, job, bundle, Path(scratch), axis, value)
        changed = dataclasses.replace(job, settings=settings)
        measured = in_fresh_process(measure, changed.started_now())
    advance(1)
    return {
        "value": value,
        "ms_per_image": 1e3 / measured.images_per_s,
        "memory_mb": measured.peak_memory / 1e6,
        "precision": None if measured.serving is None else measured.serving["precision"],
    }


def _prepared(job: BenchmarkJob, bundle: Bundle, root: Path, axis: str, value: int) -> RunConfig:
    """Settings of a variant that was opened once: conversion and verification are cached, and not measured."""
    settings = write_variant(job.settings, bundle, root, axis, value)
    open_detector(settings, job.device)
    return settings


def _bank_sizes(bundle: Bundle) -> Sequence[int]:
    if bundle.manifest["model"]["kind"] != "patchcore":
        return ()
    own: list[Any] = bundle.manifest["training"]["memory_bank"]
    return [max(1, round(own[0] * factor)) for factor in BANK_FACTORS]

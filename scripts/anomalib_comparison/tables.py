"""The comparison as tables: the terminal shows them, and bench.md holds them as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from cvad_cli.assembly.benchmark.tables import TextTable, three_digits

TARGET_TITLES: Final = {
    "cvad": "cvad",
    "cvad_exact": "cvad, exact float32",
    "torch_inferencer": "anomalib TorchInferencer",
    "engine": "anomalib Engine.predict",
    "torch_batches": "anomalib's model in batches",
    "openvino": "anomalib OpenVINOInferencer",
}
MODEL_TITLES: Final = {"patchcore": "PatchCore", "efficient_ad": "EfficientAD"}


def target_title(name: str, entry: Mapping[str, Any]) -> str:
    """A target's name in tables and charts; cvad's own precision belongs to it."""
    precision = f" in {entry['serving']['precision']}" if name == "cvad" and entry.get("serving") else ""
    return TARGET_TITLES[name] + precision


def comparison_tables(report: Mapping[str, Any]) -> Iterator[TextTable]:
    """One table per model, then the ratios."""
    for model, found in report["models"].items():
        yield _model_table(MODEL_TITLES[model], found, report)
    rows = [
        (key, f"{value:.2f}", "{:.2f} to {:.2f}".format(*report["ratio_range"][key]))
        for key, value in report["ratio"].items()
        if value is not None
    ]
    yield TextTable("Images per second, cvad over the other", ("ratio", "medians", "repeats"), tuple(rows))


def _model_table(model: str, found: Mapping[str, Any], report: Mapping[str, Any]) -> TextTable:
    headings = (
        *("", "images/s", "p50 ms", "p95 ms", "p99 ms", "peak MB"),
        *("first result s", "image AUROC", "pixel AUROC", "batch"),
    )
    rows = []
    for name, entry in found["targets"].items():
        latency = entry["latency"]
        rows.append(
            (
                target_title(name, entry),
                three_digits(entry["images_per_s"]),
                *(three_digits(latency[key]) for key in ("p50_ms", "p95_ms", "p99_ms")),
                f"{entry['peak_memory_mb']:.0f}",
                f"{entry['to_first_result_s']:.1f}",
                _auroc(entry["image_auroc"]),
                _auroc(entry["pixel_auroc"]),
                str(entry["setting"]["batch_size"]),
            )
        )
    title = f"{model}, {found['images']} images, median of {report['repeats']}"
    return TextTable(title, headings, tuple(rows))


def _auroc(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"

"""What `cvad bench` measured as tables: the command line draws them, and bench.md holds them as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cvad_cli.core.comparing import growth_exponent

WORDS: Final = {
    "cvad": "cvad",
    "cvad_exact": "cvad, exact float32",
    "torch_inferencer": "anomalib TorchInferencer",
    "engine": "anomalib Engine.predict",
    "torch_batches": "anomalib's model in batches",
    "openvino": "anomalib OpenVINOInferencer",
}
MODELS: Final = {"patchcore": "PatchCore", "efficient_ad": "EfficientAD"}
AXES: Final = {"image_size": "image size (px)", "bank_rows": "rows of the memory bank", "images": "images in one run"}


def called(name: str, entry: Mapping[str, Any]) -> str:
    """A contender's name in tables and charts; cvad's own precision belongs to it."""
    return WORDS[name] + (f" in {entry['serving']['precision']}" if name == "cvad" and entry.get("serving") else "")


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table whose cells are text; the first column is a name, the others are figures."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def as_markdown(self) -> str:
        """The table as GitHub shows it, its title above."""
        ruler = ("---", *("---:" for _ in self.headings[1:]))
        lines = [f"| {' | '.join(row)} |" for row in (self.headings, ruler, *self.rows)]
        return "\n".join([f"### {self.title}", "", *lines, ""])


def as_markdown(report: Mapping[str, Any]) -> str:
    """Every table, below a paragraph that says where and when the figures were taken."""
    return "\n".join([_origin(report), "", *(table.as_markdown() for table in tables_of(report))])


def tables_of(report: Mapping[str, Any]) -> Iterator[TextTable]:
    """Every table of a report of `cvad bench`."""
    if report.get("speed"):
        yield _speed_table(report)
        yield _stage_table(report["speed"])
    for axis, rows in (report.get("scaling") or {}).items():
        yield _scaling_table(axis, rows)
    peers = comparison_in(report)
    if peers is not None:
        yield from peer_tables(peers)


def comparison_in(report: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The comparison with anomalib: the report itself, or a part of it; None where it was not made."""
    return report if "models" in report else report.get("peers")


def peer_tables(report: Mapping[str, Any]) -> Iterator[TextTable]:
    """The comparison: a table a model, then the ratios."""
    for model, found in report["models"].items():
        yield _peer_table(MODELS[model], found, report)
    rows = [
        (key, f"{value:.2f}", "{:.2f} to {:.2f}".format(*report["ratio_range"][key]))
        for key, value in report["ratio"].items()
        if value is not None
    ]
    yield TextTable("Images a second, cvad over the other", ("ratio", "medians", "repeats"), tuple(rows))


def _peer_table(model: str, found: Mapping[str, Any], report: Mapping[str, Any]) -> TextTable:
    headings = (
        "",
        "images/s",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "peak MB",
        "first result s",
        "image AUROC",
        "pixel AUROC",
        "batch",
    )
    rows = []
    for name, entry in found["contenders"].items():
        latency = entry["latency"]
        rows.append(
            (
                called(name, entry),
                _three(entry["images_per_s"]),
                *(_three(latency[key]) for key in ("p50_ms", "p95_ms", "p99_ms")),
                f"{entry['peak_memory_mb']:.0f}",
                f"{entry['to_first_result_s']:.1f}",
                _auroc(entry["image_auroc"]),
                _auroc(entry["pixel_auroc"]),
                str(entry["setting"]["batch_size"]),
            )
        )
    title = f"{model}, {found['images']} images, median of {report['repeats']}"
    return TextTable(title, headings, tuple(rows))


def _speed_table(report: Mapping[str, Any]) -> TextTable:
    speed = report["speed"]
    latency = speed["latency"]
    serving = speed["serving"]
    rows = (
        ("served by", f"{serving['engine']} on {serving['device']}, {serving['precision']}"),
        ("images a second", _three(speed["images_per_s"])),
        *((f"single image, {name}", f"{_three(latency[f'{name}_ms'])} ms") for name in ("p50", "p95", "p99")),
        ("from nothing to the first result", f"{speed['to_first_result_s']:.2f} s"),
        ("of that, imports and opening", f"{speed['open_s']:.2f} s"),
        ("peak memory", f"{speed['peak_memory_mb']:.0f} MB"),
    )
    title = f"{report['name']}: {report['model']}, {report['images']} images, median of {report['repeats']}"
    return TextTable(title, ("", ""), rows)


def _stage_table(speed: Mapping[str, Any]) -> TextTable:
    headings = ("stage of a single image", "mean ms", "share", "p50 ms", "p95 ms", "p99 ms")
    stages = speed["stages"]
    whole = stages["whole"]["mean_ms"]
    rows = tuple(
        (
            name,
            _three(row["mean_ms"]),
            f"{row['mean_ms'] / whole:.0%}",
            *(_three(row[key]) for key in ("p50_ms", "p95_ms", "p99_ms")),
        )
        for name, row in stages.items()
    )
    return TextTable("Where the time of a single image goes", headings, rows)


def _scaling_table(axis: str, rows: Sequence[Mapping[str, Any]]) -> TextTable:
    sizes = [row["value"] for row in rows]
    times, memory = ([row[key] for row in rows] for key in ("ms_per_image", "memory_mb"))
    found = growth_exponent(sizes, times)
    title = f"Growth with {AXES[axis]}" + ("" if found is None else f": time ~ size^{found:.2f}")
    headings: tuple[str, ...] = (AXES[axis], "ms an image", "images/s", "memory MB")
    cells: list[tuple[str, ...]] = [
        (f"{size:.0f}", _three(time), _three(1e3 / time), f"{held:.0f}")
        for size, time, held in zip(sizes, times, memory, strict=True)
    ]
    if all("precision" in row for row in rows):
        headings = (*headings, "precision")
        cells = [(*cell, row["precision"] or "") for cell, row in zip(cells, rows, strict=True)]
    return TextTable(title, headings, tuple(cells))


def _origin(report: Mapping[str, Any]) -> str:
    machine = report["machine"]
    load = machine["load_average"]
    busy = "unknown" if load is None else ", ".join(f"{value:.2f}" for value in load)
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}; load "
        f"average before the start {busy}; {report['created']}. {versions}."
    )


def _three(value: float) -> str:
    """Three significant digits, without an exponent."""
    digits = max(0, 2 - int(f"{value:e}".partition("e")[2])) if value else 0
    return f"{value:.{digits}f}"


def _auroc(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"

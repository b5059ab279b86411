"""The results of `cvad bench` as tables, for the command line and, as Markdown, for bench.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cvad_cli.core.comparing import growth_exponent

AXES: Final = {"image_size": "image size (px)", "bank_rows": "rows of the memory bank", "images": "images in one run"}


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table whose cells are text; the first column is a name, the others are figures."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def as_markdown(self) -> str:
        """The table as GitHub-flavoured Markdown, below its title."""
        ruler = ("---", *("---:" for _ in self.headings[1:]))
        lines = [f"| {' | '.join(row)} |" for row in (self.headings, ruler, *self.rows)]
        return "\n".join([f"### {self.title}", "", *lines, ""])


def as_markdown(report: Mapping[str, Any], tables: Iterable[TextTable]) -> str:
    """The tables, below a paragraph that says where and when the figures of the report were measured."""
    return "\n".join([_origin(report), "", *(table.as_markdown() for table in tables)])


def tables_of(report: Mapping[str, Any]) -> Iterator[TextTable]:
    """Every table of a report of `cvad bench`."""
    if report.get("speed"):
        yield _speed_table(report)
        yield _stage_table(report["speed"])
    for axis, rows in (report.get("scaling") or {}).items():
        yield _scaling_table(axis, rows)


def _speed_table(report: Mapping[str, Any]) -> TextTable:
    speed = report["speed"]
    latency = speed["latency"]
    serving = speed["serving"]
    rows = (
        ("served by", f"{serving['engine']} on {serving['device']}, {serving['precision']}"),
        ("images per second", three_digits(speed["images_per_s"])),
        *((f"single image, {name}", f"{three_digits(latency[f'{name}_ms'])} ms") for name in ("p50", "p95", "p99")),
        ("from start to the first result", f"{speed['to_first_result_s']:.2f} s"),
        ("imports and opening, included above", f"{speed['open_s']:.2f} s"),
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
            three_digits(row["mean_ms"]),
            f"{row['mean_ms'] / whole:.0%}",
            *(three_digits(row[key]) for key in ("p50_ms", "p95_ms", "p99_ms")),
        )
        for name, row in stages.items()
    )
    return TextTable("Where the time of a single image goes", headings, rows)


def _scaling_table(axis: str, rows: Sequence[Mapping[str, Any]]) -> TextTable:
    sizes = [row["value"] for row in rows]
    times, memory = ([row[key] for row in rows] for key in ("ms_per_image", "memory_mb"))
    found = growth_exponent(sizes, times)
    title = f"Growth with {AXES[axis]}" + ("" if found is None else f": time ~ size^{found:.2f}")
    headings: tuple[str, ...] = (AXES[axis], "ms per image", "images/s", "memory MB")
    cells: list[tuple[str, ...]] = [
        (f"{size:.0f}", three_digits(time), three_digits(1e3 / time), f"{held:.0f}")
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


def three_digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    digits = max(0, 2 - int(f"{value:e}".partition("e")[2])) if value else 0
    return f"{value:.{digits}f}"

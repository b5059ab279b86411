"""Prints the results of `cvad index` and `cvad classify` for people."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.table import Table

from cvad_cli.cli.render.tables import print_parts

if TYPE_CHECKING:
    from pathlib import Path

    from cvad_cli.tasks.classify import ClassifySummary
    from cvad_cli.tasks.index import IndexListing, IndexSummary, TransferSummary

MAX_ROWS = 200
"""Maximum number of images shown one by one; --json, --jsonl and --csv have all of them."""


def show_index(summary: IndexSummary) -> None:
    """Print the indexed images, and the changes of the index."""
    if summary.images:
        table = _table("labelled images", "type", "images", "which")
        for kind, keys in summary.images.items():
            named = ", ".join(keys[:10]) + (f" and {len(keys) - 10} more" if len(keys) > 10 else "")
            table.add_row(kind, str(len(keys)), named)
        print_parts(table)
    skipped = f", {len(summary.skipped)} images skipped" if summary.skipped else ""
    changes = f"{summary.added} regions added, {summary.unchanged} unchanged, {summary.removed} removed"
    print_parts(f"{summary.index}: {changes}; {summary.total} now{skipped}")


def show_listing(listing: IndexListing) -> None:
    """Print the types of an index, and its regions if requested."""
    table = _table(listing.index, "type", "regions", "images")
    for kind, counts in listing.types.items():
        table.add_row(kind, str(counts["regions"]), str(counts["images"]))
    print_parts(table)
    if listing.entries:
        entries = _table("labelled regions", "type", "image", "box (top, left, bottom, right)", "area", "labelled")
        for entry in listing.entries:
            box = ", ".join(str(edge) for edge in entry.get("box", ()))
            when = str(entry.get("labelled_at", ""))[:10]
            who = f"{entry.get('labelled_by', '')}, {when}"
            entries.add_row(
                str(entry["defect_type"]), str(entry["source"]), box, f"{entry.get('area_px', 0):.0f} px", who
            )
        print_parts(entries)
    print_parts(f"{listing.regions} regions of {listing.dimension} values, through bundle {listing.bundle[:12]}")


def show_transfer(summary: TransferSummary) -> None:
    """Print what was exported or imported."""
    print_parts(
        f"{summary.index}: {summary.regions} regions {summary.what} ({summary.file}); {summary.total} in the index"
    )


def show_classification(summary: ClassifySummary, *, csv: Path | None, overlays: Path | None) -> None:
    """Print one line per image and one per region, then the counts."""
    from cvad_cli.assembly.data.path_arguments import shown_names

    print_parts(f"{summary.name}: {len(summary.types)} types, {summary.labelled_regions} labelled regions")
    shown = summary.images[:MAX_ROWS]
    folder, names = shown_names([image.image for image in shown])
    for name, image in zip(names, shown, strict=True):
        verdict = f"rejected: {image.defect_type}" if image.rejected else "passed"
        print_parts(f"{name}  {verdict}")
        for region in image.regions:
            known = region.defect_type == region.likeliest
            sure = f"{region.confidence:.2f}" if known else f"(p {region.p_value:.2f})"
            nearest = region.neighbours[0] if region.neighbours else None
            near = f", nearest {nearest.source} ({nearest.similarity:.2f})" if nearest else ""
            print_parts(f"    {region.defect_type} {sure}{near}")
    if folder is not None:
        print_parts(f"images below {folder}")
    if len(summary.images) > MAX_ROWS:
        print_parts(f"and {len(summary.images) - MAX_ROWS} more: --csv, --json and --jsonl have all of them")
    counts = Counter(str(image.defect_type) for image in summary.images if image.rejected)
    named = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    passed = len(summary.images) - summary.rejected
    print_parts(
        f"{len(summary.images)} images: {passed} passed, {summary.rejected} rejected" + (f" ({named})" * bool(named))
    )
    for what, where in (("table", csv), ("marked images", overlays)):
        if where is not None:
            print_parts(f"{what}: {where}")


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        right = heading in {"images", "regions"}
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    return table

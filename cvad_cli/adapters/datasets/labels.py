"""labels.csv: one row per image, with its path, its label and optionally its split and its mask."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Final

from cvad_cli.errors import DataError

LABEL_COLUMNS: Final = ("path", "label", "split", "mask")


def read_labels(labels: Path) -> dict[str, dict[str, str]]:
    """Each non-empty row by its location ('labels.csv, line 7'); absent columns are empty.

    Raises DataError naming the file and the line.
    """
    text = _label_text(labels)
    delimiter = "," if "," in text.partition("\n")[0] else ";"  # spreadsheets save either
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = {}
    try:
        columns = _columns(next(reader, []), labels)
        for cells in reader:
            location = f"{labels}, line {reader.line_num}"
            if any(cell.strip() for cell in cells):
                if len(cells) != len(columns):
                    raise DataError(
                        f"{location}: {len(cells)} cells in {len(columns)} columns; quote a name with commas"
                    )
                stripped = dict(zip(columns, map(str.strip, cells), strict=True))
                rows[location] = dict.fromkeys(LABEL_COLUMNS, "") | stripped
    except csv.Error as error:
        raise DataError(f"{labels}, line {reader.line_num}: is not CSV ({error}); check the quotes") from error
    return rows


def _label_text(labels: Path) -> str:
    try:
        return labels.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{labels}, line {line}: is not UTF-8 ({error.reason}); save it as CSV UTF-8") from error
    except OSError as error:
        raise DataError(f"{labels}: cannot be read ({error.strerror}); data.labels is relative to data.root") from error


def _columns(header: list[str], labels: Path) -> list[str]:
    columns = [cell.strip().lower() for cell in header]
    if len(set(columns)) < len(columns) or not {"path", "label"} <= set(columns) <= set(LABEL_COLUMNS):
        seen = ", ".join(columns) or "missing"
        raise DataError(f"{labels}, line 1: the columns are {seen}; expected path, label and optionally split, mask")
    return columns

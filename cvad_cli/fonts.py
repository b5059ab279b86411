"""The fonts of charts and panels: the one that comes with matplotlib, and those for other scripts on a machine."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

PACKAGED_FONT: Final = "DejaVu Sans"
"""Comes with matplotlib; it has no Chinese, Japanese or Korean letters."""

WIDE_FONTS: Final = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "Malgun Gothic", "Hiragino Sans")
"""Fonts that have them, for names of defect types and files."""


def font_families(present: Collection[str]) -> list[str]:
    """The families to draw text with, the first that has a letter wins; `present` are those on this machine."""
    return [PACKAGED_FONT, *(name for name in WIDE_FONTS if name in present)]

"""The fonts of charts and panels: the font of matplotlib, and fonts of the machine for other scripts."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

PACKAGED_FONT: Final = "DejaVu Sans"
"""The font of matplotlib; it has no Chinese, Japanese or Korean letters."""

WIDE_FONTS: Final = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "Malgun Gothic", "Hiragino Sans")
"""Fonts with these letters, for names of defect types and files."""


def font_families(present: Collection[str]) -> list[str]:
    """The font families for text: the first one that has a letter draws it; `present` are those on this machine."""
    return [PACKAGED_FONT, *(name for name in WIDE_FONTS if name in present)]

"""What a receptive field means for defects on a part: sizes in pixels and millimetres, and changes that would help."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from cvad_cli.adapters.receptive_field.layer_graph import read_layers
from cvad_cli.assembly.receptive_field.analysis import CENTRE, Findings
from cvad_cli.assembly.receptive_field.networks import AnalysedNetworks
from cvad_cli.core.receptive_field.coverage import Option, View, options, view_of
from cvad_cli.core.receptive_field.graph import analyse
from cvad_cli.errors import ConfigError

CELLS_WANTED: Final = 4
"""A defect on the centres of this many cells shows as a patch of the map, not as one cell that may be noise."""

BULK: Final = 0.9
"""Share of the gradient energy that the advice names."""


def parse_defect(text: str, pixel_size_mm: float | None) -> float:
    """Convert a size such as '2.5mm' or '40px' to pixels of the original image. Raises ConfigError for other text."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(mm|px)\s*", text, re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise ConfigError(f"--defect-size {text}: expected a size above 0 with its unit, such as 2.5mm or 40px")
    if found[2].lower() == "px":
        return float(found[1])
    if pixel_size_mm is None:
        raise ConfigError(
            f"--defect-size {text}: millimetres need the size of a pixel on the part; set it, for example "
            "--set data.pixel_size_mm=0.05, or give the defect in px"
        )
    return float(found[1]) / pixel_size_mm


def require_fitting(defect: float, original_size: tuple[int, int]) -> None:
    """Raise ConfigError if the defect is larger than the image."""
    if defect > min(original_size):
        raise ConfigError(
            f"--defect-size: {defect:.6g} px do not fit into the image of {original_size[0]} x {original_size[1]} px "
            "(h, w); check the unit, data.pixel_size_mm and --image"
        )


def layer_views(networks: AnalysedNetworks, view: View) -> dict[str, View]:
    """Views of the backbone's layers, with their 3x3 pooling; empty if there is no choice of layers."""
    if networks.candidates is None:
        return {}
    graph = read_layers(networks.candidates, (round(view.image_size[0]), round(view.image_size[1])))
    fields = analyse(graph)
    return {
        name: view_of(fields[output], view.image_size, view.original_size, view.pixel_size_mm)
        for name, output in zip(networks.candidate_names, graph.outputs, strict=True)
    }


def advise(findings: Findings, view: View, layers: Mapping[str, View], defect: float | None) -> dict[str, Any]:
    """The advice in JSON's types: lengths in pixels of the original image, and in mm or null."""
    effective = findings.effective.get(CENTRE)
    bulk = None if effective is None else replace(view, field_px=(effective.side(BULK),) * 2)
    beyond = any(field >= side for field, side in zip(view.field_px, view.image_size, strict=True))
    return {
        "network": findings.network.name,
        "image_size": [round(side) for side in view.image_size],
        "original_size": [round(side) for side in view.original_size],
        "pixel_size_mm": view.pixel_size_mm,
        "field": _lengths(view.field, view),
        "stride": _lengths(view.stride, view),
        "bulk_share": BULK,
        "field_beyond_image": beyond or bool(findings.found.whole_image_because),
        "bulk": None if bulk is None else _lengths(bulk.field, view),
        "largest_whole_in_bulk": None if bulk is None else _length(bulk.largest_whole(), view),
        "cells_wanted": CELLS_WANTED,
        "smallest_on_one_centre": _length(view.smallest_hit(), view),
        "smallest_on_wanted_centres": _length(view.smallest_hit(CELLS_WANTED), view),
        "largest_whole": _length(view.largest_whole(), view),
        "defect": _defect(view, bulk, defect) if defect else None,
        "options": [_option(option, defect) for option in options(view, layers, defect=defect)],
        "layers": {
            name: {"field": _lengths(other.field, other), "stride": _lengths(other.stride, other)}
            for name, other in layers.items()
        },
    }


def sentences(advice: Mapping[str, Any]) -> Iterator[str]:
    """The advice as sentences."""
    beyond, bulk, wanted = advice["field_beyond_image"], advice["bulk"], advice["cells_wanted"]
    image, sees = _both(advice["original_size"]), "more than all of it" if beyond else length_text(advice["field"])
    yield f"On the {image} px image a cell can see {sees}; there is one cell every {length_text(advice['stride'])}."
    if bulk:
        yield (
            f"{100 * advice['bulk_share']:.0f} % of what moves a cell lies within {length_text(bulk)}. A defect of up "
            f"to {length_text(advice['largest_whole_in_bulk'])} is sure to lie within this area of some cell."
        )
    yield (
        f"A square defect of {length_text(advice['smallest_on_one_centre'])} or more is sure to lie on the centre "
        f"of a cell; one of {length_text(advice['smallest_on_wanted_centres'])} or more, on the centres of {wanted} "
        "cells. Cells see smaller defects too, but as a smaller part of their field."
    )
    if advice["largest_whole"]["px"] and not beyond:
        yield (
            f"One cell is sure to see all of a defect up to {length_text(advice['largest_whole'])}; each cell sees "
            "only a part of larger ones."
        )
    if advice["defect"]:
        yield _of_defect(advice["defect"], beyond=beyond)
    yield from _of_options(advice)


def length_text(length: Mapping[str, Any]) -> str:
    """A length with its unit, or two: along rows and along columns.

    >>> length_text({"px": 16.0, "mm": 0.8}), length_text({"px": [132.0, 99.0], "mm": None})
    ('16 px (0.8 mm)', '132 x 99 px')
    """
    mm = "" if length["mm"] is None else f" ({_both(length['mm'])} mm)"
    return f"{_both(length['px'])} px{mm}"


def _both(sides: float | Sequence[float]) -> str:
    return " x ".join(f"{side:.4g}" for side in (sides if isinstance(sides, Sequence) else (sides,)))


def _of_defect(defect: Mapping[str, Any], *, beyond: bool) -> str:
    on_it, whole = defect["cells_with_centre_on_it"], defect["cells_that_see_it_whole"]
    centres = "the centre of 1 cell" if on_it == 1 else f"the centres of {on_it} cells"
    text = f"A defect of {length_text(defect)} " + (
        f"is sure to lie on {centres}" if on_it else "may fall between the centres of all cells"
    )
    if not beyond:
        seen_by = (
            f"{whole} cell{' sees' if whole == 1 else 's see'} all of it"
            if whole
            else "no cell is sure to see it whole"
        )
        seen, filled = (_range(defect[key]) for key in ("share_seen", "share_filled"))
        text += (
            f", and {seen_by}, wherever it lies; the nearest cell sees {seen} of it, and it fills {filled} of that "
            "cell's field"
        )
    if defect["share_of_bulk_filled"]:
        text += f"; it fills {_range(defect['share_of_bulk_filled'])} of the square that moves the cell"
    return f"{text}."


def _of_options(advice: Mapping[str, Any]) -> Iterator[str]:
    defect = advice["defect"]
    if not advice["options"]:
        wrong = defect and not (defect["cells_with_centre_on_it"] and defect["cells_that_see_it_whole"])
        if wrong:
            yield "No affordable change of input, tiles or layer helps: use a closer lens or a larger sensor."
        elif defect:
            yield "Nothing needs to change for it."
        return
    purpose = "would help" if defect else "would halve the distance between cells"
    for option in advice["options"]:
        note = f" ({option['note']})" if option["note"] else ""
        work = "the same work" if option["cost"] == 1 else f"{option['cost']:.3g} times the work"
        yield (
            f"What {purpose}: {option['change']}: a cell every {length_text(option['stride'])} that sees "
            f"{length_text(option['field'])}, at {work}{note}."
        )


def _range(shares: Sequence[float]) -> str:
    """'80 %' or '80 to 95 %'."""
    low, high = (f"{100 * share:.3g}" for share in shares)
    return f"{low} %" if low == high else f"{low} to {high} %"


def _defect(view: View, bulk: View | None, side: float) -> dict[str, Any]:
    return {
        **_length(side, view),
        "cells_with_centre_on_it": view.cells_hit(side),
        "cells_that_see_it_whole": view.cells_whole(side),
        "share_seen": [round(share, 6) for share in view.share_seen(side)],
        "share_filled": [round(share, 6) for share in view.share_filled(side)],
        "share_of_bulk_filled": None if bulk is None else [round(share, 6) for share in bulk.share_filled(side)],
    }


def _option(option: Option, defect: float | None) -> dict[str, Any]:
    view = option.view
    return {
        "change": option.change,
        "cost": round(option.cost, 3),
        "note": option.note,
        "field": _lengths(view.field, view),
        "stride": _lengths(view.stride, view),
        "smallest_on_one_centre": _length(view.smallest_hit(), view),
        "largest_whole": _length(view.largest_whole(), view),
        "cells_with_centre_on_it": view.cells_hit(defect) if defect else None,
        "cells_that_see_it_whole": view.cells_whole(defect) if defect else None,
    }


def _length(length: float, view: View) -> dict[str, Any]:
    mm = view.millimetres(length)
    return {"px": round(length, 3), "mm": None if mm is None else round(mm, 4)}


def _lengths(pair: Sequence[float], view: View) -> dict[str, Any]:
    found = [_length(length, view) for length in pair]
    known = view.pixel_size_mm is not None
    return {"px": [each["px"] for each in found], "mm": [each["mm"] for each in found] if known else None}

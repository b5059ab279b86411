"""receptive_field.md: the derivation for this model and the measurements, ready for a validation report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from cvad_cli.assembly.receptive_field.advice import sentences

POSITIONS: Final = {"first": "first cell", "last": "last cell"}

HOW: Final = r"""Along one axis, a layer with kernel $k_l$, stride $s_l$, padding $p_l$ and dilation $d_l$ turns the
field $r$, the jump $j$ (pixels between neighbouring cells) and the offset $o$ (centre of the first cell) of the map
before it into

$$r_l = r_{l-1} + d_l (k_l - 1) j_{l-1}, \qquad
o_l = o_{l-1} + \left( \frac{d_l (k_l - 1)}{2} - p_l \right) j_{l-1}, \qquad
j_l = s_l j_{l-1}$$

from $r_0 = 1$, $j_0 = 1$, $o_0 = 0$ at the image (Araujo, Norris, Sim: Computing Receptive Fields of Convolutional
Neural Networks, Distill 2019, doi 10.23915/distill.00021). Written out, $j_l = s_1 s_2 \cdots s_l$ and

$$r_L = 1 + \sum_{l=1}^{L} d_l (k_l - 1) \prod_{i=1}^{l-1} s_i$$

All lengths are pixels of the network's input; pixel 0 has its centre at 0."""


def markdown(report: Mapping[str, Any]) -> str:
    """The content of receptive_field.json as a Markdown page that shows the figures beside it."""
    cells = sum(len(network["support"]["cells"]) for network in report["networks"])
    verdict = (
        f"Recursion, closed form and measurement agree ({cells} cells measured)."
        if report["agrees"]
        else "**Theory and measurement disagree: see the cells marked below.**"
    )
    origin = (
        f"`cvad analyze-rf` {report['cvad_version']}, model `{report['model']}` at {_times(report['image_size'])} px, "
        f"seed {report['seed']}, on {report['images']}. {verdict}"
    )
    parts = [
        f"# Receptive field of {report['name']}",
        origin,
        "## What it means for defects",
        _bullets(sentences(report["advice"])),
        "![coverage](coverage.png)",
        "## How it is derived",
        HOW,
    ]
    for network in report["networks"]:
        parts += _network(network, report["figures"])
    return "\n\n".join(parts) + "\n"


def file_stem(network: str) -> str:
    """A network's name in the file names of its figures.

    >>> file_stem("patch features")
    'patch-features'
    """
    return network.replace(" ", "-")


def _network(network: Mapping[str, Any], figures: Sequence[str]) -> list[str]:
    cells = _times(network["map"])
    parts = [
        f"## {network['name'].capitalize()}",
        f"`{network['module']}`, last map `{network['output']}` of {cells} cells. Weights: {network['weights']}.",
        _summary(network),
    ]
    if network["whole_image_because"]:
        parts.append(f"Every cell depends on the whole image: {network['whole_image_because']}.")
    parts += [_formula(formula) for formula in network["formulas"]]
    if all(formula["layer"] != network["output"] for formula in network["formulas"]):
        parts.append(
            "The path to the last map is not a chain of windows (it interpolates, pools to a size or joins maps), so "
            "no single formula gives its field. The field is the hull of what each cell reads, computed cell by cell; "
            "the last rows of the table of layers show what pooling and interpolation add."
        )
    stem = file_stem(network["name"])
    mine = (f"fields-{stem}.png", f"effective-{stem}.png", f"effective-{stem}-edge.png")
    parts += [f"![{name}]({name})" for name in figures if name in mine]
    return [*parts, "### What was measured", _support(network), _effective(network), _layers(network)]


def _summary(network: Mapping[str, Any]) -> str:
    support = network["support"]
    own = next((f for f in network["formulas"] if f["layer"] == network["output"]), None)
    closed = own["closed_form"] if own else None
    rows = [
        ["theory", _times(network["field"]), _times(network["stride"]), _times(network["offset"])],
        ["closed form", closed["field"], closed["stride"], closed["offset"]] if closed else None,
        [
            f"measured on {_times(support['image'])} px",
            _times(support["field"]) + (" (cut by the border)" if support["cut_by_the_border"] else ""),
            _times(support["stride"]) if support["stride"] else "-",
            "-",
        ],
    ]
    return _table(["", "field (px)", "stride (px)", "first centre (px)"], [row for row in rows if row])


def _formula(formula: Mapping[str, Any]) -> str:
    steps = formula["steps"]
    added = " + ".join(f"{step['adds']}" for step in steps if step["adds"]) or "0"
    strides = r" \cdot ".join(f"{step['stride']}" for step in steps if step["stride"] != 1) or "1"
    rows = [
        [
            f"`{step['layer']}`",
            step["kernel"],
            step["stride"],
            _padding(step["padding"]),
            step["dilation"],
            step["adds"],
            step["field"],
            f"{step['jump']:g}",
            f"{step['offset']:g}",
        ]
        for step in steps
    ]
    headings = ["layer", "$k$", "$s$", "$p$", "$d$", "$d (k-1) j$", "$r$", "$j$", "$o$"]
    closed = formula["closed_form"]
    return (
        f"To `{formula['layer']}`, along the branch that reaches furthest (rows):\n\n{_table(headings, rows)}\n\n"
        f"$$r = 1 + {added} = {closed['field']}, \\qquad j = {strides} = {closed['stride']:g}, \\qquad "
        f"o = {closed['offset']:g}$$"
    )


def _support(network: Mapping[str, Any]) -> str:
    text = (
        "Exact support: parts of an image are painted with NaN, which every layer passes on; a cell is NaN if and only "
        "if it depends on a painted pixel. Boxes are top, left, bottom, right.\n\n"
    )
    rows = [
        [
            POSITIONS.get(cell["position"], cell["position"]),
            _listed(cell["cell"]),
            _listed(cell["theory"]),
            _listed(cell["measured"]),
            "yes" if cell["agrees"] else "**no**",
        ]
        for cell in network["support"]["cells"]
    ]
    return text + _table(["cell", "row, column", "theory", "measured", "agree"], rows)


def _effective(network: Mapping[str, Any]) -> str:
    effective = network["effective"]
    if not effective["cells"]:
        return f"Effective field: none: {effective['unavailable']}"
    rows = []
    for cell in effective["cells"]:
        sides = [f"{side} x {side}" for side in cell["sides"].values()]
        bells = ", ".join(f"{bell['sigma']:.1f} ({bell['r_squared']:.2f})" for bell in cell["gaussian"])
        rows.append([cell["position"], *sides, bells])
    shares = [f"{float(share):.0%} of the energy (px)" for share in effective["cells"][0]["sides"]]
    text = (
        "Effective field (Luo et al., NIPS 2016): the squared gradient of a cell with respect to the image, averaged "
        f"over {effective['images']} image{'s' if effective['images'] > 1 else ''}: the side of the square round its "
        "centre of mass that holds a share of it, and the sigma and R² of a Gaussian fitted along rows and columns.\n\n"
    )
    return text + _table(["cell", *shares, "sigma (R²), rows and columns"], rows)


def _layers(network: Mapping[str, Any]) -> str:
    rows = [
        [
            f"`{layer['name']}`",
            layer["kind"],
            *(_times(layer[key]) if layer[key] else "-" for key in ("kernel", "stride")),
            " x ".join(_padding(sides) for sides in layer["padding"]) if layer["padding"] else "-",
            _times(layer["dilation"]) if layer["dilation"] else "-",
            _times(layer["jump"]),
            _times(layer["field"]) + (" (whole)" if layer["whole_image_because"] else ""),
            _times(layer["offset"]),
            _times(layer["map"]),
        ]
        for layer in network["layers"]
    ]
    headings = ["layer", "kind", "kernel", "stride", "padding", "dilation", "jump", "field", "first centre", "map"]
    return f"<details><summary>All layers</summary>\n\n{_table(headings, rows)}\n\n</details>"


def _padding(sides: Sequence[int]) -> str:
    """One number, or both if TensorFlow's `same` pads one cell more at the far border."""
    return f"{sides[0]}" if sides[0] == sides[1] else f"{sides[0]}+{sides[1]}"


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)

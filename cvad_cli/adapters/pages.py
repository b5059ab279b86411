"""Web pages by Jinja2: one file each, which loads nothing from the network.

A page is a template of `cvad_cli/templates` that extends `base.html.j2`. Styles and scripts are part of the page. Its
content security policy allows only these, by their hashes, and images in the page or beside it: no text from a data
set can run code or reach the network. Rendering is streamed, so a page may be larger than memory.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cvad_cli import __version__
from cvad_cli.files import replacing

if TYPE_CHECKING:
    from jinja2 import Environment

BASE_STYLE: Final = "style.css"
_BUFFER_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Asset:
    """A style or a script as the page contains it, and its source in the policy."""

    text: str
    source: str


def write_page(
    path: Path,
    template: str,
    content: Mapping[str, Any],
    *,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
) -> None:
    """Render a template to `path`, whole or not at all.

    Args:
        path: the page to write.
        template: a file of `cvad_cli/templates` that extends `base.html.j2`.
        content: its variables. An iterator is used up as the page is written and never held as a whole.
        styles: further CSS files of `cvad_cli/templates`, after `style.css`.
        scripts: its JavaScript files, run in this order after the content.

    Raises:
        ResourceError: the file cannot be written.
    """
    page = _frame([_asset(name) for name in (BASE_STYLE, *styles)], [_asset(name) for name in scripts])
    pieces = _environment().get_template(template).generate(page=page, **content)
    # A file name may hold bytes that are no text: shown as "?", which UTF-8 can write.
    with replacing(path) as staged, staged.open("w", _BUFFER_BYTES, "utf-8", "replace") as file:
        file.writelines(pieces)


def data_uri(content: bytes, media_type: str) -> str:
    """A data URI that holds the content."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def measured(value: float) -> str:
    """A measured value for people: whole numbers as they are, others to four places, tiny or huge ones in full figures.

    >>> measured(0.98830409), measured(57), measured(26.386509), measured(123456.7), measured(0.00001234)
    ('0.9883', '57', '26.3865', '123457', '1.234e-05')
    """
    if isinstance(value, int):
        return str(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}" if abs(value) < 1e-3 else f"{value:.6g}"
    return f"{value:.4f}"


def percent(value: float) -> str:
    """A share for people, to a tenth of a percent, with a space that no line breaks at.

    >>> percent(0.0476).split(), percent(1.0).split()
    (['4.8', '%'], ['100', '%'])
    """
    shown = f"{100 * value:.1f}".removesuffix(".0")
    return f"{shown}\u00a0%"


def _frame(styles: Sequence[_Asset], scripts: Sequence[_Asset]) -> dict[str, Any]:
    """The variable `page` of `base.html.j2`."""
    allowed = {
        "default-src": ["'none'"],
        "img-src": ["'self'", "file:", "data:"],  # file: for a page opened from a disk, which has no 'self'
        "style-src": [asset.source for asset in styles] or ["'none'"],
        "script-src": [asset.source for asset in scripts] or ["'none'"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }
    policy = "; ".join(f"{rule} {' '.join(sources)}" for rule, sources in allowed.items())
    return {"policy": policy, "styles": styles, "scripts": scripts, "version": __version__}


@cache
def _asset(name: str) -> _Asset:
    from markupsafe import Markup

    text = resources.files("cvad_cli").joinpath("templates", name).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return _Asset(Markup(text), f"'sha256-{digest}'")  # noqa: S704 - our own file, not data


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cvad_cli", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"measured": measured, "percent": percent}
    return environment

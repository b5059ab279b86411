"""The rings of docs/architecture.md hold: a module imports only from rings inside its own, and siblings keep apart."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cvad_cli"
ARCHITECTURE = PACKAGE.parent / "docs" / "architecture.md"
RINGS = [
    "errors",
    "records",
    "ports",
    "fonts",
    "digests",
    "user_folders",
    "files",
    "config",
    "core",
    "adapters",
    "assembly",
    "tasks",
    "cli",
]
APART = {"core", "adapters", "tasks"}
"""Rings whose modules do not import each other: what two of them need moves one ring in."""
CORE_MAY_USE = {"numpy", "scipy", "sklearn", "array_api_compat"}
LONGEST_FILE = 350
LONGEST_FUNCTION = 45

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or not path.name.startswith("__"))


def ring_of(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "cvad_cli" and parts[1] in RINGS else None


def unit_of(dotted: str) -> str:
    """The module, or the sub-package, that stands directly in a ring: 'cvad_cli.core.textures'."""
    return ".".join(dotted.split(".")[:3])


def dotted_name(path: Path) -> str:
    return ".".join(("cvad_cli", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


@functools.cache
def imports_of(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=dotted_name)
def test_a_module_imports_only_inwards(path: Path) -> None:
    name = dotted_name(path)
    ring = ring_of(name)
    assert ring is not None, f"{name} stands in no ring; rings are {RINGS}"
    for target in imports_of(path):
        other = ring_of(target)
        if other is None:
            continue
        assert RINGS.index(other) <= RINGS.index(ring), f"{name} imports {target}, from a ring outside its own"
        if other == ring and ring in APART:
            assert unit_of(target) == unit_of(name), f"{name} imports its sibling {target}"


@pytest.mark.parametrize("path", [path for path in MODULES if "core" in path.parts], ids=dotted_name)
def test_core_knows_no_library_but_numpy_and_its_kin(path: Path) -> None:
    outside = {target.split(".")[0] for target in imports_of(path)} - set(sys.stdlib_module_names) - {"cvad_cli"}
    assert outside <= CORE_MAY_USE


def libraries_in_the_table() -> dict[str, set[str]]:
    """Library -> the folders that docs/architecture.md lets know it, as 'adapters/charts' or 'core'."""
    rows = re.findall(
        r"^\| ([A-Za-z0-9_, ]+) \| (`.*`) \| .* \|$", ARCHITECTURE.read_text(encoding="utf-8"), re.MULTILINE
    )
    return {library: set(re.findall(r"`(.+?)`", folders)) for row, folders in rows for library in row.split(", ")}


def test_each_library_is_known_by_the_folders_of_the_table_alone() -> None:
    known: dict[str, set[str]] = defaultdict(set)
    for path in MODULES:
        inside = path.relative_to(PACKAGE).with_suffix("").parts
        folder = "/".join(inside[:2]) if inside[0] == "adapters" else inside[0]
        for target in imports_of(path):
            known[target.split(".")[0]].add(folder)
    allowed, ours = libraries_in_the_table(), set(sys.stdlib_module_names) | {"cvad_cli", "numpy"}
    offenders = [
        f"{library}: imported in {sorted(known[library])}, the table lists {sorted(allowed.get(library, ()))}"
        for library in sorted((known.keys() | allowed.keys()) - ours)
        if known[library] != allowed.get(library)
    ]
    assert not offenders, "\n".join(offenders)


@pytest.mark.parametrize("path", MODULES, ids=dotted_name)
def test_files_and_functions_stay_within_their_budgets(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            docstring = node.body[0] if ast.get_docstring(node) else None
            prose = docstring.end_lineno - docstring.lineno + 1 if docstring and docstring.end_lineno else 0
            lines = (node.end_lineno or node.lineno) - node.lineno + 1 - prose
            assert lines <= LONGEST_FUNCTION, f"{node.name} has {lines} lines of code"


def test_help_loads_no_heavy_library() -> None:
    script = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from cvad_cli.cli.app import app\n"
        "assert CliRunner().invoke(app, ['train', '--help']).exit_code == 0\n"
        "heavy = {'torch', 'anomalib', 'timm', 'numpy', 'omegaconf', 'matplotlib', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_no_module_of_the_package_uses_what_is_made_for_tests() -> None:
    made_for_tests = {"unittest", "pytest", "doctest"}
    found = {
        dotted_name(path) for path in MODULES if made_for_tests & {name.split(".")[0] for name in imports_of(path)}
    }
    assert not found

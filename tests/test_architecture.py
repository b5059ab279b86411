"""The house of docs/architecture.md stands: rings, capability folders, libraries and budgets, each file read once."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cvad_cli"
ARCHITECTURE = PACKAGE.parent / "docs" / "architecture.md"
RINGS = ["errors", "records", "ports", "fonts", "files", "config", "core", "adapters", "assembly", "tasks", "cli"]
APART = {"core", "adapters", "tasks"}
"""Rings whose modules do not import each other: what two of them need moves one ring in."""
MAY_IMPORT = {
    "defect_types": {"prediction"},
    "benchmark": {"prediction"},
    "evaluation": {"prediction"},
    "prediction": {"serving"},
    "receptive_field": {"serving"},
    "serving": {"training"},
    "training": {"distillation"},
    "batch": {"execution"},
}
"""The arrows between the capability folders of `assembly/`; what lies behind an arrow may be imported too."""
FOR_ALL = {"data", "run_folders"}
"""Rooms of `assembly/` that every capability may use."""
CORE_MAY_USE = {"numpy", "scipy", "sklearn", "array_api_compat", "jaxtyping"}
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 45


@dataclass(frozen=True)
class Module:
    """One file of the package, parsed."""

    name: str
    lines: int
    tree: ast.Module

    @property
    def ring(self) -> str | None:
        return ring_of(self.name)

    @property
    def imports(self) -> list[str]:
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                found.append(node.module)
            elif isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
        return found


@pytest.fixture(scope="module")
def modules() -> list[Module]:
    paths = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or not path.name.startswith("__")]
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(paths)}
    return [Module(dotted_name(path), len(text.splitlines()), ast.parse(text)) for path, text in texts.items()]


def ring_of(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "cvad_cli" and parts[1] in RINGS else None


def unit_of(dotted: str) -> str:
    """The module, or the sub-package, that stands directly in a ring: 'cvad_cli.core.textures'."""
    return ".".join(dotted.split(".")[:3])


def dotted_name(path: Path) -> str:
    return ".".join(("cvad_cli", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def reachable(folder: str) -> set[str]:
    """What a capability may import: itself, what its arrows lead to, and what is for all."""
    found, pending = {folder, *FOR_ALL}, [folder]
    while pending:
        for target in MAY_IMPORT.get(pending.pop(), set()) - found:
            found.add(target)
            pending.append(target)
    return found


def test_every_module_stands_in_a_ring(modules: list[Module]) -> None:
    assert [module.name for module in modules if module.ring is None] == []


def test_a_module_imports_only_inwards(modules: list[Module]) -> None:
    def offenders() -> Iterator[str]:
        for module in modules:
            for target in module.imports:
                other = ring_of(target)
                if other is None or module.ring is None:
                    continue
                if RINGS.index(other) > RINGS.index(module.ring):
                    yield f"{module.name} imports {target}, from a ring outside its own"
                elif other == module.ring and other in APART and unit_of(target) != unit_of(module.name):
                    yield f"{module.name} imports its sibling {target}"

    assert list(offenders()) == []


def test_capabilities_import_each_other_only_along_the_arrows(modules: list[Module]) -> None:
    def offenders() -> Iterator[str]:
        for module in modules:
            if module.ring != "assembly" or unit_of(module.name) == "cvad_cli.assembly":
                continue
            allowed = reachable(unit_of(module.name).rpartition(".")[2])
            for target in module.imports:
                if ring_of(target) == "assembly" and unit_of(target).rpartition(".")[2] not in allowed:
                    yield f"{module.name} imports {target}"

    assert list(offenders()) == []


def test_the_arrows_run_in_no_circle() -> None:
    circles = [
        folder for folder, targets in MAY_IMPORT.items() if any(folder in reachable(target) for target in targets)
    ]
    assert circles == []


def test_core_knows_no_library_but_numpy_and_its_kin(modules: list[Module]) -> None:
    allowed = CORE_MAY_USE | set(sys.stdlib_module_names) | {"cvad_cli"}
    offenders = [
        f"{module.name} imports {target}"
        for module in modules
        if module.ring == "core"
        for target in module.imports
        if target.split(".")[0] not in allowed
    ]
    assert offenders == []


def libraries_in_the_table() -> dict[str, set[str]]:
    """Library -> the folders that docs/architecture.md lets know it, as 'adapters/charts' or 'core'."""
    section = ARCHITECTURE.read_text(encoding="utf-8").split("## Who knows which library")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([A-Za-z0-9_, ]+) \| (`.*`) \| .* \|$", section, re.MULTILINE)
    return {library: set(re.findall(r"`(.+?)`", folders)) for row, folders in rows for library in row.split(", ")}


def folder_of(module: Module) -> str:
    """'adapters/charts' in the ring of adapters, else the ring."""
    parts = module.name.split(".")
    return "/".join(parts[1:3]) if parts[1] == "adapters" else parts[1]


def test_each_library_is_known_by_the_folders_of_the_table_alone(modules: list[Module]) -> None:
    known: dict[str, set[str]] = defaultdict(set)
    for module in modules:
        for target in module.imports:
            known[target.split(".")[0]].add(folder_of(module))
    allowed, ours = libraries_in_the_table(), set(sys.stdlib_module_names) | {"cvad_cli", "numpy"}
    offenders = [
        f"{library}: imported in {sorted(known[library])}, the table lists {sorted(allowed.get(library, ()))}"
        for library in sorted((known.keys() | allowed.keys()) - ours)
        if known[library] != allowed.get(library)
    ]
    assert not offenders, "\n".join(offenders)


def test_files_and_functions_stay_within_their_budgets(modules: list[Module]) -> None:
    def offenders() -> Iterator[str]:
        for module in modules:
            if module.lines > MAX_FILE_LINES:
                yield f"{module.name} has {module.lines} lines"
            for node in ast.walk(module.tree):
                if isinstance(node, ast.FunctionDef) and (lines := lines_of_code(node)) > MAX_FUNCTION_LINES:
                    yield f"{module.name}: {node.name} has {lines} lines of code"

    assert list(offenders()) == []


def lines_of_code(function: ast.FunctionDef) -> int:
    docstring = function.body[0] if ast.get_docstring(function) else None
    prose = docstring.end_lineno - docstring.lineno + 1 if docstring and docstring.end_lineno else 0
    return (function.end_lineno or function.lineno) - function.lineno + 1 - prose


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

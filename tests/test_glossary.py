"""docs/glossary.md rules the words: no identifier of the package uses one that the glossary replaces."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
GLOSSARY = REPOSITORY / "docs" / "glossary.md"
PACKAGE = REPOSITORY / "cvad_cli"
OLD_NAMES = PACKAGE / "config" / "old_names.py"
"""The one file that may name what was called otherwise: old keys are accepted for one release."""


def replaced_words(text: str) -> tuple[set[str], set[str]]:
    """The words of the glossary's last table, and the names in which they are allowed."""
    rows = text.split("## Words that we do not use")[1].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.startswith("| ")]
    words = {word.strip() for row in cells[1:] for word in row[0].split(",")}
    return words, {name for row in cells[1:] for name in re.findall(r"`(\w+)`", row[2])}


def words_of(identifier: str) -> list[str]:
    """An identifier split at underscores and capitals: 'PictureRow_of' -> picture, row, of."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)]


def identifiers_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).rpartition(".")[2]


def offenders(path: Path, words: set[str], allowed: set[str]) -> set[str]:
    names = {*identifiers_of(ast.parse(path.read_text(encoding="utf-8"))), path.stem, path.parent.name}
    plain = {name for name in names if not any(exempt.lower() in name.lower() for exempt in allowed)}
    return {f"{path.relative_to(REPOSITORY)}: {name}" for name in plain if words & set(words_of(name))}


def test_no_identifier_uses_a_word_that_the_glossary_replaces() -> None:
    words, allowed = replaced_words(GLOSSARY.read_text(encoding="utf-8"))
    paths = [path for path in PACKAGE.rglob("*.py") if path != OLD_NAMES]
    assert sorted(name for path in paths for name in offenders(path, words, allowed)) == []


def test_the_word_picture_stands_in_the_list_of_old_names_alone() -> None:
    texts = [path for path in PACKAGE.rglob("*") if path.suffix in {".py", ".j2", ".js", ".css"} and path != OLD_NAMES]
    found = [path for path in texts if re.search("picture", path.read_text(encoding="utf-8"), re.IGNORECASE)]
    assert found == []


def test_identifiers_are_split_at_underscores_and_capitals() -> None:
    assert words_of("_PictureRow_of2XML") == ["picture", "row", "of", "xml"]


def test_an_offending_identifier_is_found(tmp_path: Path) -> None:
    file = PACKAGE / "errors.py"
    assert offenders(file, {"error"}, set()) != set()
    assert offenders(file, {"error"}, {"error"}) == set()

"""Arrays of core/ have the axes that their annotations name: conftest.py checks every call that a test makes."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from axes import WrongAxesError

from cvad_cli.core.coreset import covering_radius, k_center_greedy
from cvad_cli.core.descriptors import query_vector
from cvad_cli.core.scoring import reweighted
from cvad_cli.core.voting import conformal_p, softmax
from cvad_cli.core.whitening import whitening

CORE = Path(__file__).parents[1] / "cvad_cli" / "core"
BARE = {"np.ndarray", "Any", "NDArray", "Floats"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda: softmax(np.ones((2, 2, 2)), 1.0), r"scores: expected .*q C", id="a third axis"),
        pytest.param(lambda: whitening(np.eye(3)[:2] @ np.ones((3, 2)) > 0), "covariance: expected", id="not floats"),
        pytest.param(lambda: conformal_p(np.ones(3), np.ones((2, 1))), r"queries: expected", id="an axis too many"),
        pytest.param(lambda: query_vector(np.ones((8, 5), int)), r"orientations: expected", id="whole numbers"),
        pytest.param(
            lambda: reweighted(np.ones(2), np.ones((2, 3)), np.ones((1, 4, 3))), "support: expected .*b k d", id="NumPy"
        ),
        pytest.param(
            lambda: reweighted(torch.ones(2), torch.ones(2, 3), torch.ones(1, 4, 3)),
            "support: expected .*b k d",
            id="torch",
        ),
    ],
)
def test_wrong_axes_are_refused(call, message: str) -> None:
    with pytest.raises(WrongAxesError, match=message):
        call()


@pytest.mark.parametrize("library", [np.asarray, torch.as_tensor])
def test_right_axes_pass_in_either_library(library) -> None:
    rows = library(np.random.default_rng(0).normal(size=(20, 3)))
    kept = k_center_greedy(rows, 4, rng=np.random.default_rng(0))
    assert covering_radius(rows, rows[kept.rows]) == pytest.approx(kept.radius, rel=1e-3)


def test_what_a_function_refuses_by_itself_it_refuses_in_its_own_words() -> None:
    with pytest.raises(ValueError, match="features: expected"):
        k_center_greedy(np.ones(3), 1, rng=np.random.default_rng(0))


def test_public_functions_of_core_name_the_axes_of_their_arrays() -> None:
    bare = [
        f"{path.relative_to(CORE)}: {function.name}({argument.arg})"
        for path in sorted(CORE.rglob("*.py"))
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef) and not function.name.startswith("_")
        for argument in (*function.args.args, *function.args.kwonlyargs)
        if argument.annotation is not None and _bare(argument.annotation)
    ]
    assert bare == []


def _bare(annotation: ast.expr) -> bool:
    """Whether an array stands in an annotation other than as the first part of `Float[np.ndarray, "n d"]`."""
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple):
        *_, last = annotation.slice.elts
        if isinstance(last, ast.Constant) and isinstance(last.value, str):
            return False
    return ast.unparse(annotation) in BARE or any(
        _bare(child) for child in ast.iter_child_nodes(annotation) if isinstance(child, ast.expr)
    )

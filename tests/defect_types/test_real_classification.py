"""On crops of MVTec AD leather, defects are named as well as docs/defect-types.md says. About a minute."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("CVAD_DATA_ROOT", REPOSITORY.parent / "shared" / "data"))
WEIGHTS = Path(os.environ.get("CVAD_WEIGHTS_DIR", REPOSITORY.parent / "shared" / "weights"))

pytestmark = pytest.mark.skipif(
    not ((DATA / "leather_crops").is_dir() and WEIGHTS.is_dir()),
    reason="the crops of leather or the backbone's weights are not here: set CVAD_DATA_ROOT and CVAD_WEIGHTS_DIR",
)


@pytest.mark.ci
def test_leather_defects_are_named_from_a_few_examples(cvad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVAD_WEIGHTS_DIR", str(WEIGHTS))
    run: tuple[object, ...] = ("--config", REPOSITORY / "configs" / "patchcore_grid.yaml", "--device", "cpu")
    for setting in (
        *("name=leather_crops", f"data.root={DATA}", "data.category=leather_crops", "evaluation.images=0"),
        *(f"output.root={tmp_path}", f"qdrant.path={tmp_path / 'index'}"),
    ):
        run = (*run, "--set", setting)
    trained = cvad("train", *run, "-q")
    assert trained.exit_code == 0, trained.output

    measured = json.loads(cvad("evaluate", *run, "--classification", "--json").stdout)["classification"]
    assert measured["types"] == {"color": 19, "cut": 19, "fold": 16, "glue": 19, "poke": 18}
    assert measured["leave_one_out"]["accuracy"] >= 0.95
    assert measured["leave_one_out"]["macro_f1"] >= 0.95
    assert measured["shots"]["1"]["accuracy_mean"] >= 0.65
    assert measured["shots"]["5"]["accuracy_mean"] >= 0.90  # 0.92 and more was measured; between draws it moves by 0.02
    assert measured["shots"]["10"]["accuracy_mean"] >= 0.93
    assert measured["open_set"]["auroc_mean"] >= 0.85
    assert measured["open_set"]["known_called_unknown"] <= 0.15

    indexed = json.loads(cvad("index", *run, "--shots", 5, "--seed", 1, "--json").stdout)["images"]
    shown = {key for keys in indexed.values() for key in keys}
    test = DATA / "leather_crops" / "test"
    defects = [path for path in sorted(test.glob("*/*.png")) if path.parent.name != "good"]
    unseen = [path for path in defects if f"test/{path.parent.name}/{path.name}" not in shown]
    assert len(unseen) == 91 - 25
    named = json.loads(cvad("classify", *unseen, *run, "--json", "-q").stdout)
    unknown = Counter(
        "unknown" if image["defect_type"] == "unknown" else image["defect_type"] == Path(image["image"]).parent.name
        for image in named["images"]
        if image["rejected"]
    )
    assert unknown[True] >= 0.75 * unknown.total()
    assert unknown[False] <= 0.15 * unknown.total()

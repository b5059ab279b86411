"""Names from an index: learnt from a bounded number of regions, and told from the text that cvad wrote."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cvad_cli.adapters.qdrant.embedded import EmbeddedStore
from cvad_cli.assembly.defect_types.classifier import DefectClassifier, labelled_regions, thinned
from cvad_cli.config.schema import ClassifyConfig, RunConfig
from cvad_cli.errors import StoreError
from cvad_cli.records import DefectPoint


def points(**counts: int) -> list[DefectPoint]:
    """So many points of each type, two to an image, ordered by id as a store gives them."""
    rng = np.random.default_rng(0)
    made = [
        DefectPoint(
            str(uuid.uuid5(uuid.NAMESPACE_URL, f"{kind}/{number}")),
            rng.normal(size=4).astype(np.float32),
            {"category": "grid", "defect_type": kind, "source": f"test/{kind}/{number // 2}.png"},
        )
        for kind, count in counts.items()
        for number in range(count)
    ]
    return sorted(made, key=lambda point: point.id)


def test_a_large_index_is_thinned_to_equal_shares_of_its_types() -> None:
    kept = thinned(points(bent=50, glue=7, thread=30), 30)
    kinds = [point.payload["defect_type"] for point in kept]
    assert len(kept) == 30
    assert kinds.count("glue") == 7
    assert abs(kinds.count("bent") - kinds.count("thread")) <= 1
    assert [point.id for point in thinned(points(bent=50, glue=7, thread=30), 30)] == [point.id for point in kept]


def test_a_small_index_is_taken_whole_and_no_type_is_lost_to_thinning() -> None:
    assert len(thinned(points(bent=3, glue=2), 30)) == 5
    assert {point.payload["defect_type"] for point in thinned(points(a=9, b=1, c=1, d=1), 2)} == {"a", "b", "c", "d"}


def test_types_and_images_are_numbered_by_their_names() -> None:
    types, labelled = labelled_regions(points(thread=4, bent=2))
    assert types == ("bent", "thread")
    assert np.bincount(labelled.types).tolist() == [2, 4]
    assert sorted(np.bincount(labelled.images).tolist()) == [2, 2, 2]
    assert labelled.views.shape == (6, 1, 4)


@pytest.mark.parametrize("field", ["defect_type", "category", "source"])
def test_a_point_without_its_text_is_named(field: str) -> None:
    (whole, *_) = points(bent=1)
    broken = DefectPoint(whole.id, whole.vector, {key: text for key, text in whole.payload.items() if key != field})
    with pytest.raises(StoreError, match=f"{whole.id}: has no {field}"):
        labelled_regions([broken])


def caveats(folder: Path, indexed: Sequence[DefectPoint], rate: float, **limits: int) -> list[str]:
    """What `cvad classify` warns of with this index."""
    settings = RunConfig(name="small", classify=ClassifyConfig(unknown_rate=rate))
    with EmbeddedStore(folder, "defects", batch_size=500) as store:
        store.create(4, {})
        store.upsert(indexed)
        return DefectClassifier(store, settings, "small.yaml", **limits).caveats


def test_enough_labels_are_no_reason_to_warn(tmp_path: Path) -> None:
    assert caveats(tmp_path, points(bent=5, glue=4), 0.1) == []


def test_too_few_labels_for_the_unknown_rate_are_reported(tmp_path: Path) -> None:
    (found,) = caveats(tmp_path, points(bent=4, glue=4), 0.1)
    assert found.startswith("no region can be called unknown at a rate of 0.1: 8 labelled regions allow 1/9 = 0.111")
    assert "label at least 9 regions of types that two or more images show" in found


def test_labels_that_are_not_learnt_from_do_not_count(tmp_path: Path) -> None:
    indexed = points(bent=100, glue=100)
    (found,) = caveats(tmp_path / "thinned", indexed, 0.02, max_learnt=20)
    assert "20 labelled regions allow 1/21 = 0.0476" in found
    assert "names are learnt from 20 of the 200 labelled regions" in found
    assert "raise classify.unknown_rate to 1/21 or more" in found
    assert caveats(tmp_path / "whole", indexed, 0.02) == []


def test_types_of_one_image_each_can_never_make_a_region_unknown_and_that_is_reported(tmp_path: Path) -> None:
    found = caveats(tmp_path, points(**{f"type{number}": 2 for number in range(12)}), 0.1)
    assert any("no region can be called unknown at a rate of 0.1: 0 labelled regions" in caveat for caveat in found)


def test_a_type_beyond_the_regions_that_are_read_is_warned_of(tmp_path: Path) -> None:
    (found,) = caveats(tmp_path, points(bent=40, glue=40), 0.1, max_read=30, max_learnt=20)
    assert "names are learnt from 20 of the 80 labelled regions, chosen among 30" in found

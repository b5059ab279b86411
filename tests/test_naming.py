"""Names from an index: learnt from a bounded number of regions, and told from the text that cvad wrote."""

from __future__ import annotations

import uuid

import numpy as np
import pytest

from cvad_cli.assembly.naming import labelled_regions, thinned
from cvad_cli.errors import StoreError
from cvad_cli.records import DefectPoint


def points(**counts: int) -> list[DefectPoint]:
    """So many points of each type, two to a picture, ordered by id as a store gives them."""
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


def test_types_and_pictures_are_numbered_by_their_names() -> None:
    types, labelled = labelled_regions(points(thread=4, bent=2))
    assert types == ("bent", "thread")
    assert np.bincount(labelled.types).tolist() == [2, 4]
    assert sorted(np.bincount(labelled.pictures).tolist()) == [2, 2, 2]
    assert labelled.views.shape == (6, 1, 4)


@pytest.mark.parametrize("field", ["defect_type", "category", "source"])
def test_a_point_without_its_text_is_named(field: str) -> None:
    (whole, *_) = points(bent=1)
    broken = DefectPoint(whole.id, whole.vector, {key: text for key, text in whole.payload.items() if key != field})
    with pytest.raises(StoreError, match=f"{whole.id}: has no {field}"):
        labelled_regions([broken])

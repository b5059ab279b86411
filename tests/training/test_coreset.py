"""The coreset: the plain algorithm's rows on awkward data, its radius, and the price of merging."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvad_cli.core.coreset import ChunkedCoreset, covering_radius, k_center_greedy
from cvad_cli.core.coreset.space import TOLERANCE, Space


def gaussian(rng, n, d):
    return rng.normal(size=(n, d))


def heavy_tailed(rng, n, d):
    return rng.standard_t(2.0, size=(n, d))


def clusters(spread):
    def draw(rng, n, d):
        return rng.uniform(-1, 1, size=(9, d))[rng.integers(9, size=n)] + spread * rng.normal(size=(n, d))

    return draw


def with_copies(rng, n, d):
    return rng.normal(size=(n // 3, d))[rng.integers(n // 3, size=n)]


def one_far_row(rng, n, d):
    features = rng.normal(size=(n, d))
    features[n // 2] += 1e7
    return features


SETS = [
    pytest.param(lambda rng: gaussian(rng, 1200, 24), id="random"),
    pytest.param(lambda rng: gaussian(rng, 1500, 2), id="random in a plane, where the radius gets small"),
    pytest.param(lambda rng: gaussian(rng, 900, 1), id="on a line"),
    pytest.param(lambda rng: heavy_tailed(rng, 1200, 24), id="heavy tails"),
    pytest.param(lambda rng: clusters(1e-2)(rng, 1200, 16), id="clusters"),
    pytest.param(lambda rng: clusters(1e-4)(rng, 1200, 16), id="tight clusters"),
    pytest.param(lambda rng: with_copies(rng, 1200, 16), id="most rows are copies"),
    pytest.param(lambda rng: 1e4 + gaussian(rng, 1200, 16), id="far from the origin"),
    pytest.param(lambda rng: 1e3 + clusters(1e-2)(rng, 1200, 16), id="clusters far from the origin"),
    pytest.param(lambda rng: 1e-30 * gaussian(rng, 1200, 16), id="tiny, squares underflow"),
    pytest.param(lambda rng: 1e25 * gaussian(rng, 1200, 16), id="huge, squares overflow"),
    pytest.param(lambda rng: one_far_row(rng, 1200, 16), id="one row so far that all others seem equal"),
]


def drawn(draw, seed=0):
    return draw(np.random.default_rng(seed)).astype(np.float32)


def squared_distances(features, centre):
    return np.sum((features.astype(np.float64) - centre.astype(np.float64)) ** 2, axis=1)


def plain_greedy(features, keep, first):
    """Algorithm 1 as it is printed, in float64: rows, and the covering radius."""
    nearest = squared_distances(features, features[first])
    rows = [first]
    taken = np.zeros(len(features), dtype=bool)
    taken[first] = True
    while len(rows) < keep:
        rows.append(int(np.where(taken, -1.0, nearest).argmax()))
        taken[rows[-1]] = True
        nearest = np.minimum(nearest, squared_distances(features, features[rows[-1]]))
    return np.array(rows), float(np.sqrt(nearest.max()))


def require_each_pick_farthest(features, coreset):
    """Replay the picks in float64: none is nearer than the farthest row by more than the tolerance."""
    nearest = np.full(len(features), np.inf)
    for row in coreset.rows:
        assert np.sqrt(nearest[row]) >= (1 - 2 * TOLERANCE) * np.sqrt(nearest.max())
        nearest = np.minimum(nearest, squared_distances(features, features[row]))
    assert coreset.radius == pytest.approx(np.sqrt(nearest.max()), rel=TOLERANCE)


@pytest.mark.parametrize("block", [50, 4096])
@pytest.mark.parametrize("draw", SETS)
def test_the_plain_algorithm_takes_the_same_rows(draw, block):
    features = drawn(draw)
    found = k_center_greedy(features, 150, rng=np.random.default_rng(3), block=block)
    rows, radius = plain_greedy(features, 150, first=found.rows[0])
    np.testing.assert_array_equal(features[found.rows], features[rows])  # a copy may stand for another
    assert found.radius == pytest.approx(radius, rel=TOLERANCE)
    assert found.rows.dtype == np.int64


@pytest.mark.parametrize("block", [20, 2000])
@pytest.mark.parametrize("seed", range(3))
def test_rows_that_only_float64_tells_apart_are_taken_in_its_order(seed, block):
    features = drawn(lambda rng: clusters(1e-6)(rng, 2000, 16), seed)
    found = k_center_greedy(features, 25, rng=np.random.default_rng(seed), block=block)
    np.testing.assert_array_equal(found.rows, plain_greedy(features, 25, first=found.rows[0])[0])


@pytest.mark.parametrize("draw", SETS)
def test_a_device_without_float64_makes_picks_as_good(draw):
    features, rng = drawn(draw), np.random.default_rng(3)
    found = k_center_greedy(features, 120, rng=rng, block=300, float_types=("float32",))
    require_each_pick_farthest(features, found)


@given(data=st.data(), seed=st.integers(0, 2**16), scale=st.sampled_from([1.0, 1e-12, 3e7]))
@settings(max_examples=100, deadline=None)
def test_on_lattices_full_of_ties_and_copies_each_pick_is_a_farthest_row(data, seed, scale):
    n, d = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 3))
    keep, block = data.draw(st.integers(1, n)), data.draw(st.integers(1, n + 1))
    features = (scale * np.random.default_rng(seed).integers(-2, 3, size=(n, d))).astype(np.float32)
    found = k_center_greedy(features, keep, rng=np.random.default_rng(seed), block=block)
    require_each_pick_farthest(features, found)
    assert len(np.unique(found.rows)) == keep
    assert len(np.unique(features[found.rows], axis=0)) == min(keep, len(np.unique(features, axis=0)))


def test_more_centres_than_a_page_and_all_rows_in_the_end():
    features = drawn(lambda rng: gaussian(rng, 700, 6))
    found = k_center_greedy(features, 700, rng=np.random.default_rng(0), block=64)
    np.testing.assert_array_equal(found.rows, plain_greedy(features, 700, first=found.rows[0])[0])
    assert found.radius == 0.0


def test_equal_rows_are_all_taken_once():
    found = k_center_greedy(np.full((50, 3), 7.5, dtype=np.float32), 30, rng=np.random.default_rng(0), block=8)
    assert len(np.unique(found.rows)) == 30
    assert found.radius == 0.0


def test_a_seed_fixes_the_result_and_draws_the_first_row():
    features = drawn(lambda rng: gaussian(rng, 500, 8))
    runs = [k_center_greedy(features, 60, rng=np.random.default_rng(seed)) for seed in (5, 5, 6)]
    np.testing.assert_array_equal(runs[0].rows, runs[1].rows)
    assert runs[0].radius == runs[1].radius
    assert runs[0].rows[0] == np.random.default_rng(5).integers(500)
    assert runs[0].rows[0] != runs[2].rows[0]


def test_a_smaller_coreset_is_the_beginning_of_a_larger_one():
    features = drawn(lambda rng: heavy_tailed(rng, 500, 8))
    small, large = (k_center_greedy(features, keep, rng=np.random.default_rng(5)).rows for keep in (20, 90))
    np.testing.assert_array_equal(small, large[:20])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floating_types_are_taken_as_they_are(dtype):
    features = drawn(lambda rng: 100 + gaussian(rng, 500, 4)).astype(dtype)
    found = k_center_greedy(features, 100, rng=np.random.default_rng(5), block=100)
    require_each_pick_farthest(features, found)


@pytest.mark.parametrize("draw", SETS)
def test_a_torch_tensor_gives_what_an_array_gives(draw):
    torch = pytest.importorskip("torch")
    features = drawn(draw)
    ours = k_center_greedy(features, 100, rng=np.random.default_rng(4), block=200)
    theirs = k_center_greedy(torch.from_numpy(features), 100, rng=np.random.default_rng(4), block=200)
    np.testing.assert_array_equal(features[ours.rows], features[theirs.rows])
    assert theirs.radius == pytest.approx(ours.radius, rel=TOLERANCE)
    assert isinstance(theirs.rows, np.ndarray)


def test_progress_comes_in_steps_that_sum_to_the_rows_kept():
    steps = []
    k_center_greedy(
        drawn(lambda rng: gaussian(rng, 2000, 8)), 300, rng=np.random.default_rng(0), block=128, advance=steps.append
    )
    assert sum(steps) == 300
    assert min(steps) >= 1
    assert 1 < len(steps) < 300


def test_features_are_left_as_they_were():
    features = drawn(lambda rng: clusters(1e-4)(rng, 600, 8))
    before = features.copy()
    k_center_greedy(features, 100, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(features, before)


def test_most_distances_are_never_measured(monkeypatch):
    measured = []
    nearest = Space.nearest

    def counted(self, points, duals):
        measured.append(len(points) * len(duals))
        return nearest(self, points, duals)

    monkeypatch.setattr(Space, "nearest", counted)
    features = drawn(lambda rng: gaussian(rng, 8000, 12) * rng.exponential(size=(8000, 1)) ** 2)
    k_center_greedy(features, 800, rng=np.random.default_rng(0), block=256)
    assert sum(measured) < 0.5 * 8000 * 800


@pytest.mark.parametrize("draw", SETS)
def test_the_covering_radius_is_that_of_float64(draw):
    features = drawn(draw)
    centres = features[:: len(features) // 300] + drawn(draw, seed=1)[:1] * np.float32(1e-3)
    nearest = np.min([squared_distances(features, centre) for centre in centres], axis=0)
    assert covering_radius(features, centres, block=256) == pytest.approx(np.sqrt(nearest.max()), rel=TOLERANCE)


def test_rows_that_are_centres_leave_no_radius():
    features = drawn(lambda rng: gaussian(rng, 400, 3))
    assert covering_radius(features, features[::-1].copy()) == 0.0


@pytest.mark.parametrize(
    ("features", "keep", "message"),
    [
        pytest.param(np.zeros((4, 2)), 0, "keep: expected 1 to 4, the rows of features, got 0", id="none kept"),
        pytest.param(np.zeros((4, 2)), 5, "keep: expected 1 to 4, the rows of features, got 5", id="more than all"),
        pytest.param(np.zeros((0, 2)), 1, r"n, d >= 1, got shape \(0, 2\)", id="no rows"),
        pytest.param(np.zeros((4, 0)), 1, r"n, d >= 1, got shape \(4, 0\)", id="no columns"),
        pytest.param(np.zeros((4, 2, 2)), 1, r"expected \(n, d\).*got shape \(4, 2, 2\)", id="three axes"),
        pytest.param(np.zeros(4), 1, r"expected \(n, d\).*got shape \(4,\)", id="one axis"),
        pytest.param(np.zeros((4, 2), dtype=int), 1, "floating-point numbers, got int64", id="whole numbers"),
        pytest.param(np.array([[0, 0], [1, np.nan]]), 1, "got nan in row 1, column 1", id="not a number"),
        pytest.param(np.array([[0, 0], [0, 0], [-np.inf, 0]]), 1, "got -inf in row 2, column 0", id="infinite"),
    ],
)
def test_what_cannot_be_selected_from_is_refused_by_name(features, keep, message):
    with pytest.raises(ValueError, match=message):
        k_center_greedy(features, keep, rng=np.random.default_rng(0), block=2)


def test_a_block_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="block: expected at least 1, got 0"):
        k_center_greedy(np.zeros((4, 2)), 1, rng=np.random.default_rng(0), block=0)


def test_a_spread_that_overflows_is_refused():
    features = np.array([[-3e38], [3e38]], dtype=np.float32)
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="range overflows float32"):
        k_center_greedy(np.repeat(features, 3, axis=0), 1, rng=np.random.default_rng(0), block=2)


def test_centres_of_another_width_or_type_are_refused():
    with pytest.raises(ValueError, match="centres: expected 3 columns as features have, got 2"):
        covering_radius(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="centres: expected float64 as features are, got float32"):
        covering_radius(np.zeros((4, 3)), np.zeros((4, 3), dtype=np.float32))


def least_radius_on_a_line(values, balls):
    """The optimum over centres anywhere, exactly: the least half-length of `balls` intervals that cover all values."""
    values = np.sort(values.astype(np.float64))

    def intervals_needed(radius):
        needed, reach = 0, -np.inf
        for value in values:
            if value > reach:
                needed, reach = needed + 1, value + 2 * radius
        return needed

    candidates = np.unique(np.abs(values[:, None] - values)) / 2 * (1 + 1e-12)
    return candidates[bisect_left(candidates, True, key=lambda radius: intervals_needed(radius) <= balls)]


@pytest.mark.parametrize(
    ("chunk_rows", "merges"),
    [
        pytest.param(300, 1, id="all in one buffer"),
        pytest.param(100, 2, id="two levels"),
        pytest.param(20, 3, id="three levels"),
        pytest.param(10, 5, id="many levels"),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_merging_keeps_within_its_factor_of_the_true_optimum(chunk_rows, merges, seed):
    values = np.random.default_rng(seed).standard_t(2.0, size=300).astype(np.float32)
    chunked = ChunkedCoreset(5, chunk_rows, rng=np.random.default_rng(seed))
    for part in np.array_split(values[:, None], 7):
        chunked.add(part)
    merged = chunked.result()
    optimum = least_radius_on_a_line(values, 5)
    assert merged.features.shape == (5, 1)
    assert optimum <= covering_radius(values[:, None], merged.features) * (1 + TOLERANCE)
    assert covering_radius(values[:, None], merged.features) <= merged.radius_bound
    assert merged.radius_bound <= 2 * merged.merges * optimum * (1 + 3 * TOLERANCE)
    assert merged.merges == merges


@pytest.mark.parametrize("draw", SETS)
def test_no_row_is_farther_from_a_merged_coreset_than_its_bound(draw):
    features = drawn(draw)
    chunked = ChunkedCoreset(60, 250, rng=np.random.default_rng(0))
    for part in np.array_split(features, 11):
        chunked.add(part)
    merged = chunked.result()
    exact = k_center_greedy(features, 60, rng=np.random.default_rng(0)).radius
    assert covering_radius(features, merged.features) <= merged.radius_bound
    assert merged.radius_bound <= 2 * merged.merges * exact * (1 + 3 * TOLERANCE)
    assert len(merged.features) == 60


def test_a_bound_adds_up_what_each_level_lost():
    values = np.array([*range(16), *[0] * 8], dtype=np.float32)[:, None]  # the zeros push the others up the levels
    for seed in range(40):
        chunked = ChunkedCoreset(1, 2, rng=np.random.default_rng(seed))
        chunked.add(values)
        merged = chunked.result()
        assert merged.merges == 4
        assert covering_radius(values, merged.features) <= merged.radius_bound


def test_what_fits_into_one_buffer_is_the_exact_coreset():
    features = drawn(lambda rng: gaussian(rng, 400, 8))
    chunked = ChunkedCoreset(50, 400, rng=np.random.default_rng(8))
    for part in np.array_split(features, 3):
        chunked.add(part)
    exact = k_center_greedy(features, 50, rng=np.random.default_rng(8))
    merged = chunked.result()
    np.testing.assert_array_equal(merged.features, features[exact.rows])
    assert merged.radius_bound == pytest.approx(exact.radius, rel=2 * TOLERANCE)


def test_parts_are_copied_and_may_be_of_any_size():
    features = drawn(lambda rng: gaussian(rng, 500, 4))
    at_once, in_parts = (ChunkedCoreset(20, 90, rng=np.random.default_rng(1)) for _ in range(2))
    at_once.add(features)
    scratch = np.empty((7, 4), dtype=np.float32)
    for start in range(0, 500, 7):
        part = features[start : start + 7]
        scratch[: len(part)] = part
        in_parts.add(scratch[: len(part)])
    np.testing.assert_array_equal(at_once.result().features, in_parts.result().features)


def test_more_can_be_added_after_a_result():
    features = drawn(lambda rng: gaussian(rng, 500, 4))
    chunked = ChunkedCoreset(20, 90, rng=np.random.default_rng(1))
    chunked.add(features[:300])
    chunked.result()
    chunked.add(features[300:])
    merged = chunked.result()
    assert covering_radius(features, merged.features) <= merged.radius_bound


def test_merging_stays_in_the_library_of_the_features():
    torch = pytest.importorskip("torch")
    features = torch.from_numpy(drawn(lambda rng: gaussian(rng, 300, 4)))
    chunked = ChunkedCoreset(20, 90, rng=np.random.default_rng(1))
    chunked.add(features)
    merged = chunked.result()
    assert isinstance(merged.features, torch.Tensor)
    assert covering_radius(features, merged.features) <= merged.radius_bound


def test_merging_refuses_what_it_cannot_keep():
    with pytest.raises(ValueError, match="keep: expected at least 1, got 0"):
        ChunkedCoreset(0, 10, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"chunk_rows: expected at least 2 \* keep = 12, got 11"):
        ChunkedCoreset(6, 11, rng=np.random.default_rng(0))
    chunked = ChunkedCoreset(6, 12, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="keep: expected at most 0, the rows that were added, got 6"):
        chunked.result()
    chunked.add(np.zeros((5, 2)))
    with pytest.raises(ValueError, match="keep: expected at most 5, the rows that were added, got 6"):
        chunked.result()
    with pytest.raises(ValueError, match="features: expected 2 columns as before, got 3"):
        chunked.add(np.zeros((5, 3)))

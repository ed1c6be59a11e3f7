"""Places of a map: what is near stays near, the same each time, and small or odd cases have places too."""

import numpy as np
import pytest

from valuembed.search.corpus_map import Plane, batches_of, find_areas, middle_of, to_square


def groups(sizes, width=16, spread=0.05, seed=0):
    """Vectors around directions that stand at right angles to each other, of length 1; and the group of each."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(len(sizes)), sizes)
    vectors = np.eye(width)[of] + rng.normal(scale=spread, size=(len(of), width))
    order = rng.permutation(len(of))
    scaled = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled[order].astype(np.float32), of[order]


def test_main_directions_by_hand():
    # Two pairs along x and one along y: from the mean (0, 0), x differs more.
    vectors = np.array([[2, 0], [-2, 0], [0, 1], [0, -1]], np.float32)
    plane = Plane(vectors)
    np.testing.assert_allclose(plane.reduced(vectors), [[1, 0], [-1, 0], [0, 1], [0, -1]], atol=1e-6)
    # So few lie where those two directions put them.
    np.testing.assert_allclose(plane.places, [[1, 0], [-1, 0], [0, 1], [0, -1]], atol=1e-6)


def test_both_ways_to_directions_agree():
    """With fewer rows than numbers, and with more: ten rows of a space of three that lie in one of sixteen."""
    rows = np.random.default_rng(1).normal(size=(10, 3)).astype(np.float32)
    turned = rows @ np.linalg.qr(np.random.default_rng(2).normal(size=(16, 3)))[0].T.astype(np.float32)
    few, many = Plane(turned).reduced(turned)[:, :3], Plane(rows).reduced(rows)
    np.testing.assert_allclose(np.abs(few), np.abs(many), atol=1e-4)


@pytest.mark.slow
class TestGroups:
    @pytest.fixture(scope="class")
    @staticmethod
    def made():
        vectors, of = groups([60, 40, 20])
        told = []
        return vectors, of, Plane(vectors, told.append), told

    def test_lie_apart(self, made):
        _, of, plane, told = made
        distances = np.linalg.norm(plane.places[:, None] - plane.places[None], axis=2)
        np.fill_diagonal(distances, np.inf)
        assert (of[distances.argmin(axis=1)] == of).all(), "the nearest on the plane is of the same group"
        assert told == sorted(told)
        assert told[-1] == 1.0

    def test_are_placed_the_same_each_time(self, made):
        vectors, _, plane, _ = made
        np.testing.assert_allclose(Plane(vectors).places, plane.places, rtol=1e-4, atol=1e-3)

    def test_others_lie_among_their_own(self, made):
        _, of, plane, _ = made
        more, theirs = groups([10, 10, 10], seed=5)
        found = plane.place(plane.reduced(more))
        distances = np.linalg.norm(found[:, None] - plane.places[None], axis=2)
        assert (of[distances.argmin(axis=1)] == theirs).all()
        assert len(np.unique(found, axis=0)) == 30, "no two lie at one place"
        np.testing.assert_array_equal(found, plane.place(plane.reduced(more)))


@pytest.mark.parametrize("count", [1, 2, 3, 13, 40])
def test_rows_that_are_all_alike(count):
    vectors = np.tile(np.array([[0.6, 0.8]], np.float32), (count, 1))
    plane = Plane(vectors)
    assert plane.places.shape == (count, 2)
    assert np.isfinite(plane.places).all()
    assert np.isfinite(plane.place(plane.reduced(vectors))).all()
    assert find_areas(plane.places).tolist() == [0] * count


def test_areas_are_numbered_by_size():
    # 30 rows around (1, 0), 50 around (-1, 0); for 80 rows there may be ten areas, but none spans both sides.
    rng = np.random.default_rng(0)
    left = np.repeat([0, 1], [30, 50])
    places = (np.array([[1.0, 0], [-1.0, 0]])[left] + rng.normal(scale=0.05, size=(80, 2))).astype(np.float32)
    found = find_areas(places)
    counts = np.bincount(found)
    assert len(counts) == 10
    assert counts.tolist() == sorted(counts.tolist(), reverse=True)
    assert all(len(set(left[found == area].tolist())) == 1 for area in range(10))


def test_rows_beyond_the_landmarks_go_with_the_nearest():
    places = np.array([[0, 0]] * 8 + [[1, 1]] * 8 + [[0.1, 0], [0.9, 1]], np.float32)
    found = find_areas(places, landmarks=16)
    assert found[16] == found[0] != found[8] == found[17]


def test_to_square_by_hand():
    # x from 0 to 4, y from 0 to 2: halves 2 and 1. y is drawn out by 1.5, so that it reaches 1 * 1.5 / 2.
    found = to_square(np.array([[0, 0], [4, 2], [2, 1]], np.float32))
    np.testing.assert_allclose(found, [[-1, -0.75], [1, 0.75], [0, 0]])
    # x from 0 to 4, y from 0 to 3: it may be drawn out so far that it reaches 1.
    np.testing.assert_allclose(to_square(np.array([[0, 0], [4, 3]], np.float32)), [[-1, -1], [1, 1]])
    np.testing.assert_allclose(to_square(np.array([[5, 5]], np.float32)), [[0, 0]])
    assert to_square(np.zeros((0, 2), np.float32)).shape == (0, 2)


def test_the_middle_lies_within_the_larger_piece():
    places = np.array([[0, 0], [0.1, 0], [0, 0.1], [0.1, 0.1], [5, 5]], np.float32)
    assert np.linalg.norm(middle_of(places) - [0.05, 0.05]) < 0.1


def test_batches():
    assert [(at.start, at.stop) for at in batches_of(5, 2)] == [(0, 2), (2, 4), (4, 5)]
    assert list(batches_of(0, 2)) == []

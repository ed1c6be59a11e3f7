"""Vectors laid flat: distances by hand, and the same map every time."""

from __future__ import annotations

import numpy as np
import pytest

from valuembed.errors import InputError
from valuembed.serving.playground.projection import project_2d


@pytest.mark.parametrize("width", [3, 40], ids=["narrow", "wide"])
def test_points_of_a_plane_keep_their_places(width):
    # A cross with arms 3 and 1, turned into the space along two directions at right angles.
    flat = np.array([[3.0, 0], [-3, 0], [0, 1], [0, -1]])
    directions = np.zeros((2, width))
    directions[0, :2], directions[1, :2] = (0.6, 0.8), (-0.8, 0.6)
    found = project_2d(flat @ directions + 5.0)
    assert found.shape == (4, 2)
    assert found.dtype == np.float64
    # Of each direction the end is positive that stands first among those farthest out.
    np.testing.assert_allclose(np.abs(found), np.abs(flat), atol=1e-9)
    np.testing.assert_allclose(found.sum(axis=0), 0, atol=1e-9)


@pytest.mark.parametrize("shape", [(12, 4), (4, 12)])
def test_is_the_best_of_all_planes(shape):
    points = np.random.default_rng(5).normal(size=shape)
    centred = points - points.mean(axis=0)
    sizes = np.linalg.svd(centred, compute_uv=False)
    found = project_2d(points)
    np.testing.assert_allclose((found**2).sum(axis=0), sizes[:2] ** 2, rtol=1e-9)
    np.testing.assert_allclose(found[:, 0] @ found[:, 1], 0, atol=1e-9)
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert (np.linalg.norm(found[:, None] - found[None], axis=-1) <= apart + 1e-9).all()


def test_signs_do_not_depend_on_chance():
    points = np.random.default_rng(6).normal(size=(7, 5))
    found = project_2d(points)
    assert (found[np.abs(found).argmax(axis=0), [0, 1]] > 0).all()
    np.testing.assert_allclose(project_2d(points.astype(np.float32)), found, atol=1e-5)
    # Another order, or the same points shown from behind: the same map.
    np.testing.assert_allclose(project_2d(points[::-1]), found[::-1], atol=1e-9)
    np.testing.assert_allclose(project_2d(-points), found, atol=1e-9)


def test_of_few_vectors():
    assert project_2d(np.zeros((0, 5))).shape == (0, 2)
    assert project_2d([[1.0, 2.0, 3.0]]).tolist() == [[0, 0]]
    np.testing.assert_allclose(project_2d([[0.0, 0.0, 2.0], [0.0, 0.0, 6.0]]), [[2, 0], [-2, 0]], atol=1e-9)
    assert (project_2d(np.ones((5, 3))) == 0).all()
    assert project_2d([[1.0], [3.0]])[:, 1].tolist() == [0, 0]
    assert project_2d(np.zeros((3, 0))).tolist() == [[0, 0]] * 3


def test_what_has_no_place_on_a_map():
    with pytest.raises(InputError, match=r"^vectors of shape \(3,\) cannot be mapped: \[b, width\] is wanted$"):
        project_2d(np.zeros(3))
    with pytest.raises(InputError, match=r"^vector 1 \(counted from 0\) is not finite, so it has no place on a map$"):
        project_2d([[0.0, 1.0], [np.nan, 1.0]])

import numpy as np
import pytest

from valuembed.serving.playground.api import portions, to_unit_length


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], []),
        (["ab"], [["ab"]]),
        (["ab", "cd", "e"], [["ab", "cd"], ["e"]]),
        (["abcdefgh", "i", "jkl", "m"], [["abcdefgh"], ["i", "jkl"], ["m"]]),
        (["a", "bcdefgh", "", ""], [["a"], ["bcdefgh"], ["", ""]]),
    ],
)
def test_portions_of_four_characters(texts, expected):
    """A longer text is a portion of its own."""
    assert list(portions(texts, 4)) == expected


def test_unit():
    """(3, 4) is 5 long; zeros have no direction."""
    np.testing.assert_allclose(to_unit_length(np.array([[3, 4], [0, 0]], np.float32)), [[0.6, 0.8], [0, 0]], rtol=1e-6)

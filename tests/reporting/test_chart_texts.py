"""Texts of figures: lines that fit, names that break behind their signs."""

from __future__ import annotations

import pytest

from valuembed.reporting.chart_texts import broken, letters_on


@pytest.mark.parametrize(
    ("text", "letters", "lines"),
    [
        ("", 10, []),
        ("a short title", 40, ["a short title"]),
        ("two words and more", 9, ["two words", "and more"]),
        ("first\nsecond line", 11, ["first", "second line"]),
        ("some-organisation/some-model", 20, ["some-organisation/", "some-model"]),
        ("x" * 25, 10, ["x" * 10, "x" * 10, "x" * 5]),
        # A version is no place to break while there are others.
        ("model-1.7B", 9, ["model-", "1.7B"]),
        # Letters that are twice as wide are half as many.
        ("\u4e2d" * 12, 10, ["\u4e2d" * 5, "\u4e2d" * 5, "\u4e2d" * 2]),
    ],
)
def test_lines_are_no_wider_than_asked(text, letters, lines):
    assert broken(text, letters) == lines


def test_letters_that_fit():
    # 110 letters of one point on an inch: 11 of ten points.
    assert (letters_on(2, 10), letters_on(0.01, 10)) == (22, 1)

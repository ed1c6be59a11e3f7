"""What counts as a text: the borders, to the byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valuembed.inputs import MAX_TEXT_BYTES, check_text


class Words(str):
    """A string of someone's own."""


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n",
        "a",
        "Zürich",
        "\U0001f600",
        "e\u0301",
        "\u05e9\u05dc\u05d5\u05dd",
        "\x01",
        "\ufeff",
        "\U0010ffff",
        Words("own"),
    ],
)
def test_texts(text):
    assert check_text(text) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "not a string but NoneType"),
        (3, "not a string but int"),
        (b"bytes", "not a string but bytes"),
        (["a"], "not a string but list"),
        ({"text": "a"}, "not a string but dict"),
        (float("nan"), "not a string but float"),
        ("ab\ud800", "not valid Unicode: lone surrogate U+D800 at character 2"),
        # Two halves of an emoji are two lone surrogates in Python; the first is named.
        ("\ud83d\ude00", "not valid Unicode: lone surrogate U+D83D at character 0"),
        ("ab\0c\0", "not text: NUL character at character 2"),
    ],
)
def test_not_texts(text, reason):
    assert check_text(text) == reason


def test_size_is_counted_in_bytes_and_one_megabyte_is_too_much():
    assert MAX_TEXT_BYTES == 1_000_000
    assert check_text("a" * 999_999) is None
    assert check_text("a" * 1_000_000) == "1,000,000 bytes long; a text has to be shorter than 1,000,000 bytes"
    # A euro sign takes three bytes: 333,333 of them take 999,999.
    assert check_text("€" * 333_333) is None
    assert check_text("€" * 333_334) == "1,000,002 bytes long; a text has to be shorter than 1,000,000 bytes"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_all_other_unicode_is_text(text):
    assert check_text(text) is None


@given(st.text(max_size=5), st.text(max_size=5), st.sampled_from(["\0", "\ud800", "\udfff"]))
def test_one_bad_character_anywhere_is_found(before, after, bad):
    assert check_text(before + bad + after) is not None

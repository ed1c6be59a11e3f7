"""What counts as a text: the borders, to the byte."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from valuembed.data.validation import (
    MAX_TEXT_BYTES,
    as_text,
    as_texts,
    check_file_name,
    check_text,
    check_texts,
    iter_texts,
)
from valuembed.errors import InputError


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
        (None, "missing (None)"),
        (3, "not a string but int"),
        (b"bytes", "not a string but bytes"),
        (["a"], "not a string but list"),
        ({"text": "a"}, "not a string but dict"),
        (float("nan"), "missing (nan)"),
        (np.float32("nan"), "missing (nan)"),
        (float("inf"), "not a string but float"),
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


TEXTS = ["a cat", "Zürich \U0001f600", ""]


class OldSequence:
    """Indexable, and nothing else."""

    def __getitem__(self, index):
        return TEXTS[index]


CONTAINERS = {
    "list": lambda: TEXTS,
    "tuple": lambda: tuple(TEXTS),
    "generator": lambda: (text for text in TEXTS),
    "iterator": lambda: iter(TEXTS),
    "map": lambda: map(str, TEXTS),
    "deque": lambda: deque(TEXTS),
    "keys": lambda: dict.fromkeys(TEXTS).keys(),
    "values": lambda: dict(enumerate(TEXTS)).values(),
    "indexable": OldSequence,
    "numpy <U": lambda: np.array(TEXTS),
    "numpy object": lambda: np.array(TEXTS, dtype=object),
    "numpy scalars": lambda: list(np.array(TEXTS)),
    "numpy 0-d": lambda: [np.array(text) for text in TEXTS],
    "pyarrow": lambda: pa.array(TEXTS),
    "pyarrow large": lambda: pa.array(TEXTS, pa.large_string()),
    "pyarrow view": lambda: pa.array(TEXTS, pa.string_view()),
    "pyarrow dictionary": lambda: pa.array(TEXTS).dictionary_encode(),
    "pyarrow chunks": lambda: pa.chunked_array([TEXTS[:1], TEXTS[1:]]),
    "pyarrow column": lambda: pa.table({"text": TEXTS})["text"],
    "pyarrow scalars": lambda: list(pa.array(TEXTS)),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_texts_of_any_container_with_an_order(kind):
    assert as_texts(CONTAINERS[kind]()) == TEXTS
    assert list(iter_texts(CONTAINERS[kind]())) == TEXTS


def test_numpys_strings_of_any_length():
    if not hasattr(np.dtypes, "StringDType"):
        pytest.skip("numpy before 2.0 has no StringDType")
    assert as_texts(np.array(TEXTS, dtype=np.dtypes.StringDType())) == TEXTS
    missing = as_texts(np.array(["a", None], dtype=np.dtypes.StringDType(na_object=None)))
    assert missing == ["a", None]


def test_columns_of_pandas():
    pd = pytest.importorskip("pandas", reason="pandas comes with datasets, of the extra train")
    for dtype in (None, object, "string", "category", pd.ArrowDtype(pa.string())):
        column = pd.Series(TEXTS, dtype=dtype, index=[7, 8, 9])
        kept = column.copy()
        assert as_texts(column) == as_texts(column.values) == as_texts(column.array) == TEXTS
        assert as_texts(pd.Index(column)) == TEXTS
        assert as_texts(column[:0]) == as_texts(column[:0].values) == []
        assert column.equals(kept)
    for dtype in (None, object, "string", pd.ArrowDtype(pa.string())):
        with pytest.raises(InputError, match=r"1 of 2 texts cannot be embedded: row 1 is missing \((None|nan|<NA>)\)"):
            check_texts(as_texts(pd.Series(["a", None], dtype=dtype)))
    with pytest.raises(InputError, match=r"row 0 is missing \(NaT\)"):
        check_texts([pd.NaT])
    with pytest.raises(InputError, match=r"^DataFrame where texts are expected: a table has several columns; give one"):
        as_texts(pd.DataFrame({"text": TEXTS}))


def test_columns_of_polars():
    pl = pytest.importorskip("polars", reason="polars comes with mteb, of the extra eval")
    assert as_texts(pl.Series(TEXTS)) == as_texts(pl.Series(TEXTS, dtype=pl.Categorical)) == TEXTS
    with pytest.raises(InputError, match=r"row 1 is missing \(None\)"):
        check_texts(as_texts(pl.Series(["a", None])))
    for table in (pl.DataFrame({"text": TEXTS}), pl.LazyFrame({"text": TEXTS})):
        with pytest.raises(InputError, match=r"Frame where texts are expected: a table has several columns"):
            as_texts(table)


def test_columns_of_datasets():
    datasets = pytest.importorskip("datasets", reason="datasets comes with the extra train")
    table = datasets.Dataset.from_dict({"text": TEXTS})
    assert as_texts(table["text"]) == TEXTS
    with pytest.raises(InputError, match=r"^Dataset where texts are expected: a table has several columns; give one"):
        as_texts(table)


@pytest.mark.parametrize("nothing", [[], (), np.array([]), pa.array([], pa.string()), iter([]), {}.values()])
def test_no_texts_are_an_empty_list(nothing):
    assert as_texts(nothing) == []


def test_an_iterator_is_taken_once_and_as_a_stream():
    taken = []
    stream = iter_texts(taken.append(text) or text for text in TEXTS)
    assert taken == []
    assert next(stream) == TEXTS[0]
    assert taken == TEXTS[:1]


@pytest.mark.parametrize("one", ["a", Words("a"), np.str_("a"), np.array("a"), np.array("a", object), pa.scalar("a")])
def test_one_text_is_one_however_it_is_wrapped(one):
    assert as_text(one) == "a"
    assert isinstance(as_text(one), str)
    with pytest.raises(InputError, match=r"where texts are expected: .* give \[.*'a'.*\] to mean one text$"):
        as_texts(one)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a"}, "set where texts are expected: a set has no order to return vectors in; give a list of strings"),
        ({"text": "a"}, "dict where texts are expected: give the text in a dict, such as row\\['text'\\]"),
        (b"a", "bytes where texts are expected: decode bytes first, such as data.decode\\('utf-8'\\)"),
        (bytearray(b"a"), "bytearray where texts are expected: decode bytes first"),
        (Path("a"), "Path where texts are expected: give a file's text, such as path.read_text"),
        (5, "int where texts are expected: give a list of strings"),
        (None, "NoneType where texts are expected: leave missing texts out"),
        (float("nan"), "float where texts are expected: leave missing texts out"),
        (list, "type where texts are expected: give a list of strings"),
        (np.array(5), "int where texts are expected: give a list of strings"),
        (np.array([["a", "b"]]), "ndarray where .* an array of shape \\(1, 2\\) is no list; give one of its columns"),
        (pa.table({"a": ["x"]}), "Table where texts are expected: a table has several columns; give one of them"),
    ],
    ids=str,
)
def test_what_holds_no_texts_in_an_order_is_an_error_that_says_what_to_give(given, message):
    with pytest.raises(InputError, match=message):
        as_texts(given)


@pytest.mark.parametrize("given", [["a"], {"a": 1}, None, 5])
def test_data_in_memory_is_no_file(given):
    for name in ("a.txt", b"a.txt", Path("a.txt")):
        check_file_name(name, "do this")
    with pytest.raises(InputError, match=rf"^{type(given).__name__} where the path of a file is expected; do this$"):
        check_file_name(given, "do this")


def test_a_set_is_taken_where_the_order_does_not_matter():
    assert sorted(iter_texts(set(TEXTS), ordered=False)) == sorted(TEXTS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, r"row 1 is missing \(None\); leave missing texts out, or put '' in their places$"),
        (float("nan"), r"row 1 is missing \(nan\); leave missing texts out"),
        (b"a", r"row 1 is not a string but bytes; decode bytes first, such as data.decode\('utf-8'\)$"),
        (Path("a"), r"row 1 is not a string but \w*Path; give a file's text"),
        ({"text": "a"}, r"row 1 is not a string but dict; give the text in a dict, such as row\['text'\]"),
        (("a", "b"), r"row 1 is not a string but tuple; for pairs of texts, encode each side by itself"),
        (["a"], r"row 1 is not a string but list; give a list of strings$"),
        (5, r"row 1 is not a string but int; give a list of strings$"),
        ("nul \0", r"row 1 is not text: NUL character at character 4$"),
    ],
    ids=str,
)
def test_rows_that_are_no_texts_say_what_to_give(wrong, message):
    with pytest.raises(InputError, match=message):
        check_texts(["a", wrong])

"""What counts as a text that can be embedded, and what counts as a list of texts: one check, used everywhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

from valuembed._utils.text import counted
from valuembed.errors import InputError

MAX_TEXT_BYTES = 1_000_000
"""A text has to be shorter than this in UTF-8: so far beyond any context, it is a whole file taken for one text."""


def check_text(text: object, max_bytes: int | None = MAX_TEXT_BYTES) -> str | None:
    """Why a text cannot be embedded, or None when it can.

    A blank text is a legal text: what it becomes is for the caller to decide.

    Args:
        text: whatever a user passed in place of a text.
        max_bytes: it has to be shorter than this in UTF-8; None is any length.

    Returns:
        A phrase that completes "the text is ...", with the offending type, character or length.
    """
    if not isinstance(text, str):
        return f"missing ({text})" if _is_missing(text) else f"not a string but {type(text).__name__}"
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        return f"not valid Unicode: lone surrogate U+{ord(text[error.start]):04X} at character {error.start}"
    if max_bytes is not None and size >= max_bytes:
        return f"{counted(size, 'byte')} long; a text has to be shorter than {max_bytes:,} bytes"
    if (position := text.find("\0")) >= 0:
        return f"not text: NUL character at character {position}"
    return None


def check_texts(texts: Sequence[Any], max_bytes: int | None = MAX_TEXT_BYTES) -> None:
    """Raise on the first things that are no texts, naming their rows.

    Args:
        texts: b of them.
        max_bytes: as in :func:`check_text`.

    Raises:
        InputError: with up to five rows, the reason for each, and what to do about the first.
    """
    wrong = [(row, reason) for row, text in enumerate(texts) if (reason := check_text(text, max_bytes))]
    if wrong:
        listed = "; ".join(f"row {row} is {reason}" for row, reason in wrong[:5])
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        first = texts[wrong[0][0]]
        advice = "" if isinstance(first, str) else f"; {_advice(first)}"
        raise InputError(f"{len(wrong)} of {counted(len(texts), 'text')} cannot be embedded: {listed}{more}{advice}")


def as_texts(given: Any) -> list[Any]:
    """The texts of anything that holds texts in an order, as a list; what is given stays as it is.

    Args:
        given: a list, tuple, generator or any other iterable, an array of numpy, a column of pandas, polars, pyarrow
            or datasets. Of an iterator, everything is taken once.

    Returns:
        b texts, or whatever else was in their places, see :func:`check_texts`.

    Raises:
        InputError: one text, or something that holds no texts in an order, with what to give instead.
    """
    return list(iter_texts(given))


def iter_texts(given: Any, *, ordered: bool = True) -> Iterator[Any]:
    """As :func:`as_texts`, but read as a stream.

    Args:
        given: as there.
        ordered: refuse sets, whose order changes from one process to the next.
    """
    values = _values(given, ordered)
    return (as_text(value) for value in values)


def as_text(given: Any) -> Any:
    """A text that an array or a column wraps, as a string; anything else as it is."""
    if isinstance(given, str):
        return given
    if hasattr(given, "as_py"):  # a scalar of pyarrow
        return given.as_py()
    if getattr(given, "ndim", None) == 0 and hasattr(given, "item"):
        return given.item()
    return given


def _values(given: Any, ordered: bool) -> Iterable[Any]:
    """What is given, or as a list where it is a column; iterating over a column may wrap every text."""
    given = as_text(given)
    reason = _why_no_list(given, ordered)
    if reason is None:
        for name in ("to_pylist", "to_list", "tolist"):  # of pyarrow, of polars and pandas, of numpy
            if callable(convert := getattr(given, name, None)):
                values: list[Any] = convert()
                return values
        try:
            iterator: Iterator[Any] = iter(given)
            return iterator
        except TypeError:
            reason = "give a list of strings"
    raise InputError(f"{type(given).__name__} where texts are expected: {reason}")


def _why_no_list(given: Any, ordered: bool) -> str | None:
    kind = type(given)
    if isinstance(given, str):
        return f"a list of strings is needed here; give [{given!r:.80}] to mean one text"
    if isinstance(given, type):
        return "give a list of strings"
    if hasattr(kind, "columns") or hasattr(kind, "column_names"):
        return "a table has several columns; give one of them, such as table['text']"
    if _is_missing(given) or isinstance(given, (bytes, bytearray, memoryview, Mapping, os.PathLike)):
        return _advice(given)
    if isinstance(given, (set, frozenset)) and ordered:
        return "a set has no order to return vectors in; give a list of strings, such as sorted(texts)"
    if getattr(given, "ndim", 1) != 1:
        shape = tuple(given.shape)
        return f"an array of shape {shape} is no list; give one of its columns, such as array[:, 0]"
    return None


def _is_missing(value: object) -> bool:
    # pandas is not imported to ask it, and comparing its NA with anything gives NA.
    return (
        value is None
        or type(value).__name__ in ("NAType", "NaTType")
        or (isinstance(value, Real) and bool(value != value))
    )


def _advice(wrong: object) -> str:
    """What to give in place of something that is no text."""
    if _is_missing(wrong):
        return "leave missing texts out, or put '' in their places"
    if isinstance(wrong, (bytes, bytearray, memoryview)):
        return "decode bytes first, such as data.decode('utf-8')"
    if isinstance(wrong, os.PathLike):
        return "give a file's text, such as path.read_text(encoding='utf-8')"
    if isinstance(wrong, Mapping):
        return "give the text in a dict, such as row['text'], or list(texts.values())"
    if isinstance(wrong, (list, tuple)) and len(wrong) == 2:
        return "for pairs of texts, encode each side by itself and compare the vectors with model.similarity"
    return "give a list of strings"


def check_file_name(given: object, in_memory: str) -> None:
    """Raise on what cannot be the name of a file.

    Args:
        given: what a user passed in place of one.
        in_memory: what to do with data that is in no file.

    Raises:
        InputError: with the type that was given.
    """
    if not isinstance(given, (str, bytes, os.PathLike)):
        raise InputError(f"{type(given).__name__} where the path of a file is expected; {in_memory}")


def check_prompt(prompt: str | None) -> None:
    """Raise on an instruction that is no text.

    Raises:
        InputError: with the reason.
    """
    if reason := check_text(prompt or ""):
        raise InputError(f"prompt {prompt!r} cannot be embedded: it is {reason}")

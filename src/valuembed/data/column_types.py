"""What type a column of values has, and values made to fit it: for columns that are kept beside their texts.

A JSON value says its own type, and the next row may say another. A column is as wide as its values need: whole numbers
that meet fractions are floats, and whatever else does not go together is a string, in which a value that is no string
stands as JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

NOTHING, BOOL, INT, FLOAT, STRING = "null", "bool", "int64", "double", "string"
"""Types of JSON values, by the names of Arrow."""

EXACT = 2**53
"""Beyond this, floats cannot tell whole numbers apart."""


def json_type(value: object, known: str = NOTHING) -> str:
    """The type that holds a value of JSON and all those before it.

    Args:
        value: the value.
        known: the type of those before.
    """
    if value is None:
        return known
    if isinstance(value, bool):
        own = BOOL
    elif isinstance(value, int):
        own = INT if -(2**63) <= value < 2**63 else STRING
        if own == INT and known == FLOAT:
            return FLOAT if abs(value) <= EXACT else STRING
    elif isinstance(value, float):
        own = FLOAT
    else:
        own = STRING
    if known in (NOTHING, own):
        return own
    return FLOAT if {known, own} == {INT, FLOAT} else STRING


def merged(one: Any, other: Any) -> Any | None:
    """The Arrow type that holds the values of two, or None where there is none."""
    import pyarrow as pa
    import pyarrow.types as kinds

    if one.equals(other) or kinds.is_null(other):
        return one
    if kinds.is_null(one):
        return other
    both = (one, other)
    if all(kinds.is_integer(kind) for kind in both):
        return pa.int64() if not any(kinds.is_uint64(kind) for kind in both) else pa.string()
    if all(kinds.is_integer(kind) or kinds.is_floating(kind) for kind in both):
        return pa.float64()
    return pa.string() if all(_has_words(kind) for kind in both) else None


def _has_words(kind: Any) -> bool:
    """Whether every value of a type can be written as a string."""
    import pyarrow as pa
    import pyarrow.types as kinds

    if kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_binary_view(kind):
        return False
    try:
        pa.array([], kind).cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return False
    return True


def to_array(values: Iterable[object], kind: Any) -> tuple[Any, int | None]:
    """Python values as an Arrow array of a type.

    Returns:
        The array, with null in place of what does not fit, and the position of the first value that did not.
    """
    import pyarrow as pa

    fitted, unfit = [], None
    for at, value in enumerate(values):
        fits, made = _fitted(value, str(kind))
        fitted.append(made)
        if not fits and unfit is None:
            unfit = at
    return pa.array(fitted, kind), unfit


def _fitted(value: Any, kind: str) -> tuple[bool, object]:
    """Whether a value fits a type, and what stands for it."""
    if value is None:
        return True, None
    if kind == STRING:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return (True, text) if _is_unicode(text) else (False, None)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == BOOL:
        fits = isinstance(value, bool)
    elif kind == INT:
        fits = is_number and math.isfinite(value) and value == int(value) and -(2**63) <= value < 2**63
        value = int(value) if fits else None
    elif kind == FLOAT:
        fits = is_number and (isinstance(value, float) or abs(value) <= EXACT)
        value = float(value) if fits else None
    else:
        fits = False
    return fits, value if fits else None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

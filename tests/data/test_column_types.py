from functools import reduce

import pyarrow as pa
import pytest

from valuembed.data.column_types import NOTHING, json_type, merged, to_array


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([None, None], "null"),
        ([None, True, False], "bool"),
        ([1, None, 2], "int64"),
        ([1, 2.5], "double"),
        ([2.5, 1], "double"),
        ([float("nan"), 1], "double"),
        ([1, True], "string"),
        ([True, 1], "string"),
        ([1, "x"], "string"),
        ([2**63], "string"),
        # A float would make another number of it.
        ([2.5, 2**53 + 1], "string"),
        ([[1]], "string"),
        ([{"a": 1}, None], "string"),
    ],
)
def test_json_type(values, kind):
    assert reduce(lambda known, value: json_type(value, known), values, NOTHING) == kind


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (pa.int64(), pa.int64(), pa.int64()),
        (pa.null(), pa.date32(), pa.date32()),
        (pa.date32(), pa.null(), pa.date32()),
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.uint64(), pa.int64(), pa.string()),
        (pa.int64(), pa.float32(), pa.float64()),
        (pa.int64(), pa.string(), pa.string()),
        (pa.large_string(), pa.string(), pa.string()),
        (pa.date32(), pa.string(), pa.string()),
        (pa.bool_(), pa.int64(), pa.string()),
        (pa.list_(pa.string()), pa.string(), None),
        (pa.binary(), pa.string(), None),
    ],
)
def test_merged(one, other, together):
    assert merged(one, other) == together


@pytest.mark.parametrize(
    ("values", "kind", "made", "unfit"),
    [
        ([1, None, "x", 2.0, True], pa.int64(), [1, None, None, 2, None], 2),
        ([1, 2.5], pa.float64(), [1.0, 2.5], None),
        ([2**53 + 1], pa.float64(), [None], 0),
        (["x", 1, None, True, ["é"]], pa.string(), ["x", "1", None, "true", '["é"]'], None),
        (["\ud800", "x"], pa.string(), [None, "x"], 0),
        ([True, 1], pa.bool_(), [True, None], 1),
        (["2020-01-01"], pa.date32(), [None], 0),
        ([float("inf")], pa.int64(), [None], 0),
    ],
)
def test_to_array(values, kind, made, unfit):
    array, first = to_array(values, kind)
    assert (array.type, array.to_pylist(), first) == (kind, made, unfit)

import datetime

import numpy as np
import pytest
from fakes import FakeEncoder

from valuembed.errors import InputError, ReadingError
from valuembed.search.results import Hit, check_make, embed_query, fuse, unit
from valuembed.vectors.provenance import VectorSpec


def test_rankings_are_fused_by_reciprocal_rank():
    # a: 1/61 + 1/62; b: 1/62 + 1/61, the same; c: 1/63; d: 1/63.
    fused = fuse(["a", "b", "c"], ["b", "a", "d"])
    assert fused == {
        key: pytest.approx(value)
        for key, value in {"a": 1 / 61 + 1 / 62, "b": 1 / 62 + 1 / 61, "c": 1 / 63, "d": 1 / 63}.items()
    }
    assert fuse([], ["x"]) == {"x": 1 / 61}
    assert fuse() == {}


def test_plain_data_has_what_is_known():
    hit = Hit(1, 0.5, 7, "text", row=7, chunk=0, more={"day": datetime.date(2026, 1, 2), "stars": 4, "note": None})
    assert hit.to_dict() == {
        "rank": 1,
        "score": 0.5,
        "id": 7,
        "text": "text",
        "row": 7,
        "chunk": 0,
        "more": {"day": "2026-01-02", "stars": 4, "note": None},
    }
    assert Hit(1, 0.5, "x", "text").to_dict() == {"rank": 1, "score": 0.5, "id": "x", "text": "text"}


def test_a_query_becomes_a_vector_of_length_1():
    model = FakeEncoder()
    vector = embed_query(model, "abc", VectorSpec.of(FakeEncoder()))
    np.testing.assert_allclose(np.linalg.norm(vector), 1, atol=1e-6)
    assert model.calls == [("query", ["abc"])]
    short = embed_query(model, "abc", VectorSpec.of(model, dim=3))
    np.testing.assert_allclose(short, vector[:3] / np.linalg.norm(vector[:3]), atol=1e-6)


def test_unit():
    np.testing.assert_allclose(unit(np.array([[3, 4]], np.float32), "here"), [[0.6, 0.8]], atol=1e-7)
    for value in (0, np.inf):
        with pytest.raises(ReadingError, match=r"^here: vector 1 \(counted from 0\) is zero or not finite$"):
            unit(np.array([[1], [value]], np.float32), "here")


def test_a_model_of_another_make_is_refused():
    check_make(FakeEncoder("renamed"), VectorSpec.of(FakeEncoder()), "index")
    check_make(FakeEncoder(), VectorSpec.of(FakeEncoder(), "int8", 4), "index")
    with pytest.raises(InputError, match=r"width 12 of 16 against 8$"):
        check_make(FakeEncoder(width=8), VectorSpec.of(FakeEncoder(), dim=12), "index")
    with pytest.raises(InputError, match=r"^index was made by model 'fake'.*made by model 'b'.*width 16 against 8$"):
        check_make(FakeEncoder("b", width=8), VectorSpec.of(FakeEncoder()), "index")

"""Shapes of requests and answers, without a server around them; a client sees the rest in test_server.py."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from valuembed.errors import RequestError
from valuembed.serving.jobs import Embedded
from valuembed.serving.schemas import (
    EmbeddingsAnswer,
    EmbeddingsRequest,
    answer_parts,
    error_response,
    first_dimensions,
    read_input,
)

VECTORS = np.array([[3, 4, 12], [0, 0, 2]], np.float32)


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("a", ["a"]),
        (" ", [" "]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [(1, 2)]),
        ([[1], [2, 3]], [(1,), (2, 3)]),
        (["a", [1]], ["a", (1,)]),
    ],
)
def test_the_forms_of_an_input(given, texts):
    assert read_input(given) == texts
    assert EmbeddingsRequest(input=given).texts == texts


def test_numbers_are_not_made_of_words():
    with pytest.raises(ValidationError, match="dimensions\n  Input should be a valid integer"):
        EmbeddingsRequest(input="a", dimensions="5")


def test_shortened_vectors_have_length_one():
    # (3, 4) has the length 5.
    np.testing.assert_allclose(first_dimensions(VECTORS[0], 2), [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(first_dimensions(VECTORS[1], 2), [0, 0])


@pytest.mark.parametrize(
    ("format", "dimensions", "expected"),
    [
        ("float", None, [[3.0, 4.0, 12.0], [0.0, 0.0, 2.0]]),
        ("float", 1, [[1.0], [0.0]]),
        # 3.0, 4.0 and 12.0 are the bytes 0000 4040, 0000 8040 and 0000 4041.
        ("base64", None, ["AABAQAAAgEAAAEBB", "AAAAAAAAAAAAAABA"]),
    ],
)
def test_an_answer_in_parts_is_json(format, dimensions, expected):
    parts = list(answer_parts(Embedded(VECTORS, 7, [1]), 'a "name"', format, dimensions))
    assert len(parts) == 4
    answer = json.loads(b"".join(parts))
    EmbeddingsAnswer.model_validate(answer)
    assert [item["embedding"] for item in answer["data"]] == expected
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert (answer["model"], answer["truncated"]) == ('a "name"', [1])


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (413, "invalid_request_error"), (429, "rate_limit_error"), (503, "server_error")],
)
def test_errors_come_in_the_envelope(status, kind):
    found = error_response(RequestError(status, "so", code="c", param="p", headers={"Retry-After": "3"}))
    assert (found.status_code, found.headers["retry-after"]) == (status, "3")
    assert json.loads(found.body) == {"error": {"message": "so", "type": kind, "param": "p", "code": "c"}}

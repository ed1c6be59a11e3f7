"""What a body has to be, and the reason where it is not; through a server in serving/test_server.py."""

import gzip
import json

import pytest

from valuembed.errors import RequestError
from valuembed.serving.request_body import read_json

JSON = "application/json"


@pytest.mark.parametrize(
    "kind",
    [
        JSON,
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json; charset="UTF-8"',
        "application/json;charset=utf8",
        "application/json; charset=us-ascii",
        "application/json; odata=verbose",
        "application/vnd.api+json",
    ],
)
@pytest.mark.parametrize("body", [b'{"input": "Z\xc3\xbcrich"}', b'\xef\xbb\xbf {"input": "Z\\u00fcrich"} '])
def test_json_in_utf_8(kind, body):
    assert read_json({"content-type": kind, "content-encoding": "identity"}, body) == {"input": "Zürich"}


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "the body came without a Content-Type; send JSON, with the header 'Content-Type: application/json'"),
        ({"content-type": ""}, "the body came without a Content-Type; "),
        ({"content-type": "text/plain"}, "the body came as 'text/plain'; send JSON, with the header"),
        ({"content-type": "application/x-www-form-urlencoded"}, "the body came as 'application/x-www-form-urlencoded'"),
        ({"content-type": "multipart/form-data; boundary=x"}, "the body came as 'multipart/form-data'; send JSON"),
        ({"content-type": "nonsense"}, "the body came as 'text/plain'; send JSON"),
        ({"content-type": f"{JSON}; charset=latin-1"}, "charset 'latin-1': JSON is in UTF-8; send it so"),
        ({"content-type": f"{JSON}; charset=utf-16"}, "charset 'utf-16': JSON is in UTF-8; send it so"),
        (
            {"content-type": JSON, "content-encoding": "gzip"},
            "Content-Encoding 'gzip': compressed bodies are not taken; send the body as it is",
        ),
        ({"content-type": JSON, "content-encoding": "BR, gzip"}, "Content-Encoding 'br, gzip': compressed bodies"),
    ],
)
def test_a_body_that_is_not_sent_as_json(headers, message):
    with pytest.raises(RequestError) as caught:
        read_json(headers, b'{"input": "a"}')
    assert str(caught.value).startswith(message)
    assert (caught.value.status, caught.value.code) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b"", "the body is empty; it has to be a JSON object", "invalid_body"),
        (
            b'{"a": "caf\xe9"}',
            "the body is not valid UTF-8: byte 0xE9 at position 10; send JSON in UTF-8",
            "invalid_json",
        ),
        ('{"a": 1}'.encode("utf-16"), "the body is in UTF-16 or UTF-32; send JSON in UTF-8", "invalid_json"),
        ('{"a": 1}'.encode("utf-16-le"), "the body is in UTF-16 or UTF-32", "invalid_json"),
        ('{"a": 1}'.encode("utf-32"), "the body is in UTF-16 or UTF-32", "invalid_json"),
        (gzip.compress(b"{}", mtime=0), "the body is compressed with gzip; send it as it is", "invalid_json"),
        (
            b"{",
            "the body is not valid JSON: Expecting property name enclosed in double quotes at line 1",
            "invalid_json",
        ),
        (b'{"a":\n 1,}', "the body is not valid JSON: ", "invalid_json"),
        (b"{'a': 1}", "the body is not valid JSON: Expecting property name", "invalid_json"),
        (b"input=a", "the body is not valid JSON: Expecting value at line 1, column 1", "invalid_json"),
        (b"{} {}", "the body is not valid JSON: Extra data at line 1, column 4", "invalid_json"),
        (b'{"a": ' + b"[" * 200_000, "the body is nested too deeply", "invalid_json"),
        (b'{"a": ' * 200_000, "the body is nested too deeply", "invalid_json"),
        (b'{"a": ' + b"9" * 5000 + b"}", "the body holds a number of too many digits", "invalid_json"),
        (b'{"a": 1, "b": 2, "a": 3}', "a: the field stands in the body more than once", "invalid_body"),
        (b"[1]", "the body has to be a JSON object, not a list", "invalid_body"),
        (b'"text"', "the body has to be a JSON object, not a string", "invalid_body"),
        (b"null", "the body has to be a JSON object, not null", "invalid_body"),
        (b"true", "the body has to be a JSON object, not true or false", "invalid_body"),
        (b"5.5", "the body has to be a JSON object, not a number", "invalid_body"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_body_that_is_no_object(body, message, code):
    with pytest.raises(RequestError) as caught:
        read_json({"content-type": JSON}, body)
    assert str(caught.value).startswith(message)
    assert (caught.value.status, caught.value.code) == (400, code)


def test_nothing_of_the_values_is_repeated():
    for body in (b'{"input": "quokka", quokka', b'{"input": "quokka \xe9"}', b'["quokka"]'):
        with pytest.raises(RequestError) as caught:
            read_json({"content-type": JSON}, body)
        assert "quokka" not in str(caught.value)


def test_what_json_allows_is_taken():
    body = {"a": [1, None, True, {"b": [[]]}], "": "\ud800"}
    assert read_json({"content-type": JSON}, json.dumps(body).encode()) == body

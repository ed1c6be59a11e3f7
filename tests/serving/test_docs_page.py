"""The page at /docs: all that the description says, and nothing from elsewhere."""

import html
import re

import pytest
from fastapi.testclient import TestClient
from serving import FakeEngine, FakeIndex

import valuembed
from valuembed.serving.routes.docs_page import describe
from valuembed.serving.server import create_app


@pytest.fixture(scope="module", params=[(), ("a-key",)], ids=["open", "locked"])
def found(request):
    app = create_app(FakeEngine(), keys=request.param, index=FakeIndex())
    with TestClient(app) as client:
        yield client.get("/docs"), app.openapi(), bool(request.param)


def test_it_needs_no_key(found):
    answer, _, _ = found
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")


def test_nothing_is_fetched_from_elsewhere(found):
    answer, _, _ = found
    page = answer.text
    # Nothing that a browser would load, and no script.
    assert re.findall(r"<(script|link|img|iframe|object|embed|form|base)\b[^>]*>", page) == ["link"]
    assert '<link rel="icon" href="data:,">' in page
    assert "@import" not in page
    assert "url(" not in page
    assert set(re.findall(r"https?://[^/\"'< ]*", page)) == {"http://testserver"}
    assert set(re.findall(r'(?:href|src)="([^"]*)"', page)) - {"data:,", "/openapi.json"} == {
        link for link in re.findall(r'href="([^"]*)"', page) if link.startswith("#")
    }


def test_a_browser_may_run_nothing(found):
    answer, _, _ = found
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert (policy["default-src"], policy["script-src"]) == ("'none'", "'none'")
    assert policy["style-src"].startswith("'sha256-")


def test_every_route_field_and_answer_is_there(found):
    answer, schema, locked = found
    page = html.unescape(re.sub(r"<[^>]*>", "", answer.text))
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert f"{method.upper()} {path}" in page
            for response in operation["responses"].values():
                assert response["description"] in page
    for part in schema["components"]["schemas"].values():
        for name, field in part["properties"].items():
            assert name in page
            assert field.get("description", "") in page
    assert f"valuembed {valuembed.__version__}" in page
    assert '"float" or "base64" or null' in page
    assert "list of strings (not empty) (not empty)" in page
    assert """'{"input": ["A cat sleeps.", "A kitten naps."]}'""" in page
    assert """'{"k": 5, "query": "Where is the cat?"}'""" in page
    assert ("Needs a key." in page) == ("Authorization: Bearer" in page) == locked


def test_links_lead_somewhere(found):
    page = found[0].text
    places = set(re.findall(r'id="([^"]*)"', page))
    assert set(re.findall(r'href="#([^"]*)"', page)) <= places


def test_what_is_described_cannot_put_tags_into_the_page():
    wrong = "<script>alert(1)</script>"
    field = {"type": wrong, "description": wrong, "default": wrong, "enum": [wrong]}
    schema = {
        "info": {"title": wrong, "version": wrong, "summary": wrong},
        "paths": {
            f"/{wrong}": {
                "post": {
                    "summary": wrong,
                    "parameters": [{"name": wrong, "schema": field}],
                    "requestBody": {"content": {"application/json": {"schema": {"$ref": f"#/x/{wrong}"}}}},
                    "responses": {wrong: {"description": wrong, "content": {wrong: {}}}},
                }
            }
        },
        "components": {"schemas": {wrong: {"description": wrong, "properties": {wrong: field}}}},
    }
    assert "<script" not in "".join(describe(schema, f"http://{wrong}", wrong))


def test_it_can_be_switched_off():
    with TestClient(create_app(FakeEngine(), docs=False)) as client:
        for path in ("/docs", "/openapi.json", "/redoc"):
            assert client.get(path).status_code == 404
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200

"""What the page asks for, and the page itself, without a browser."""

import json
import re

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from pages import KEY, FakePlayground, PageEngine, other_vector_of
from serving import FakeEngine, running, until, vector_of

from valuembed.serving.admission import Limits
from valuembed.serving.playground.projection import project_2d
from valuembed.serving.playground.routes import PAGE
from valuembed.serving.server import create_app

pytestmark = pytest.mark.slow

TEXTS = ["a cat sleeps", "a kitten naps", "rates rise again"]
OPEN = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def server():
    with running(PageEngine("fake/model"), keys=[KEY]) as (url, app):
        yield url, app


@pytest.fixture(scope="module")
def url(server):
    return server[0]


def ask(url, what, **body):
    return httpx.post(f"{url}/page/{what}", headers=OPEN, json=body)


class TestPage:
    def test_needs_no_key_and_lets_nothing_in_or_out(self, url):
        found = httpx.get(url)
        assert (found.status_code, found.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert found.text == PAGE
        policy = dict(part.strip().split(" ", 1) for part in found.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["connect-src"] == "'self'"
        for kind in ("script-src", "style-src"):
            assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy[kind])
        assert found.headers["x-content-type-options"] == "nosniff"

    def test_is_one_file_that_fetches_nothing(self):
        assert re.findall(r"""(?:https?:)?//[a-z][^\s"']*""", PAGE) == ["http://www.w3.org/2000/svg"]
        assert re.findall(r"\ssrc=|@import|url\(", PAGE) == []

    def test_puts_no_text_into_markup(self):
        assert re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Storage|cookie", PAGE) == []

    def test_is_there_for_engines_with_a_playground_only(self):
        with TestClient(create_app(FakeEngine())) as client:
            # Texts can be sent there all the same, as text-embeddings-inference takes them.
            assert (client.get("/").status_code, client.get("/").headers["allow"]) == (405, "POST, OPTIONS")
            assert client.get("/page/methods").status_code == 404

    @pytest.mark.parametrize(
        ("method", "path"), [("GET", "methods"), ("POST", "compare"), ("POST", "search"), ("POST", "weights")]
    )
    def test_what_it_asks_for_needs_the_key(self, url, method, path):
        found = httpx.request(method, f"{url}/page/{path}", json={})
        assert (found.status_code, found.json()["error"]["code"]) == (401, "invalid_api_key")

    def test_is_described(self, url):
        schema = httpx.get(f"{url}/openapi.json").json()
        paths = {path: next(iter(of.values())) for path, of in schema["paths"].items() if path.startswith("/page")}
        assert set(paths) == {"/page/methods", "/page/compare", "/page/search", "/page/weights"}
        assert all(of["security"] == [{"key": []}] for of in paths.values())
        assert "/" not in schema["paths"]
        assert "HTTPValidationError" not in json.dumps(schema)
        assert all("422" not in of["responses"] for of in paths.values())


def test_methods(url):
    found = httpx.get(f"{url}/page/methods", headers=OPEN).json()
    assert found == {
        "model": "fake/model",
        "methods": [dict(vars(choice)) for choice in FakePlayground.choices],
        "most_compared": 100,
        "most_searched": 2047,
    }


@pytest.mark.parametrize(("method", "vector"), [({}, vector_of), ({"method": "backwards"}, other_vector_of)])
class TestAnswers:
    def test_compare(self, url, method, vector):
        vectors = np.stack([vector(text) for text in TEXTS])
        found = ask(url, "compare", input=TEXTS, **method).json()
        np.testing.assert_allclose(found["similarity"], vectors @ vectors.T, atol=1e-4)
        np.testing.assert_allclose(found["map"], project_2d(vectors), atol=1e-4)
        assert found["truncated"] == 0
        assert ask(url, "compare", input=["l" * 1001, "a"], **method).json()["truncated"] == 1

    def test_search(self, url, method, vector):
        scores = [float(vector(f"document{text}") @ vector("querycats")) for text in TEXTS]
        found = ask(url, "search", query="cats", input=TEXTS, **method).json()
        assert [hit["index"] for hit in found["hits"]] == sorted(range(3), key=lambda row: -scores[row])
        np.testing.assert_allclose([hit["score"] for hit in found["hits"]], sorted(scores, reverse=True), atol=1e-4)

    def test_equal_texts_keep_their_order_and_the_answer_is_bounded(self, url, method, vector):
        found = ask(url, "search", query="cats", input=["same"] * 150, **method).json()
        assert [hit["index"] for hit in found["hits"]] == list(range(100))


def test_weights(url):
    found = ask(url, "weights", input="a cat").json()
    assert (found["about"], found["full"], found["truncated"]) == ("letters", 0.15, False)
    assert found["sequences"][0][2] == {"text": " cat", "weight": pytest.approx(0.075), "is_text": True}


def test_long_lists_are_computed_in_portions():
    """A step's budget of 64 characters, so that others get their turn between them."""
    engine = PageEngine()
    with TestClient(create_app(engine)) as client:
        texts = [f"{number:020}" for number in range(7)]
        found = client.post("/page/search", json={"query": "q", "input": texts, "method": "backwards"})
    assert found.status_code == 200
    assert engine.playground.portions == [["q"], texts[:3], texts[3:6], texts[6:]]


@pytest.mark.parametrize(
    ("what", "body", "message", "param"),
    [
        ("compare", {"input": []}, "input: it has to be a list of texts", "input"),
        ("compare", {"input": "a"}, "input: it has to be a list of texts", "input"),
        ("compare", {"input": ["a", ""]}, "input: item 1 is an empty text, which has no embedding", "input"),
        ("compare", {"input": ["a", 5]}, "input: item 1 cannot be embedded: it is not a string but int", "input"),
        ("compare", {"input": ["nul \0"]}, "input: item 0 cannot be embedded: it is not text: NUL", "input"),
        ("compare", {"input": ["a"] * 101}, "input: 101 texts; at most 100 are taken here", "input"),
        ("compare", {"input": ["a"], "method": "va"}, "method: 'va' is not offered; served, backwards are", "method"),
        ("compare", {"input": ["a", "untokenizable"]}, "input: item 1 cannot be embedded: it is unt", "input"),
        ("compare", {"input": ["a"], "top": 5}, "top: no such field", "top"),
        ("search", {"input": ["a"]}, "query: Field required", "query"),
        ("search", {"input": ["a"], "query": ""}, "query: it is an empty text, which has no embedding", "query"),
        ("search", {"input": ["a"], "query": 5}, "query: it cannot be embedded: it is not a string but int", "query"),
        ("search", {"input": ["a"] * 2048, "query": "a"}, "input: 2,048 texts; at most 2,047 are taken here", "input"),
        ("weights", {"input": "x" * 20_001}, "input: 20,001 characters; weights are shown of at most 20,000", "input"),
        ("weights", {"input": ["a"]}, "input: it cannot be embedded: it is not a string but list", "input"),
        ("weights", {"input": "unweighable"}, "the text is unweighable", "input"),
    ],
)
def test_wrong_requests(url, what, body, message, param):
    found = ask(url, what, **body)
    error = found.json()["error"]
    assert (found.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert error["message"].startswith(message)


@pytest.mark.parametrize(
    ("text", "method", "message", "code"),
    [
        ("unreadable", "served", "input: item 1: a vector is not finite", "model_failed"),
        ("unreadable", "backwards", "a vector is not finite", "model_failed"),
        ("poison", "served", "input: item 1: the model failed on it", "model_failed"),
        ("poison", "backwards", "the server failed", "internal"),
    ],
)
def test_a_model_that_fails(url, text, method, message, code):
    found = ask(url, "compare", input=["a", text], method=method)
    error = found.json()["error"]
    assert (found.status_code, error["message"], error["code"]) == (500, message, code)


def test_logs_hold_no_texts(url, caplog, capfd):
    caplog.set_level("DEBUG", "valuembed")
    for method in ("served", "backwards"):
        for text in ("quokka", "quokka poison", "quokka unreadable", "quokka untokenizable"):
            ask(url, "compare", input=[text], method=method)
            ask(url, "search", input=[text], query=text, method=method)
    ask(url, "weights", input="quokka unweighable")
    said = caplog.text + "".join(capfd.readouterr())
    assert "RuntimeError at" in said
    assert "quokka" not in said


def test_texts_are_counted_and_given_back(server):
    url, app = server
    admission = app.state.serving.admission
    for method in ("served", "backwards"):
        ask(url, "search", input=TEXTS, query="a", method=method)
        ask(url, "search", input=["poison"], query="a", method=method)
    until(lambda: (admission.requests, admission.texts, admission.bytes) == (0, 0, 0))
    with running(PageEngine(), limits=Limits(max_texts=4, max_waiting_texts=4)) as (small, _):
        for method in ("served", "backwards"):
            found = httpx.post(f"{small}/page/search", json={"query": "q", "input": ["a"] * 3, "method": method})
            assert found.status_code == 200
        assert httpx.get(f"{small}/page/methods").json()["most_compared"] == 4
        found = httpx.post(f"{small}/page/compare", json={"input": ["a"] * 5})
        assert found.json()["error"]["message"] == "input: 5 texts; at most 4 are taken here"


def test_a_full_server_says_so():
    engine = PageEngine()
    with running(engine, limits=Limits(max_texts=4, max_waiting_texts=4)) as (url, app):
        engine.hold()
        app.state.serving.admission.texts = 4
        for body in ({"input": ["a"]}, {"input": ["a"], "method": "backwards"}):
            found = httpx.post(f"{url}/page/compare", json=body)
            assert (found.status_code, found.json()["error"]["code"]) == (429, "server_busy")
        app.state.serving.admission.texts = 0
        engine.open.set()


def test_the_whole_answer_has_the_time_of_one():
    engine = PageEngine()
    with running(engine, limits=Limits(answer_seconds=0.2)) as (url, _):
        engine.hold()
        for method in ("served", "backwards"):
            found = httpx.post(f"{url}/page/compare", json={"input": ["a"], "method": method})
            assert (found.status_code, found.json()["error"]["message"]) == (503, "no answer was found in 0.2 s")
        engine.open.set()


def test_a_model_that_takes_nothing():
    engine = PageEngine()
    with running(engine, limits=Limits(stuck_seconds=0.05)) as (url, app):
        engine.hold()
        app.state.serving.batcher.submit(["a"])
        until(lambda: httpx.get(f"{url}/ready").status_code == 503)
        for body in ({"input": ["a"]}, {"input": ["a"], "method": "backwards"}):
            found = httpx.post(f"{url}/page/compare", json=body)
            assert (found.status_code, found.json()["error"]["code"]) == (503, "unavailable")
        engine.open.set()

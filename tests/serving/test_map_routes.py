"""/v1/map, and the page to search with, without a browser."""

import base64
import re

import numpy as np
import pytest
from fastapi.testclient import TestClient
from pages import KEY, PageEngine
from serving import FakeEngine
from stored_map import FakeIndex, FakeMap, hit, map_of

from valuembed.errors import IndexUnavailableError
from valuembed.serving.search_page.routes import PAGE
from valuembed.serving.server import create_app


@pytest.fixture
def index_map():
    return FakeMap(FakeIndex())


@pytest.fixture
def client(index_map):
    with TestClient(create_app(PageEngine(), index=index_map.index, index_map=index_map)) as client:
        yield client


class TestMap:
    def test_places_areas_and_words(self, client, index_map):
        found = client.get("/v1/map").json()
        assert {name: found[name] for name in ("object", "state", "step", "done", "version")} == {
            "object": "map", "state": "ready", "step": None, "done": None, "version": index_map.found.version,
        }  # fmt: skip
        shown = found["map"]
        assert (shown["version"], shown["rows"], shown["points"]) == (index_map.found.version, 6, 6)
        numbers = np.frombuffer(base64.b64decode(shown["places"]), "<u2").reshape(-1, 2)
        np.testing.assert_allclose(numbers / 32767.5 - 1, index_map.found.places, atol=2 / 65535)
        assert base64.b64decode(shown["area_of"]) == bytes([0, 0, 0, 1, 1, 1])
        assert shown["areas"] == [
            {"words": ["harbour", "ships"], "rows": 3, "place": [-0.6, 0.0], "examples": [0, 1, 2]},
            {"words": ["herbs", "sun"], "rows": 3, "place": [0.6, 0.0], "examples": [3, 4, 5]},
        ]

    def test_a_map_that_the_client_has_is_not_sent_again(self, client, index_map):
        found = client.get("/v1/map", params={"known": index_map.found.version}).json()
        assert (found["map"], found["version"]) == (None, index_map.found.version)
        assert client.get("/v1/map", params={"known": "other"}).json()["map"] is not None

    def test_while_it_is_made(self, client, index_map):
        index_map.found, index_map.told = None, {"state": "making", "step": "placing", "done": 0.25}
        assert client.get("/v1/map").json() == {
            "object": "map", "state": "making", "step": "placing", "done": 0.25, "map": None, "version": None,
        }  # fmt: skip

    def test_passages_by_number_and_by_key(self, client, index_map):
        found = client.post("/v1/map/passages", json={"version": index_map.found.version, "numbers": [5, 0]}).json()
        assert found == {"object": "list", "data": [hit("garden.pdf#2"), hit("harbour.md#0")]}
        found = client.post("/v1/map/passages", json={"keys": ["no key", "garden.pdf#1"]}).json()
        assert found["data"] == [None, hit("garden.pdf#1")]

    def test_places_of_hits(self, client, index_map):
        body = {"version": index_map.found.version, "keys": ["garden.pdf#0", "no key"]}
        assert client.post("/v1/map/places", json=body).json() == {"object": "list", "data": [3, None]}

    def test_numbers_of_another_map(self, client, index_map):
        before = index_map.found.version
        index_map.found = map_of(index_map.index.keys, "2:6")
        for path, what in (("passages", {"numbers": [0]}), ("places", {"keys": []})):
            found = client.post(f"/v1/map/{path}", json={"version": before, **what})
            assert (found.status_code, found.json()["error"]["code"]) == (404, "map_changed")
            assert found.json()["error"]["message"] == f"there is no map of version '{before}' any more; GET /v1/map"

    @pytest.mark.parametrize(
        ("path", "body", "message"),
        [
            ("passages", {}, "give either numbers or keys"),
            ("passages", {"numbers": [0], "keys": ["a"]}, "give either numbers or keys"),
            ("passages", {"numbers": [6]}, "numbers: 6; those of this map end at 5"),
            ("passages", {"numbers": [-1]}, "numbers: Input should be greater than or equal to 0"),
            ("passages", {"keys": ["a"] * 101}, "keys: List should have at most 100 items after validation, not 101"),
            ("passages", {"what": 1}, "what: no such field"),
            ("places", {"version": "a"}, "keys: Field required"),
        ],
    )
    def test_wrong_requests(self, client, index_map, path, body, message):
        if "numbers" in body:
            body = {"version": index_map.found.version, **body}
        found = client.post(f"/v1/map/{path}", json=body)
        assert found.status_code == 400
        assert found.json()["error"]["message"].startswith(message)

    def test_an_index_that_is_gone(self, client, index_map, monkeypatch):
        def gone():
            raise IndexUnavailableError("the index is gone from where it was; it is served again once it is back")

        monkeypatch.setattr(index_map, "find", gone)
        found = client.get("/v1/map")
        assert (found.status_code, found.json()["error"]["code"]) == (503, "index_unavailable")

    def test_needs_the_key(self, index_map):
        with TestClient(create_app(PageEngine(), keys=[KEY], index=index_map.index, index_map=index_map)) as client:
            for method, path in (("GET", ""), ("POST", "/passages"), ("POST", "/places")):
                assert client.request(method, f"/v1/map{path}", json={}).status_code == 401
            assert client.get("/").status_code == client.get("/playground").status_code == 200

    def test_ends_with_the_server(self, index_map):
        with TestClient(create_app(PageEngine(), index=index_map.index, index_map=index_map)):
            assert not index_map.closed
        assert index_map.closed

    def test_is_only_there_with_an_index(self):
        with TestClient(create_app(PageEngine())) as client:
            assert client.get("/v1/map").status_code == 404


class TestPage:
    def test_is_at_the_root_and_lets_nothing_in_or_out(self, client):
        found = client.get("/")
        assert (found.status_code, found.headers["content-type"], found.text) == (200, "text/html; charset=utf-8", PAGE)
        policy = dict(part.strip().split(" ", 1) for part in found.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["connect-src"] == "'self'"
        assert len(re.findall(r"'sha256-[\w+/]{43}='", policy["script-src"])) == PAGE.count("<script>")
        assert len(re.findall(r"'sha256-[\w+/]{43}='", policy["style-src"])) == 1
        assert client.get("/playground").text.startswith("<!doctype html>")
        assert client.get("/playground").text != PAGE

    def test_is_one_file_that_fetches_nothing(self):
        assert re.findall(r"(?:https?:)?//[a-z][^\s\"']*", PAGE) == []
        assert re.findall(r"\ssrc=|@import|url\(|\sstyle=", PAGE) == []
        assert re.findall(r"<!-- .* -->", PAGE) == [], "every part is in it"

    def test_puts_no_text_into_markup(self):
        assert re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Storage|cookie", PAGE) == []

    def test_the_other_page_is_at_the_root_where_there_is_no_index(self):
        with TestClient(create_app(PageEngine())) as client:
            assert client.get("/").text == client.get("/playground").text != PAGE

    def test_is_there_for_engines_without_a_playground(self, index_map):
        with TestClient(create_app(FakeEngine(), index=index_map.index, index_map=index_map)) as client:
            assert client.get("/").text == PAGE
            assert client.get("/playground").status_code == 404

"""Routes of a server with an index, around an engine and an index that need neither model nor files."""

import asyncio
import json
import logging
import threading
import time
from concurrent.futures import Future

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from serving import ROWS, WIDTH, FakeEngine, FakeIndex, gone, running, until, vector_of

from valuembed.errors import ReadingError, RequestError
from valuembed.serving.admission import Admission, Limits
from valuembed.serving.context import ServerContext
from valuembed.serving.metrics import Metrics
from valuembed.serving.middleware import ClientGone
from valuembed.serving.server import create_app

KEY = "a-key"


@pytest.fixture
def index():
    return FakeIndex()


@pytest.fixture
def client(index):
    app = create_app(FakeEngine("fake/model"), index=index, keys=[KEY], limits=Limits(max_hits=5))
    with TestClient(app, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


def search(client, **body):
    return client.post("/v1/search", json=body)


def texts(found):
    return [hit["text"] for hit in found.json()["data"]]


def by_score(vector):
    """The rows as they should come, and their cosines."""
    scores = {text: float(vector_of("document" + text) @ vector) for text in ROWS}
    return sorted(ROWS, key=lambda text: -scores[text]), scores


class TestSearch:
    def test_a_query_is_embedded_as_one(self, client, index):
        """The fake engine embeds a role as letters in front of a text."""
        found = search(client, query="a cat")
        expected, scores = by_score(vector_of("querya cat"))
        assert (found.status_code, found.headers["content-type"], texts(found)) == (200, "application/json", expected)
        answer = found.json()
        assert [hit["score"] for hit in answer["data"]] == pytest.approx([scores[text] for text in expected])
        assert {name: answer[name] for name in ("object", "model", "usage")} == {
            "object": "list",
            "model": "fake/model",
            "usage": {"prompt_tokens": 2, "total_tokens": 2},
        }
        assert index.asked == [{"query": "a cat", "like": None, "k": 5, "where": None, "hybrid": None, "centre": None}]
        assert answer["data"][0]["words"] == [[0, 1]]

    def test_a_vector(self, client, index):
        vector = vector_of("documentshares fell")
        found = search(client, vector=vector.tolist(), k=1)
        assert texts(found) == ["shares fell"]
        assert found.json()["usage"] == {"prompt_tokens": 0, "total_tokens": 0}
        assert index.asked[0]["query"] is None
        # Whole numbers are numbers too.
        assert search(client, vector=[1, *[0] * (WIDTH - 1)]).status_code == 200

    def test_a_row(self, client):
        found = search(client, like="k1", k=2)
        assert found.status_code == 200
        assert sorted(texts(found)) == ["a cat sleeps", "a late train"]

    def test_every_option_arrives(self, client, index):
        assert search(client, query="a", k=2, where="true", hybrid=True, centre=False).status_code == 200
        assert index.asked == [{"query": "a", "like": None, "k": 2, "where": "true", "hybrid": True, "centre": False}]

    def test_null_is_as_if_a_field_were_left_out(self, client, index):
        names = ("vector", "like", "k", "where", "hybrid", "centre")
        assert search(client, query="a", **dict.fromkeys(names)).json() == search(client, query="a").json()
        assert index.asked[0] == index.asked[1]

    def test_what_the_index_holds(self, client):
        assert client.get("/v1/index").json() == {
            "rows": 3,
            "columns": {"text": "string"},
            "width": WIDTH,
            "model": "fake",
            "method": "va",
            "hybrid": False,
            "sources": ["rows"],
        }

    def test_searches_are_counted(self, client):
        search(client, query="a cat")
        search(client, like="k1")
        said = client.get("/metrics").text
        assert "valuembed_search_seconds_count 2.0" in said
        assert 'valuembed_requests_total{route="/v1/search",status="200"} 2.0' in said
        # A row's vector is there; only the query was embedded.
        assert "valuembed_texts_total 1.0" in said


class TestErrors:
    @pytest.mark.parametrize(
        ("body", "message", "param"),
        [
            ({}, "none was given; give one of query, vector, like", "query"),
            ({"query": None}, "none was given; give one of query, vector, like", "query"),
            (
                {"query": "a", "like": "k1"},
                "query and like were given; give one of query, vector, like",
                "like",
            ),
            ({"query": ""}, "query: it is blank, so there is nothing to look for", "query"),
            ({"query": " \n"}, "query: it is blank, so there is nothing to look for", "query"),
            ({"query": 5}, "query: it cannot be embedded: it is not a string but int", "query"),
            ({"query": "nul \0"}, "query: it cannot be embedded: it is not text: NUL character", "query"),
            ({"query": "x" * 1_000_001}, "query: it cannot be embedded: it is 1,000,001 bytes long", "query"),
            ({"query": "untokenizable"}, "query: it cannot be embedded: it is untokenizable", "query"),
            (
                {"vector": [1.0, 2.0]},
                "vector: 2 numbers; vectors of this index have 32, as /v1/embeddings gives them with dimensions=32",
                "vector",
            ),
            ({"vector": []}, "vector: List should have at least 1 item", "vector"),
            ({"vector": [0.0] * WIDTH}, "vector: it has to be finite, and not all zeros", "vector"),
            ({"vector": [1e300] * WIDTH}, "vector: it has to be finite, and not all zeros", "vector"),
            ({"vector": ["a"] * WIDTH}, "vector: Input should be a valid number", "vector"),
            ({"vector": "a"}, "vector: Input should be a valid list", "vector"),
            ({"like": ""}, "like: String should have at least 1 character", "like"),
            ({"query": "a", "k": 0}, "k: Input should be greater than or equal to 1", "k"),
            ({"query": "a", "k": 6}, "k: 6; at most 5 are returned", "k"),
            ({"query": "a", "k": "5"}, "k: Input should be a valid integer", "k"),
            (
                {"query": "a", "where": "stars > 3"},
                "the filter 'stars > 3' cannot be applied; columns of the index: text (string)",
                None,
            ),
            ({"like": "k1", "where": "stars > 3"}, "the filter 'stars > 3' cannot be applied; columns of", None),
            (
                {"like": "k1", "hybrid": True},
                "hybrid: it looks for the words of a query, and like has none; leave it out",
                "hybrid",
            ),
            ({"query": "a", "filter": "x"}, "filter: no such field; legal: query, vector, like, k, where", "filter"),
        ],
    )
    def test_a_wrong_request(self, client, body, message, param):
        found = search(client, **body)
        assert found.status_code == 400
        error = found.json()["error"]
        assert error["message"].startswith(message)
        assert (error["type"], error["param"]) == ("invalid_request_error", param)

    def test_numbers_that_are_none(self, client):
        """Python's JSON has words for them."""
        sent = json.dumps({"vector": [float("nan")] * WIDTH})
        found = client.post("/v1/search", content=sent, headers={"Content-Type": "application/json"})
        assert (found.status_code, found.json()["error"]["message"]) == (
            400,
            "vector: it has to be finite, and not all zeros",
        )

    def test_an_unknown_row(self, client):
        found = search(client, like="k9")
        assert (found.status_code, found.json()["error"]) == (
            404,
            {
                "message": "the index has no row with the key 'k9'; give the key of a hit",
                "type": "invalid_request_error",
                "param": "like",
                "code": "not_found",
            },
        )

    def test_a_wrong_filter_is_said_before_anything_is_embedded(self, client):
        assert search(client, query="a", where="stars > 3").status_code == 400
        assert client.app.state.serving.batcher.engine.steps == [["a"]], "the probe alone"

    @pytest.mark.parametrize("body", [{"query": "a"}, {"like": "k1"}, None])
    def test_an_index_that_is_gone_and_comes_back(self, client, index, body, caplog):
        def ask():
            return client.get("/v1/index") if body is None else search(client, **body)

        index.broken = gone()
        found = ask()
        assert (found.status_code, found.headers["retry-after"]) == (503, "5")
        assert found.json()["error"] == {
            "message": "the index is gone from where it was; it is served again once it is back",
            "type": "server_error",
            "param": None,
            "code": "index_unavailable",
        }
        assert "the index is unavailable: IndexUnavailableError at" in caplog.text
        # The model is as well as before.
        assert client.get("/ready").status_code == 200
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200
        index.broken = None
        assert ask().status_code == 200

    def test_a_damaged_vector(self, client, index):
        index.broken = ReadingError("the index: vector 3 (counted from 0) is zero or not finite")
        found = search(client, like="k1")
        assert (found.status_code, found.json()["error"]["code"]) == (500, "index_failed")

    def test_keys(self, client):
        wrong = {"Authorization": "Bearer wrong"}
        assert client.post("/v1/search", json={"query": "a"}, headers=wrong).status_code == 401
        assert client.get("/v1/index", headers=wrong).status_code == 401

    @pytest.mark.parametrize(("method", "path"), [("POST", "/v1/search"), ("GET", "/v1/index")])
    def test_without_an_index(self, method, path):
        with TestClient(create_app(FakeEngine())) as client:
            found = client.request(method, path, json={"query": "a"})
        assert (found.status_code, found.json()["error"]["message"]) == (
            404,
            f"there is no '{path}' here, for no index is served; start the server with: valuembed serve --index DIR",
        )

    def test_nothing_of_a_request_is_logged(self, client, index, caplog):
        caplog.set_level(logging.DEBUG)
        for body in ({"query": "quokka"}, {"query": "quokka", "where": "quokka"}, {"like": "quokka"}):
            search(client, **body)
        index.broken = RuntimeError("failed on a quokka")
        assert search(client, query="quokka").status_code == 500
        assert "a request failed: RuntimeError at" in caplog.text
        assert "quokka" not in "".join(record.getMessage() for record in caplog.records if record.name != "httpx")


def test_a_query_that_is_too_long_is_cut(client):
    """What the model does not take of it is searched without; the words of all of it are looked for."""
    assert search(client, query="l " * 50_000).status_code == 200


@pytest.mark.slow
class TestOthersAreServedMeanwhile:
    def test_a_search_holds_up_nobody(self, index):
        """The index is asked on threads of its own: neither the event loop nor the model waits for it."""
        index.open.clear()
        with running(FakeEngine(), index=index) as (url, _):
            answers = []

            def ask():
                answers.append(httpx.post(f"{url}/v1/search", json={"query": "a cat"}, timeout=30))

            asking = [threading.Thread(target=ask) for _ in range(12)]
            for thread in asking:
                thread.start()
            assert index.entered.wait(20)
            for _ in range(3):
                answer = httpx.post(f"{url}/v1/embeddings", json={"input": "a"}, timeout=30)
                np.testing.assert_allclose(answer.json()["data"][0]["embedding"], vector_of("a"), atol=1e-6)
            assert httpx.get(f"{url}/ready").status_code == 200
            index.open.set()
            for thread in asking:
                thread.join(30)
            assert [answer.status_code for answer in answers] == [200] * 12

    def test_a_search_that_takes_too_long(self, index):
        index.open.clear()
        with running(FakeEngine(), index=index, limits=Limits(answer_seconds=0.3)) as (url, app):
            found = httpx.post(f"{url}/v1/search", json={"query": "a cat"}, timeout=30)
            assert (found.status_code, found.json()["error"]["message"]) == (503, "no answer was found in 0.3 s")
            index.open.set()
            until(lambda: app.state.serving.admission.requests == 0)

    def test_a_client_that_goes_away_takes_its_search_out_of_the_queue(self, index):
        index.open.clear()
        with running(FakeEngine(), index=index) as (url, app):

            async def leave():
                async with httpx.AsyncClient() as client:
                    asked = [
                        asyncio.ensure_future(client.post(f"{url}/v1/search", json={"like": "k1"})) for _ in range(9)
                    ]
                    end = time.monotonic() + 20
                    while app.state.serving.admission.requests < 9 and time.monotonic() < end:
                        await asyncio.sleep(0.01)
                    for one in asked:
                        one.cancel()

            asyncio.run(leave())
            until(lambda: app.state.serving.admission.requests == 0)
            index.open.set()
            assert httpx.post(f"{url}/v1/search", json={"like": "k2"}, timeout=30).status_code == 200
            # Those that had begun went on to their end.
            assert len(index.asked) <= 4 + 1

    @pytest.mark.parametrize("left", [True, False])
    def test_what_nobody_waits_for_is_cancelled_before_its_request_is_over(self, left):
        """Not in a later turn of the loop, in which a thread that is free would begin it."""

        class Request:
            async def receive(self):
                await asyncio.sleep(0 if left else 60)
                return {"type": "http.disconnect"}

        serving = ServerContext("fake", None, Admission(Limits(answer_seconds=0.01)), Metrics())

        async def give_up(future):
            with pytest.raises(ClientGone if left else RequestError):
                await serving.wait(Request(), future)
            return future.cancelled()

        assert asyncio.run(give_up(Future()))

"""Ollama's routes, as its clients send and read them."""

import json
import logging

import numpy as np
import pytest
from fastapi.testclient import TestClient
from serving import WIDTH, FakeEngine, vector_of

import valuembed
from valuembed.errors import ReadingError
from valuembed.serving.admission import Limits
from valuembed.serving.jobs import ModelFacts
from valuembed.serving.server import create_app

KEY = "a-key"


class Long(FakeEngine):
    """An engine whose vectors are twice as long."""

    facts = ModelFacts(max_tokens=77)

    def run(self, batch):
        return 2 * super().run(batch)


@pytest.fixture(scope="module")
def app():
    return create_app(Long("fake/model"), keys=[KEY], limits=Limits(max_texts=20))


@pytest.fixture(scope="module")
def client(app):
    with TestClient(app, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


def embed(client, **body):
    return client.post("/api/embed", json=body)


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-6)


class TestEmbed:
    @pytest.mark.parametrize("count", [1, 2, 20])
    def test_vectors_have_length_one(self, client, count):
        texts = [f"text {number}" for number in range(count)]
        found = embed(client, model="fake/model", input=texts)
        assert (found.status_code, found.headers["content-type"]) == (200, "application/json")
        answer = found.json()
        close(answer["embeddings"], [vector_of(text) for text in texts])
        # Two words, two tokens.
        assert (answer["model"], answer["prompt_eval_count"], answer["load_duration"]) == ("fake/model", 2 * count, 0)
        assert answer["total_duration"] > 0
        assert list(answer) == ["model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"]

    def test_one_text(self, client):
        close(embed(client, model="fake/model", input="a b").json()["embeddings"], [vector_of("a b")])

    def test_no_text(self, client):
        """An empty list is no error for Ollama."""
        answer = embed(client, model="fake/model", input=[]).json()
        assert (answer["embeddings"], answer["prompt_eval_count"]) == ([], 0)

    def test_dimensions_are_cut_and_scaled(self, client):
        expected = vector_of("abc")[:5]
        close(embed(client, input="abc", dimensions=5).json()["embeddings"], [expected / np.linalg.norm(expected)])

    def test_what_other_servers_would_heed_is_taken(self, client):
        more = {"options": {"num_ctx": 8, "stop": None}, "keep_alive": "5m", "truncate": True}
        close(embed(client, input="a", **more).json()["embeddings"], [vector_of("a")])
        for keep_alive in (-1, 0.5, None):
            assert embed(client, input="a", keep_alive=keep_alive).status_code == 200

    @pytest.mark.parametrize("model", ["fake/model:latest", "fake/model"])
    def test_a_name_with_the_tag_that_clients_add(self, client, model):
        assert embed(client, input="a", model=model).json()["model"] == model

    def test_left_out_or_null_is_the_model_that_is_served(self, client):
        assert embed(client, input="a").json()["model"] == "fake/model"
        assert embed(client, input="a", model=None, dimensions=None, some_other=None).status_code == 200

    def test_texts_that_are_too_long(self, client):
        long = "l" * 1001
        assert embed(client, input=long).status_code == 200
        found = embed(client, input=["a", long], truncate=False)
        message = "input: item 1 cannot be embedded: it is longer than the model takes, and truncate is false"
        assert (found.status_code, found.json()) == (400, {"error": message})

    def test_the_older_route(self, client):
        """Its vector is the model's own, which here has the length 2."""
        found = client.post("/api/embeddings", json={"model": "fake/model", "prompt": "a b", "options": {}})
        assert list(found.json()) == ["embedding"]
        close(found.json()["embedding"], 2 * vector_of("a b"))


def test_vectors_are_those_of_encode(folder):
    encoder = valuembed.load(folder, "wva", layers=[1, 2])
    with TestClient(create_app(encoder)) as client:
        texts = ["A cat sleeps.", "Shares fell."]
        close(embed(client, input=texts).json()["embeddings"], encoder.encode(texts))
        found = client.post("/api/embeddings", json={"prompt": texts[0]}).json()["embedding"]
        close(found, encoder.encode(texts[0]))
        shown = client.post("/api/show", json={}).json()["model_info"]
        assert shown["valuembed.context_length"] == encoder.max_seq_length
        assert shown["valuembed.embedding_length"] == encoder.get_embedding_dimension()


class TestErrors:
    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ({}, "input: Field required"),
            ({"input": None}, "input: it has to be a text or a list of texts"),
            ({"input": 5}, "input: it has to be a text or a list of texts"),
            ({"input": {"a": 1}}, "input: it has to be a text or a list of texts"),
            ({"input": ""}, "input: it is an empty text, which has no embedding"),
            ({"input": ["a", ""]}, "input: item 1 is an empty text, which has no embedding"),
            ({"input": ["a", None]}, "input: item 1 is null, and no text"),
            ({"input": ["a", {}]}, "input: item 1 cannot be embedded: it is not a string but dict"),
            ({"input": [5]}, "input: it has to be a text or a list of texts; token ids are taken at /v1/embeddings"),
            ({"input": [[5]]}, "input: it has to be a text or a list of texts; token ids are taken at /v1/embeddings"),
            ({"input": "untokenizable"}, "input: it cannot be embedded: it is untokenizable"),
            ({"input": ["a"] * 21}, "input: 21 texts; a request may hold 20"),
            ({"input": "a", "dimensions": 33}, "dimensions: 33 is more than the 32 that vectors of this model have"),
            ({"input": "a", "dimensions": 0}, "dimensions: Input should be greater than or equal to 1"),
            ({"input": "a", "truncate": "no"}, "truncate: Input should be a valid boolean"),
            ({"input": "a", "options": []}, "options: Input should be a valid dictionary"),
            ({"input": "a", "keep_alive": []}, "keep_alive: Input should be a valid string"),
            ({"input": "a", "model": 5}, "model: Input should be a valid string"),
            (
                {"input": "a", "template": "none"},
                "template: no such field; legal: model, options, keep_alive, input, truncate, dimensions",
            ),
        ],
    )
    def test_a_wrong_request(self, client, body, message):
        found = embed(client, **body)
        assert (found.status_code, found.json()) == (400, {"error": message})

    @pytest.mark.parametrize(
        ("prompt", "message"),
        [
            ("", "prompt: it is an empty text, which has no embedding"),
            (["a"], "prompt: it has to be a text"),
            ("untokenizable", "prompt: it cannot be embedded: it is untokenizable"),
        ],
    )
    def test_a_wrong_prompt(self, client, prompt, message):
        found = client.post("/api/embeddings", json={"prompt": prompt})
        assert (found.status_code, found.json()) == (400, {"error": message})

    @pytest.mark.parametrize("path", ["embed", "embeddings", "show"])
    def test_another_model(self, client, path):
        texts = {"embed": {"input": "a"}, "embeddings": {"prompt": "a"}, "show": {}}[path]
        for model in ("nomic-embed-text", "fake/model:v2"):
            found = client.post(f"/api/{path}", json={"model": model, **texts})
            message = f"model {model!r} is not served; 'fake/model' is"
            assert (found.status_code, found.json()) == (404, {"error": message})

    def test_a_missing_key(self, client):
        for method, path in (("POST", "embed"), ("GET", "tags"), ("GET", "version"), ("POST", "show")):
            found = client.request(method, f"/api/{path}", json={}, headers={"Authorization": "Bearer wrong"})
            message = "the key is missing or wrong; send it as 'Authorization: Bearer KEY'"
            assert (found.status_code, found.json()) == (401, {"error": message})

    def test_bodies_that_are_none(self, client):
        headers = {"content-type": "application/json"}
        found = client.post("/api/embed", content=b"{", headers=headers)
        assert found.status_code == 400
        assert found.json()["error"].startswith("the body is not valid JSON")
        found = client.post("/api/embed", content=b'{"input": "a"}', headers={"content-type": "text/plain"})
        assert found.status_code == 415
        assert found.json()["error"].startswith("the body came as 'text/plain'; send JSON")

    @pytest.mark.parametrize(
        ("method", "path", "status", "message"),
        [
            ("GET", "/api/embed", 405, "GET is not taken at '/api/embed'; use POST"),
            (
                "POST",
                "/api/chat",
                404,
                "there is no '/api/chat' here; of Ollama's API, this server embeds at /api/embed and "
                "/api/embeddings, and generates nothing",
            ),
            (
                "POST",
                "/api/api/embed",
                404,
                "there is no '/api/api/embed' here; Ollama's clients find /api/embed if their address ends with the "
                "port",
            ),
        ],
    )
    def test_paths_and_methods_that_do_not_exist(self, client, method, path, status, message):
        found = client.request(method, path)
        assert (found.status_code, found.json()) == (status, {"error": message})

    def test_a_model_that_fails_and_keeps_its_texts_out_of_the_log(self, client, caplog):
        with caplog.at_level(logging.DEBUG, "valuembed"):
            found = embed(client, input=["a", "a quokka with poison"])
        message = "input: item 1: the model failed on it"
        assert (found.status_code, found.json()) == (500, {"error": message})
        assert "quokka" not in caplog.text

    def test_a_full_server(self):
        with TestClient(create_app(FakeEngine(), limits=Limits(max_texts=2, max_waiting_texts=2))) as client:
            client.app.state.serving.admission.admit().add_texts(1)
            found = embed(client, input=["a", "b"])
            message = "the server is full: 1 text is being served; try again in 1 s"
            assert (found.status_code, found.json()) == (429, {"error": message})
            assert found.headers["retry-after"] == "1"


def test_models_and_version(client):
    (model,) = client.get("/api/tags").json()["models"]
    assert (model["name"], model["model"]) == ("fake/model", "fake/model")
    assert client.get("/api/version").json() == {"version": valuembed.__version__}


@pytest.mark.parametrize("body", [{"model": "fake/model"}, {"name": "fake/model:latest"}, {"verbose": True}])
def test_show(client, body):
    shown = client.post("/api/show", json=body).json()
    assert shown["capabilities"] == ["embedding"]
    assert shown["model_info"] == {
        "general.architecture": "valuembed",
        "valuembed.embedding_length": WIDTH,
        "valuembed.context_length": 77,
    }


def test_requests_are_counted_like_any_other(client, app):
    embed(client, input=["a b", "c"])
    page = client.get("/metrics").text
    assert 'valuembed_requests_total{route="/api/embed",status="200"}' in page
    admission = app.state.serving.admission
    assert (admission.requests, admission.texts, admission.bytes) == (0, 0, 0)


def test_a_vector_that_is_not_finite_is_an_error(client):
    found = embed(client, input="unreadable")
    assert (found.status_code, found.json()) == (
        500,
        {"error": f"input: item 0: {ReadingError('a vector is not finite')}"},
    )


def test_an_answer_is_written_as_described(client, app):
    parts = app.openapi()["components"]["schemas"]
    answer = embed(client, input="a").json()
    assert set(answer) == set(parts["OllamaEmbedAnswer"]["properties"])
    assert json.dumps(parts["OllamaError"]["properties"]) == '{"error": {"type": "string", "title": "Error"}}'

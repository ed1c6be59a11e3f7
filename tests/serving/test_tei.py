"""Routes of text-embeddings-inference, as its clients send and read them."""

import numpy as np
import pytest
from fastapi.testclient import TestClient
from serving import FakeEngine, vector_of

import valuembed
from valuembed.serving.admission import Limits
from valuembed.serving.jobs import ModelFacts
from valuembed.serving.server import create_app

KEY = "a-key"


class Long(FakeEngine):
    """An engine with instructions, whose vectors are twice as long."""

    facts = ModelFacts("wva", "bfloat16", 77, {"query": "Find: ", "topic": "Topic: "})

    def run(self, batch):
        return 2 * super().run(batch)


@pytest.fixture(scope="module")
def app():
    return create_app(Long("fake/model"), keys=[KEY], limits=Limits(max_texts=20, max_ids=3))


@pytest.fixture(scope="module")
def client(app):
    with TestClient(app, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


def embed(client, path="/embed", **body):
    return client.post(path, json=body)


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-6)


class TestEmbed:
    @pytest.mark.parametrize("path", ["/embed", "/"])
    @pytest.mark.parametrize("count", [1, 2, 20])
    def test_a_list_of_vectors(self, client, path, count):
        texts = [f"text {number}" for number in range(count)]
        found = embed(client, path, inputs=texts)
        assert (found.status_code, found.headers["content-type"]) == (200, "application/json")
        close(found.json(), [vector_of(text) for text in texts])

    def test_one_text(self, client):
        close(embed(client, inputs="a b").json(), [vector_of("a b")])

    def test_token_ids(self, client):
        close(embed(client, inputs=[[97, 98], [99]]).json(), [vector_of("ab"), vector_of("c")])

    def test_as_the_model_gives_them(self, client):
        """Its vectors have the length 2."""
        close(embed(client, inputs="abc", normalize=False).json(), [2 * vector_of("abc")])
        close(embed(client, inputs="abc", normalize=False, dimensions=5).json(), [2 * vector_of("abc")[:5]])

    def test_dimensions_are_cut_and_scaled(self, client):
        expected = vector_of("abc")[:5]
        close(embed(client, inputs="abc", dimensions=5).json(), [expected / np.linalg.norm(expected)])

    @pytest.mark.parametrize(
        ("name", "text"), [("query", "queryx"), ("document", "documentx"), ("topic", "Topic: x"), (None, "x")]
    )
    def test_prompts_by_name(self, client, name, text):
        """The fake engine embeds a role or an instruction as letters in front of a text."""
        close(embed(client, inputs="x", prompt_name=name).json(), [vector_of(text)])

    def test_what_other_servers_would_heed_is_taken(self, client):
        for more in (
            {"truncation_direction": "right", "encoding_format": "float"},
            {"truncation_direction": "Right", "truncate": True},
            {"normalize": None, "parameters": None},
        ):
            close(embed(client, inputs="a", **more).json(), [vector_of("a")])

    def test_texts_that_are_too_long(self, client):
        long = "l" * 1001
        assert embed(client, inputs=long).status_code == 200
        found = embed(client, inputs=["a", long], truncate=False)
        message = "inputs: item 1 cannot be embedded: it is longer than the model takes, and truncate is false"
        assert (found.status_code, found.json()) == (413, {"error": message, "error_type": "Validation"})


def test_vectors_are_those_of_encode(folder):
    template = {"query": "prompt_eol", "default": "{prompt}{text}"}
    encoder = valuembed.load(folder, "wva", layers=[1, 2], template=template, prompts={"topic": "Topic: "})
    with TestClient(create_app(encoder)) as client:
        texts = ["A cat sleeps.", "Shares fell."]
        close(embed(client, inputs=texts).json(), encoder.encode(texts))
        close(embed(client, inputs=texts, prompt_name="query").json(), encoder.encode_query(texts))
        close(embed(client, inputs=texts, prompt_name="topic").json(), encoder.encode(texts, prompt_name="topic"))
        told = client.get("/info").json()
        assert (told["model_dtype"], told["max_input_length"]) == ("float32", encoder.max_seq_length)
        assert told["model_type"] == {"embedding": {"pooling": "wva"}}


class TestErrors:
    @pytest.mark.parametrize(
        ("body", "status", "kind", "message"),
        [
            ({}, 422, "Validation", "inputs: Field required"),
            ({"inputs": []}, 400, "Empty", "inputs: it has to be a text, a list of texts, a list of token ids, or a "),
            ({"inputs": ""}, 400, "Empty", "inputs: it is an empty text, which has no embedding"),
            ({"inputs": ["a", ""]}, 400, "Empty", "inputs: item 1 is an empty text, which has no embedding"),
            ({"inputs": None}, 422, "Validation", "inputs: it has to be a text, a list of texts"),
            ({"inputs": {"a": 1}}, 422, "Validation", "inputs: it has to be a text, a list of texts"),
            ({"inputs": ["a", 1.5]}, 422, "Validation", "inputs: item 1 cannot be embedded: it is not a string but"),
            ({"inputs": [[5], [-1]]}, 422, "Validation", "inputs: item 1, token 0 is -1, which is no token id"),
            ({"inputs": "untokenizable"}, 422, "Validation", "inputs: it cannot be embedded: it is untokenizable"),
            ({"inputs": ["a"] * 21}, 413, "Validation", "inputs: 21 texts; a request may hold 20"),
            ({"inputs": [5] * 4}, 413, "Validation", "inputs: 4 token ids; a request may hold 3"),
            ({"inputs": "a", "dimensions": 33}, 422, "Validation", "dimensions: 33 is more than the 32 that vectors"),
            ({"inputs": "a", "dimensions": 0}, 422, "Validation", "dimensions: Input should be greater than or equal"),
            ({"inputs": "a", "truncate": 1}, 422, "Validation", "truncate: Input should be a valid boolean"),
            ({"inputs": "a", "normalize": "no"}, 422, "Validation", "normalize: Input should be a valid boolean"),
            ({"inputs": "a", "truncation_direction": "Left"}, 422, "Validation", "truncation_direction: Input should"),
            ({"inputs": "a", "encoding_format": "base64"}, 422, "Validation", "encoding_format: Input should be 'flo"),
            (
                {"inputs": "a", "prompt_name": "no"},
                422,
                "Validation",
                "prompt_name: this model has no prompt 'no'; legal: query, document, topic",
            ),
            ({"inputs": "a", "input": "a"}, 422, "Validation", "input: no such field; legal: inputs, truncate, trunc"),
            ({"inputs": ["a", "poison"]}, 424, "Backend", "inputs: item 1: the model failed on it"),
            ({"inputs": ["unreadable"]}, 424, "Backend", "inputs: item 0: a vector is not finite"),
        ],
    )
    @pytest.mark.parametrize("path", ["/embed", "/"])
    def test_a_wrong_request(self, client, path, body, status, kind, message):
        found = embed(client, path, **body)
        assert (found.status_code, found.json()["error_type"]) == (status, kind)
        assert found.json()["error"].startswith(message)
        assert set(found.json()) == {"error", "error_type"}

    @pytest.mark.parametrize(("method", "path"), [("POST", "/embed"), ("POST", "/"), ("GET", "/info")])
    def test_a_missing_key(self, client, method, path):
        found = client.request(method, path, json={"inputs": "a"}, headers={"Authorization": "Bearer wrong"})
        message = "the key is missing or wrong; send it as 'Authorization: Bearer KEY'"
        assert (found.status_code, found.json()) == (401, {"error": message, "error_type": "Validation"})

    def test_bodies_that_are_none(self, client):
        found = client.post("/embed", content=b"{", headers={"content-type": "application/json"})
        assert (found.status_code, found.json()["error_type"]) == (422, "Validation")
        assert found.json()["error"].startswith("the body is not valid JSON")
        assert (
            client.post("/embed", content=b'{"inputs": "a"}', headers={"content-type": "text/plain"}).status_code == 415
        )

    def test_paths_and_methods_that_do_not_exist(self, client):
        found = client.get("/embed")
        message = "GET is not taken at '/embed'; use POST"
        assert (found.status_code, found.json()) == (405, {"error": message, "error_type": "Validation"})
        found = client.post("/v1/embed", json={"inputs": "a"})
        message = (
            "there is no '/v1/embed' here; text-embeddings-inference's clients find /embed if their address ends with "
            "the port"
        )
        assert (found.status_code, found.json()["error"]["message"]) == (404, message)

    def test_a_full_server_and_one_that_is_over(self):
        with TestClient(create_app(FakeEngine(), limits=Limits(max_texts=2, max_waiting_texts=2))) as client:
            slot = client.app.state.serving.admission.admit()
            slot.add_texts(1)
            found = embed(client, inputs=["a", "b"])
            message = "the server is full: 1 text is being served; try again in 1 s"
            assert (found.status_code, found.json()) == (429, {"error": message, "error_type": "Overloaded"})
            assert found.headers["retry-after"] == "1"
            slot.release()
            client.app.state.serving.batcher.stop()
            found = embed(client, inputs="a")
            assert (found.status_code, found.json()["error_type"]) == (503, "Unhealthy")


def test_info(client):
    told = client.get("/info").json()
    assert told == {
        "model_id": "fake/model",
        "model_sha": None,
        "model_dtype": "bfloat16",
        "model_type": {"embedding": {"pooling": "wva"}},
        "max_concurrent_requests": 1024,
        "max_input_length": 77,
        "max_batch_tokens": 64,
        "max_batch_requests": None,
        "max_client_batch_size": 20,
        "auto_truncate": True,
        "tokenization_workers": 1,
        "version": valuembed.__version__,
        "sha": None,
        "docker_label": None,
    }


def test_requests_are_counted_like_any_other(client, app):
    embed(client, inputs="a")
    embed(client, "/", inputs="a")
    page = client.get("/metrics").text
    for route in ("/", "/embed"):
        assert f'valuembed_requests_total{{route="{route}",status="200"}}' in page
    admission = app.state.serving.admission
    assert (admission.requests, admission.texts, admission.bytes) == (0, 0, 0)

"""The API as OpenAI's own client sees it, over real connections to a server around an engine that needs no model."""

import base64
import contextlib
import json
import re

import httpx
import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient
from serving import WIDTH, FakeEngine, running, until, vector_of

from valuembed.errors import ReadingError
from valuembed.serving.admission import Limits
from valuembed.serving.schemas import EmbeddingsRequest
from valuembed.serving.server import create_app

pytestmark = pytest.mark.slow

KEY = "sk-a-secret-key"


@pytest.fixture(scope="module")
def engine():
    return FakeEngine("fake/model")


@pytest.fixture(scope="module")
def server(engine):
    with running(engine, keys=[KEY, "sk-another-key"]) as (url, app):
        yield url, app


@pytest.fixture(scope="module")
def url(server):
    return server[0]


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def embed(client, given, **options):
    return client.embeddings.create(**{"model": "fake/model", "input": given, **options})


def post(url, **options):
    return httpx.post(f"{url}/v1/embeddings", headers={"Authorization": f"Bearer {KEY}"}, **options)


def close(answer, texts):
    np.testing.assert_allclose([item.embedding for item in answer.data], [vector_of(text) for text in texts], atol=1e-7)
    assert [item.index for item in answer.data] == list(range(len(texts)))


class TestEmbeddings:
    @pytest.mark.parametrize("format", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
    @pytest.mark.parametrize("count", [1, 3, 100])
    def test_texts(self, client, count, format):
        texts = [f"text {number} \N{SNOWMAN}" for number in range(count)]
        answer = embed(client, texts, **format)
        if format.get("encoding_format") == "base64":
            # Asked for by name, the client hands on what it got.
            for item in answer.data:
                item.embedding = np.frombuffer(base64.b64decode(item.embedding), "<f4")
        close(answer, texts)
        assert (answer.object, answer.model, answer.data[0].object) == ("list", "fake/model", "embedding")
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (3 * count, 3 * count)
        assert answer.truncated == []

    def test_one_text(self, client):
        close(embed(client, "a b"), ["a b"])

    def test_token_ids(self, client):
        """Ids are the engine's affair; the fake one takes them for characters."""
        close(embed(client, [97, 98]), ["ab"])
        close(embed(client, [[97, 98], [99]]), ["ab", "c"])

    def test_roles_instructions_and_templates(self, client):
        more = {"input_type": "query", "prompt": "p", "template": "t {text}"}
        for given in ({"input_type": "document"}, {"prompt": "p"}, {"template": "t {text}"}, more):
            close(embed(client, "x", extra_body=given), ["".join(given.values()) + "x"])
        assert embed(client, "x", extra_body={"template": ["a {text}", "none"]}).data

    @pytest.mark.parametrize("format", ["float", "base64"])
    def test_dimensions_are_cut_and_scaled(self, url, format):
        sent = {"input": ["a bc", "d"], "dimensions": 5, "encoding_format": format}
        for item, text in zip(post(url, json=sent).json()["data"], ["a bc", "d"], strict=True):
            vector = item["embedding"]
            vector = vector if format == "float" else np.frombuffer(base64.b64decode(vector), "<f4")
            expected = vector_of(text)[:5]
            np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)

    def test_null_is_as_if_a_field_were_left_out(self, url):
        """As LiteLLM and others send what they were not given, also in fields of other servers."""
        names = [*EmbeddingsRequest.model_fields, "timeout", "some_other"]
        nulls = {name: None for name in names if name != "input"}
        found = post(url, json={"input": ["a b"], **nulls})
        assert found.json() == post(url, json={"input": ["a b"]}).json()

    def test_a_base_url_that_ends_with_a_slash(self, url):
        with openai.OpenAI(base_url=f"{url}/v1/", api_key=KEY, max_retries=0) as client:
            close(embed(client, "a b"), ["a b"])
        found = httpx.post(f"{url}/v1/embeddings/", json={"input": "a"}, headers={"Authorization": f"Bearer {KEY}"})
        assert found.status_code == 200

    def test_all_dimensions(self, client):
        close(embed(client, "a", dimensions=WIDTH), ["a"])

    def test_texts_that_were_cut_are_told(self, client):
        texts = ["short", "l" * 1001]
        assert embed(client, texts).truncated == [1]
        with pytest.raises(
            openai.BadRequestError, match="input: item 1 cannot be embedded: it is longer than the model"
        ):
            embed(client, texts, extra_body={"truncate": False})

    def test_an_answer_is_json_as_described(self, url):
        found = post(url, json={"input": "a"})
        assert found.headers["content-type"] == "application/json"
        assert set(found.json()) == {"object", "data", "model", "usage", "truncated"}


class TestErrors:
    @pytest.mark.parametrize(
        ("given", "message", "param"),
        [
            ({"input": ""}, "input: it is an empty text, which has no embedding", "input"),
            ({"input": ["a", ""]}, "input: item 1 is an empty text, which has no embedding", "input"),
            ({"input": []}, "input: it has to be a text, a list of texts, a list of token ids, or a list of", "input"),
            ({"input": [[]]}, "input: item 0 cannot be embedded: it is not a string but list", "input"),
            ({"input": ["a", 1.5]}, "input: item 1 cannot be embedded: it is not a string but float", "input"),
            ({"input": [5, True]}, "input: token 1 is true, which is no token id of this model: its ids are", "input"),
            ({"input": [[5], [5, -1]]}, "input: item 1, token 1 is -1, which is no token id of this model", "input"),
            ({"input": [[2.0]]}, "input: token 0 is 2.0, which is no token id of this model: its ids are", "input"),
            ({"input": [[5, "a"]]}, "input: item 0 cannot be embedded: it is not a string but list", "input"),
            ({"input": "nul \0"}, "input: it cannot be embedded: it is not text: NUL character", "input"),
            ({"input": "x" * 1_000_001}, "input: it cannot be embedded: it is 1,000,001 bytes long", "input"),
            ({"input": "untokenizable"}, "input: it cannot be embedded: it is untokenizable", "input"),
            ({"input": ["a"] * 2049}, "input: 2,049 texts; a request may hold 2,048", "input"),
            ({"dimensions": 0}, "dimensions: Input should be greater than or equal to 1", "dimensions"),
            ({"dimensions": 33}, "dimensions: 33 is more than the 32 that vectors of this model have", "dimensions"),
            ({"encoding_format": "int8"}, "encoding_format: Input should be 'float' or 'base64'", "encoding_format"),
            (
                {"extra_body": {"input_type": "passage"}},
                "input_type: Input should be 'query' or 'document'",
                "input_type",
            ),
            ({"extra_body": {"template": "nonsense"}}, "template 'nonsense' is unknown", "template"),
            ({"extra_body": {"template": "x" * 20_001}}, "template: String should have at most 20000", "template"),
            ({"extra_body": {"template": ["none"] * 17}}, "template: Input should be a valid string", "template"),
            ({"extra_body": {"prompt": 5}}, "prompt: Input should be a valid string", "prompt"),
            ({"extra_body": {"truncate": "no"}}, "truncate: Input should be a valid boolean", "truncate"),
            (
                {"extra_body": {"inputs": "a"}},
                "inputs: no such field; legal: input, model, encoding_format, ",
                "inputs",
            ),
            ({"extra_body": {"timeout": 5}}, "timeout: no such field; legal: input, model, ", "timeout"),
            ({"input": [None]}, "input: item 0 is null, and no text", "input"),
        ],
    )
    def test_a_wrong_request(self, client, given, message, param):
        with pytest.raises(openai.BadRequestError) as caught:
            embed(
                client, **{"given": "a", **{("given" if name == "input" else name): it for name, it in given.items()}}
            )
        assert caught.value.body["message"].startswith(message)
        assert (caught.value.type, caught.value.param) == ("invalid_request_error", param)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"{", "the body is not valid JSON: "),
            (b"[1]", "the body has to be a JSON object, not a list"),
            (b"", "the body is empty; it has to be a JSON object"),
            (b'"\xff"', "the body is not valid UTF-8: byte 0xFF at position 1"),
            (b"[" * 100_000, "the body is nested too deeply"),
            (b'{"input": ' + b"9" * 5000 + b"}", "the body holds a number of too many digits"),
            (b'{"input": null}', "input: it has to be a text"),
            (b'{"input": "a", "input": "b"}', "input: the field stands in the body more than once"),
            (b'{"input": "a", "dimensions": 1e400}', "dimensions: Input should be a valid integer"),
            (b'{"input": "a", "dimensions": 99999999999999999999}', "dimensions: 99999999999999999999 is more than"),
            (
                b'{"input": [' + b"[" * 50 + b"]" * 50 + b"]}",
                "input: item 0 cannot be embedded: it is not a string but",
            ),
            (b'{"input": "\\ud800"}', "input: it cannot be embedded: it is not valid Unicode: lone surrogate U+D800"),
            (b'{"model": "fake/model"}', "input: Field required"),
            (b'{"input": NaN}', "input: it has to be a text"),
            (b'{"input": [1' + b", 1" * 300_000 + b"]}", "input: 300,001 token ids; a request may hold 300,000"),
        ],
    )
    def test_a_body_that_is_none(self, url, content, message):
        headers = {"Authorization": f"Bearer {KEY}", "content-type": "application/json"}
        found = httpx.post(f"{url}/v1/embeddings", content=content, headers=headers)
        assert found.status_code == 400
        assert found.json()["error"]["message"].startswith(message)

    def test_other_content_types_are_not_taken(self, url):
        """A page in a browser can send those to any address without asking."""
        headers = {"Authorization": f"Bearer {KEY}", "content-type": "text/plain"}
        found = httpx.post(f"{url}/v1/embeddings", content=b'{"input": "a"}', headers=headers)
        assert found.status_code == 415
        assert found.json()["error"]["code"] == "unsupported_media_type"
        assert found.json()["error"]["message"].startswith("the body came as 'text/plain'; send JSON")

    def test_a_base_url_without_v1(self, url):
        with (
            openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client,
            pytest.raises(openai.NotFoundError, match="embeddings are at /v1/embeddings, so the base URL of a client"),
        ):
            embed(client, "a")

    def test_another_model(self, client):
        with pytest.raises(openai.NotFoundError, match="model 'gpt' is not served; 'fake/model' is") as caught:
            embed(client, "a", model="gpt")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")

    @pytest.mark.parametrize("key", ["wrong", KEY + "x", KEY[:-1], "\u00e9"])
    def test_a_wrong_key(self, url, key):
        found = httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}".encode()})
        assert found.status_code == 401
        assert found.headers["www-authenticate"] == "Bearer"

    def test_a_wrong_key_for_the_client(self, url):
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client,
            pytest.raises(
                openai.AuthenticationError, match="the key is missing or wrong; send it as 'Authorization"
            ) as it,
        ):
            embed(client, "a")
        assert it.value.code == "invalid_api_key"

    @pytest.mark.parametrize(
        "header", [{}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}, {"X-Api-Key": KEY}]
    )
    def test_a_missing_key(self, url, header):
        assert httpx.get(f"{url}/v1/models", headers=header).status_code == 401

    def test_every_key_opens(self, url):
        assert httpx.get(f"{url}/v1/models", headers={"Authorization": "bearer sk-another-key"}).status_code == 200

    @pytest.mark.parametrize(
        ("text", "message"),
        [("unreadable", "input: item 1: a vector is not finite"), ("poison", "input: item 1: the model failed on it")],
    )
    def test_a_model_that_fails(self, client, text, message):
        with pytest.raises(openai.InternalServerError) as caught:
            embed(client, ["a", text])
        assert (caught.value.body["message"], caught.value.type) == (message, "server_error")

    def test_paths_and_methods_that_do_not_exist(self, url):
        headers = {"Authorization": f"Bearer {KEY}"}
        for method, path, status in (("GET", "/v2", 404), ("GET", "/v1/embeddings", 405), ("DELETE", "/health", 405)):
            found = httpx.request(method, url + path, headers=headers)
            assert found.status_code == status
            assert set(found.json()["error"]) == {"message", "type", "param", "code"}


class TestModels:
    def test_list_and_retrieve(self, client):
        (model,) = client.models.list().data
        assert (model.id, model.object, model.owned_by, model.width) == ("fake/model", "model", "valuembed", WIDTH)
        assert client.models.retrieve("fake/model") == model
        with pytest.raises(openai.NotFoundError, match="model 'fake' is not served"):
            client.models.retrieve("fake")

    def test_a_name_of_ones_own(self):
        with running(FakeEngine(), name="mine") as (url, _):
            assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "mine"
            assert httpx.post(f"{url}/v1/embeddings", json={"input": "a", "model": "mine"}).json()["model"] == "mine"


class TestHealth:
    def test_well(self, url):
        for path in ("/health", "/ready"):
            found = httpx.get(url + path)
            assert (found.status_code, found.json()) == (200, {"status": "ready"})

    def test_stuck_and_well_again(self):
        engine = FakeEngine()
        with running(engine, limits=Limits(stuck_seconds=0.05)) as (url, app):
            engine.hold()
            future = app.state.serving.batcher.submit(["a"])
            until(lambda: httpx.get(f"{url}/ready").status_code == 503)
            assert httpx.get(f"{url}/ready").json() == {"status": "stuck"}
            assert httpx.get(f"{url}/health").status_code == 200
            found = httpx.post(f"{url}/v1/embeddings", json={"input": "a"})
            assert (found.status_code, found.headers["retry-after"]) == (503, "5")
            assert found.json()["error"]["code"] == "unavailable"
            engine.open.set()
            until(lambda: httpx.get(f"{url}/ready").status_code == 200)
            assert future.result(5).tokens == 1

    def test_dead(self):
        engine = FakeEngine()
        engine.broken = ReadingError("damaged")
        with running(engine) as (url, _):
            for path in ("/ready", "/health"):
                found = httpx.get(url + path)
                assert (found.status_code, found.json()) == (503, {"status": "dead"})
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
            with client, pytest.raises(openai.InternalServerError, match="its thread is dead; ask another replica"):
                embed(client, "a", model="fake")

    def test_metrics(self):
        with running(FakeEngine()) as (url, _):
            httpx.post(f"{url}/v1/embeddings", json={"input": ["a b", "l" * 1001]})
            httpx.post(f"{url}/v1/embeddings", json={"input": ""})
            httpx.get(f"{url}/a/path/of/the/client?text=secret")
            page = httpx.get(f"{url}/metrics")
        assert page.headers["content-type"].startswith("text/plain")
        found = dict(line.rsplit(" ", 1) for line in page.text.splitlines() if not line.startswith("#"))
        expected = {
            'valuembed_requests_total{route="/v1/embeddings",status="200"}': 1,
            'valuembed_requests_total{route="/v1/embeddings",status="400"}': 1,
            'valuembed_requests_total{route="other",status="404"}': 1,
            "valuembed_texts_total": 2,
            "valuembed_tokens_total": 3,
            "valuembed_truncated_texts_total": 1,
            "valuembed_ready": 1,
            "valuembed_serving_requests": 0,
            "valuembed_serving_texts": 0,
            "valuembed_serving_bytes": 0,
            "valuembed_waiting_requests": 0,
            "valuembed_waiting_texts": 0,
            "valuembed_wait_seconds_count": 1,
            # The text that tries the model is a step of its own.
            "valuembed_step_texts_sum": 2,
            "valuembed_step_tokens_sum": 3,
            'valuembed_request_seconds_count{route="/v1/embeddings"}': 2,
        }
        assert {name: float(found[name]) for name in expected} == expected
        assert float(found["valuembed_step_seconds_count"]) in (1, 2)
        assert "secret" not in page.text

    def test_every_server_counts_for_itself(self):
        first, second = (create_app(FakeEngine()).state.serving.metrics for _ in range(2))
        first.embedded(1, 2, 0)
        assert b"valuembed_tokens_total 2.0" in first.page()
        assert b"valuembed_tokens_total 0.0" in second.page()


class TestDescription:
    def test_is_open_and_says_what_comes(self, url):
        schema = httpx.get(f"{url}/openapi.json").json()
        assert set(schema["paths"]) == {
            "/v1/embeddings", "/v1/models", "/v1/models/{model}", "/health", "/ready", "/metrics", "/embed", "/info",
            "/api/embed", "/api/embeddings", "/api/tags", "/api/version", "/api/show",
        }  # fmt: skip
        assert "ValidationError" not in json.dumps(schema)
        answers = schema["paths"]["/v1/embeddings"]["post"]["responses"]
        assert set(answers) == {"200", "400", "401", "404", "408", "413", "415", "429", "500", "503"}
        envelope = {
            answers[status]["content"]["application/json"]["schema"]["$ref"] for status in set(answers) - {"200"}
        }
        assert envelope == {"#/components/schemas/ErrorAnswer"}
        # As text-embeddings-inference has it, which is the only one to answer so.
        assert [path for path, of in schema["paths"].items() if "422" in json.dumps(of)] == ["/embed"]
        open_paths = [path for path, of in schema["paths"].items() if "security" not in next(iter(of.values()))]
        assert open_paths == ["/health", "/ready", "/metrics"]

    def test_of_an_open_server_asks_for_no_key(self):
        schema = create_app(FakeEngine()).openapi()
        assert "security" not in json.dumps(schema)

    def test_nothing_is_reported_whatever_the_environment_asks(self, monkeypatch, caplog):
        """FastAPI would look for an exporter of that name, and warn that there is none."""
        monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "nowhere")
        with TestClient(create_app(FakeEngine())) as client:
            assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200
        assert "telemetry" not in caplog.text


class TestLogs:
    def test_hold_neither_texts_nor_keys(self, url, client, caplog, capfd):
        caplog.set_level("DEBUG", "valuembed")
        caplog.set_level("DEBUG", "uvicorn")
        secrets = ["quokka", "wombat poison", "numbat untokenizable"]
        for text in secrets:
            with contextlib.suppress(openai.APIStatusError):
                embed(client, [text])
        post(url, json={"input": ["quokka"], "encoding_format": "quokka", "wombat": "numbat"})
        post(url, content=b"{quokka")
        httpx.get(f"{url}/v1/models?text=quokka", headers={"Authorization": "Bearer sk-quokka"})
        httpx.get(f"{url}/quokka")
        said = caplog.text + "".join(capfd.readouterr())
        assert "RuntimeError at" in said
        for word in ("quokka", "wombat", "numbat", KEY):
            assert word not in said

    def test_an_error_of_ours_is_answered_and_logged_without_its_message(self, server, url, caplog, monkeypatch):
        def fails(*args, **options):
            raise RuntimeError("quokka")

        monkeypatch.setattr(server[1].state.serving, "embed", fails)
        found = post(url, json={"input": "a"})
        assert (found.status_code, found.json()["error"]["code"]) == (500, "internal")
        assert re.search(r"a request failed: RuntimeError at .* fails", caplog.text)
        assert "quokka" not in caplog.text

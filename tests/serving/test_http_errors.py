"""What a client is told of wrong paths, methods and fields."""

import pytest
from fastapi import APIRouter, HTTPException
from fastapi.testclient import TestClient
from pydantic import BaseModel
from serving import FakeEngine

from valuembed.serving.server import create_app


@pytest.fixture(scope="module")
def client():
    app = create_app(FakeEngine())
    router = APIRouter()

    class Body(BaseModel):
        number: int

    @router.post("/own")
    async def own(body: Body):
        raise HTTPException(404, "no such number")

    app.include_router(router)
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "/embeddings",
            "there is no '/embeddings' here; embeddings are at /v1/embeddings, so the base URL of a client",
        ),
        (
            "/v1/v1/embeddings",
            "there is no '/v1/v1/embeddings' here; embeddings are at /v1/embeddings, so the base URL",
        ),
        ("/openai/deployments/x/embeddings", "embeddings are at /v1/embeddings"),
        ("/models", "there is no '/models' here; models are at /v1/models, so the base URL of a client ends with"),
        (
            "/v1/chat/completions",
            "there is no '/v1/chat/completions' here; this server has /v1/embeddings and /v1/models",
        ),
        ("/v1", "there is no '/v1' here; this server has /v1/embeddings and /v1/models"),
        ("/" + "x" * 500, "here; this server has /v1/embeddings and /v1/models"),
    ],
)
def test_a_path_that_is_not_there_names_the_right_one(client, path, message):
    found = client.post(path, json={"input": "a"})
    error = found.json()["error"]
    assert (found.status_code, error["code"], error["type"]) == (404, "not_found", "invalid_request_error")
    assert message in error["message"]
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/embeddings", "POST, OPTIONS"),
        ("PUT", "/v1/embeddings", "POST, OPTIONS"),
        ("POST", "/v1/models", "GET, HEAD, OPTIONS"),
        ("DELETE", "/health", "GET, HEAD, OPTIONS"),
    ],
)
def test_a_method_that_is_not_taken_names_those_that_are(client, method, path, allow):
    found = client.request(method, path)
    assert (found.status_code, found.headers["allow"]) == (405, allow)
    first = allow.split(",")[0]
    message = f"{method} is not taken at {path!r}; use {first}"
    assert found.json()["error"] == {
        "message": message, "type": "invalid_request_error", "param": None, "code": "method_not_allowed",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "allow"),
    [("/v1/embeddings", "POST, OPTIONS"), ("/ready", "GET, HEAD, OPTIONS"), ("/v1/models/x", "GET, HEAD, OPTIONS")],
)
def test_what_may_be_asked_is_told(client, path, allow):
    found = client.options(path)
    assert (found.status_code, found.content, found.headers["allow"]) == (204, b"", allow)
    assert client.options("/nowhere").status_code == 404


def test_routes_of_ones_own_keep_their_errors(client):
    assert client.post("/own", json={"number": 5}).json()["error"]["message"] == "no such number"
    assert client.post("/own", content=b"{", headers={"content-type": "application/json"}).json()["error"]["code"] == (
        "invalid_json"
    )
    assert client.post("/own", content=b"{").json()["error"]["code"] == "invalid_body"


def test_a_field_that_is_not_known_names_those_that_are(client):
    found = client.post("/v1/embeddings", json={"input": "a", "extra_body": {"template": "none"}}).json()["error"]
    assert found["message"] == (
        "extra_body: no such field; legal: input, model, encoding_format, dimensions, user, input_type, prompt, "
        "template, truncate"
    )
    assert (found["code"], found["param"]) == ("unknown_field", "extra_body")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"input": []}, "empty_input"),
        ({"input": ["a", ""]}, "empty_input"),
        ({"input": ["a"] * 2049}, "too_many"),
        ({"input": "l" * 1001, "truncate": False}, "too_long"),
        ({"input": 5}, "invalid_value"),
    ],
)
def test_programs_can_tell_wrong_values_apart(client, body, code):
    found = client.post("/v1/embeddings", json=body)
    assert (found.status_code, found.json()["error"]["code"], found.json()["error"]["param"]) == (400, code, "input")


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/docs", "/openapi.json"])
def test_paths_that_are_open_are_open_to_be_read_only(path):
    with TestClient(create_app(FakeEngine(), keys=["a-key"])) as client:
        assert client.get(path).status_code == client.head(path).status_code == 200
        assert client.post(path).status_code == 401

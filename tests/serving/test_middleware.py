"""What a request meets before any route: limits of body, number and time, over plain connections."""

import json
import socket
import time

import httpx
import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient
from serving import FakeEngine, running, until, vector_of
from starlette.applications import Starlette
from starlette.routing import Mount

from valuembed.errors import InputError
from valuembed.serving.admission import Limits
from valuembed.serving.middleware import cross_origin
from valuembed.serving.server import create_app

pytestmark = pytest.mark.slow


@pytest.fixture
def engine():
    return FakeEngine()


KEY = "sk-a-secret-key"
SITE = "https://app.example.com"


@pytest.fixture(scope="module")
def locked():
    with running(FakeEngine(), keys=[KEY], cors_origins=[SITE, "http://localhost:3000"]) as (url, _):
        yield url


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/metrics", "/docs", "/openapi.json", "/v1/models", "/v1/nothing"]
)
def test_head_is_get_without_its_body(locked, path):
    headers = {"Authorization": f"Bearer {KEY}"}
    got, head = (httpx.request(method, locked + path, headers=headers) for method in ("GET", "HEAD"))
    assert (head.status_code, head.content) == (got.status_code, b"")
    if path != "/metrics":
        assert head.headers["content-length"] == str(len(got.content))
    assert head.headers["content-type"] == got.headers["content-type"]


def test_head_needs_a_key_where_get_does(locked):
    assert httpx.head(f"{locked}/v1/models").status_code == 401
    assert httpx.head(f"{locked}/v1/embeddings", headers={"Authorization": f"Bearer {KEY}"}).status_code == 405


@pytest.mark.parametrize("path", ["/health/", "/v1/models/", "/v1/models/fake/", "/v1/models//", "/docs/"])
def test_a_slash_at_the_end_is_taken(locked, path):
    assert httpx.get(locked + path, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_a_slash_at_the_end_opens_nothing(locked):
    assert httpx.get(f"{locked}/health/").status_code == 200
    assert httpx.get(f"{locked}/v1/models/").status_code == 401


def test_options_need_no_key(locked):
    found = httpx.options(f"{locked}/v1/embeddings")
    assert (found.status_code, found.headers["allow"]) == (204, "POST, OPTIONS")


@pytest.mark.parametrize("origin", [SITE, "http://localhost:3000"])
def test_a_browser_may_ask_for_a_site_that_is_named(locked, origin):
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, x-stainless-os",
    }
    found = httpx.options(f"{locked}/v1/embeddings", headers=asked)
    assert (found.status_code, found.headers["access-control-allow-origin"]) == (200, origin)
    assert "POST" in found.headers["access-control-allow-methods"]
    assert found.headers["access-control-allow-headers"] == asked["Access-Control-Request-Headers"]
    assert "access-control-allow-credentials" not in found.headers
    sent = {"Origin": origin, "Authorization": f"Bearer {KEY}"}
    found = httpx.post(f"{locked}/v1/embeddings", json={"input": "a"}, headers=sent)
    assert (found.status_code, found.headers["access-control-allow-origin"]) == (200, origin)
    assert found.headers["access-control-expose-headers"] == "Retry-After"
    # A page can read why it was refused.
    found = httpx.post(f"{locked}/v1/embeddings", json={"input": "a"}, headers={"Origin": origin})
    assert (found.status_code, found.headers["access-control-allow-origin"]) == (401, origin)


def test_a_browser_may_not_ask_for_other_sites(locked):
    asked = {"Origin": "https://evil.example.com", "Access-Control-Request-Method": "POST"}
    found = httpx.options(f"{locked}/v1/embeddings", headers=asked)
    assert found.status_code == 400
    assert "access-control-allow-origin" not in found.headers
    assert "access-control-allow-origin" not in httpx.get(f"{locked}/health", headers=asked).headers


def test_without_being_asked_no_site_is_allowed(engine):
    with running(engine) as (url, _):
        headers = {"Origin": SITE, "Access-Control-Request-Method": "POST"}
        for method in ("OPTIONS", "GET"):
            found = httpx.request(method, f"{url}/v1/models", headers=headers)
            assert not [name for name in found.headers if name.startswith("access-control")]


def test_every_site_where_that_is_asked_for(engine):
    with running(engine, cors_origins=["*"]) as (url, _):
        found = httpx.post(f"{url}/v1/embeddings", json={"input": "a"}, headers={"Origin": SITE})
        assert (found.status_code, found.headers["access-control-allow-origin"]) == (200, "*")


@pytest.mark.parametrize(
    "wrong",
    ["", "app.example.com", f"{SITE}/", f"{SITE}/path", "https://*.example.com", "HTTPS://APP.EXAMPLE.COM", "null"],
)
def test_an_origin_that_is_none(wrong):
    with pytest.raises(
        InputError, match=r"^CORS origin '.*' has to be a scheme and a host in small letters, without a"
    ):
        cross_origin([SITE, wrong])


def test_beside_other_routes_the_open_paths_stay_open(engine):
    inner = create_app(engine, keys=[KEY])
    outer = Starlette(routes=[Mount("/embed", inner)])
    # A mounted application's lifespan is not entered, so nothing embeds here.
    client = TestClient(outer)
    assert client.get("/embed/openapi.json").status_code == 200
    assert client.get("/embed/docs/").status_code == 200
    assert client.get("/embed/v1/models").status_code == 401
    assert client.get("/embed/v1/models/", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def connect(url, head, *, body=b""):
    """A connection on which a request is begun."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + head + b"\r\n"
    )
    connection.sendall(body)
    return connection


def answer_on(connection):
    """Status and message of the answer that comes."""
    with connection.makefile("rb") as lines:
        status = int(lines.readline().split()[1])
        length = 0
        while header := lines.readline().strip():
            if header.startswith(b"content-length:"):
                length = int(header.split()[1])
        return status, json.loads(lines.read(length)).get("error", {}).get("message")


def admission(app):
    found = app.state.serving.admission
    return found.requests, found.texts, found.bytes


def test_a_body_that_is_too_large_is_refused_and_the_connection_goes_on(engine):
    with running(engine, limits=Limits(max_body_bytes=1000)) as (url, app):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with (
            client,
            pytest.raises(openai.APIStatusError, match="the request's body is larger than 1,000 bytes") as caught,
        ):
            client.embeddings.create(model="fake", input="x " * 500_000)
        assert (caught.value.status_code, caught.value.body["code"]) == (413, "request_too_large")
        with httpx.Client() as kept:
            for _ in range(2):
                assert kept.post(f"{url}/v1/embeddings", json={"input": "x" * 2000}).status_code == 413
            assert kept.post(f"{url}/v1/embeddings", json={"input": "x"}).status_code == 200
        until(lambda: admission(app) == (0, 0, 0))
        assert len(engine.steps) == 2  # the probe and the one that was let in


def test_a_body_without_a_length_is_counted_as_it_comes(engine):
    with running(engine, limits=Limits(max_body_bytes=1000)) as (url, app):
        found = httpx.post(f"{url}/v1/embeddings", content=(b"x" * 100 for _ in range(20)))
        assert found.status_code == 413
        body = json.dumps({"input": "a b"}).encode()
        headers = {"content-type": "application/json"}
        found = httpx.post(
            f"{url}/v1/embeddings", content=(body[at : at + 4] for at in range(0, 20, 4)), headers=headers
        )
        np.testing.assert_allclose(found.json()["data"][0]["embedding"], vector_of("a b"), atol=1e-7)
        until(lambda: admission(app) == (0, 0, 0))


def test_a_body_that_does_not_come(engine):
    with running(engine, limits=Limits(body_seconds=0.1)) as (url, app):
        with connect(url, b"Content-Length: 100\r\n", body=b"{") as connection:
            until(lambda: admission(app) == (1, 0, 100))
            assert answer_on(connection) == (408, "the request's body was not there after 0.1 s")
        until(lambda: admission(app) == (0, 0, 0))
        assert admission(app) == (0, 0, 0)


def test_a_client_that_goes_while_it_sends(engine, caplog):
    with running(engine) as (url, app):
        with connect(url, b"Content-Length: 100\r\n", body=b"{"):
            until(lambda: admission(app) == (1, 0, 100))
        until(lambda: admission(app) == (0, 0, 0))
        assert 'status="499"' in httpx.get(f"{url}/metrics").text
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_full_server_refuses_before_it_reads(engine):
    limits = Limits(max_requests=1, max_texts=5, max_waiting_texts=5, max_body_bytes=500, max_waiting_bytes=500)
    with running(engine, limits=limits) as (url, app):
        engine.hold()
        with connect(url, b"Content-Length: 14\r\n", body=b'{"input": "x"}') as first:
            assert engine.entered.wait(20)
            with connect(url, b"Content-Length: 400\r\n") as second:
                message = "the server is full: 1 request is being served; try again in 1 s"
                assert answer_on(second) == (429, message)
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
            with client, pytest.raises(openai.RateLimitError) as caught:
                client.embeddings.create(model="fake", input="x")
            assert caught.value.response.headers["retry-after"] == "1"
            assert (caught.value.type, caught.value.code) == ("rate_limit_error", "server_busy")
            # Those who watch are let in.
            assert httpx.get(f"{url}/ready").status_code == 200
            engine.open.set()
            assert answer_on(first) == (200, None)
        until(lambda: admission(app) == (0, 0, 0))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(max_texts=3, max_waiting_texts=3), "the server is full: 2 texts are being served"),
        (Limits(max_body_bytes=60, max_waiting_bytes=60), "the server is full: requests of 43 bytes are being served"),
    ],
)
def test_texts_and_bytes_of_others_make_it_full(engine, limits, message):
    body = b'{"input": ["first text", "second text"]}   '
    with running(engine, limits=limits) as (url, app):
        engine.hold()
        with connect(url, b"Content-Length: 43\r\n", body=body) as first:
            assert engine.entered.wait(20)
            found = httpx.post(f"{url}/v1/embeddings", content=body, headers={"content-type": "application/json"})
            assert (found.status_code, found.json()["error"]["message"].partition(";")[0]) == (429, message)
            engine.open.set()
            assert answer_on(first) == (200, None)
        until(lambda: admission(app) == (0, 0, 0))
        assert httpx.post(f"{url}/v1/embeddings", json={"input": ["a", "b"]}).status_code == 200


def test_a_request_that_takes_too_long_is_given_up_and_leaves_the_queue(engine):
    with running(engine, limits=Limits(answer_seconds=0.1)) as (url, app):
        engine.hold()
        found = [httpx.post(f"{url}/v1/embeddings", json={"input": ["x", "y"]}) for _ in range(2)]
        for answer in found:
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "timeout")
        until(lambda: app.state.serving.batcher.waiting() == (0, 0))
        engine.open.set()
        assert httpx.post(f"{url}/v1/embeddings", json={"input": "z"}).status_code == 200


def test_a_client_that_goes_takes_its_texts_along(engine):
    with running(engine) as (url, app):
        engine.hold()
        held = app.state.serving.batcher.submit(["held"])
        assert engine.entered.wait(20)
        body = b'{"input": ["gone", "gone"]}'
        with connect(url, f"Content-Length: {len(body)}\r\n".encode(), body=body):
            until(lambda: app.state.serving.batcher.waiting() == (1, 2))
        until(lambda: app.state.serving.batcher.waiting() == (0, 0))
        until(lambda: admission(app) == (0, 0, 0))
        engine.open.set()
        assert held.result(20).tokens == 1
        assert not any("gone" in step for step in engine.steps)
        until(lambda: 'route="/v1/embeddings",status="499"} 1.0' in httpx.get(f"{url}/metrics").text)


def test_a_client_that_does_not_take_its_answer_is_given_up(caplog):
    """What it takes up counts until then: nobody can fill the memory with answers."""
    engine = FakeEngine(width=20_000)
    with running(engine, limits=Limits(answer_seconds=0.5)) as (url, app):
        texts = json.dumps({"input": ["x"] * 100}).encode()
        with connect(url, f"Content-Length: {len(texts)}\r\n".encode(), body=texts) as connection:
            until(lambda: admission(app)[1] == 100)
            time.sleep(0.2)
            assert admission(app)[1] == 100
            until(lambda: admission(app) == (0, 0, 0))
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
    assert any(message.startswith("a request failed: TimeoutError") for message in caplog.messages)


def test_answers_close_their_connections_once_the_server_leaves(engine):
    with running(engine) as (url, app), httpx.Client() as client:
        assert "connection" not in client.get(f"{url}/health").headers
        app.state.serving.leaving = True
        found = client.get(f"{url}/ready")
        assert (found.status_code, found.json(), found.headers["connection"]) == (
            503,
            {"status": "leaving"},
            "close",
        )
        # It goes on serving all the same.
        assert client.post(f"{url}/v1/embeddings", json={"input": "a"}).status_code == 200

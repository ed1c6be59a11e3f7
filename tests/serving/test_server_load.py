"""Servers under load: many clients at once, too many, clients that leave, a server that is told to leave."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)
from serving import FakeEngine, FakeIndex, running, until, vector_of
from some_texts import some_texts

import valuembed
from valuembed.serving.admission import Limits

KEY = "sk-a-secret-key"


def gather(url, texts, **options):
    """Every text in a request of its own, all at once."""

    async def all_of_them():
        limits = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(limits=limits, timeout=60) as http,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, http_client=http) as client,
        ):
            asked = [client.embeddings.create(model="any", input=text, **options) for text in texts]
            return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(all_of_them())


@pytest.mark.slow
def test_200_requests_at_once_get_each_its_own():
    with running(FakeEngine(step_tokens=100), name="any") as (url, _):
        texts = [f"text number {number}" for number in range(200)]
        for answer, text in zip(gather(url, texts), texts, strict=True):
            np.testing.assert_allclose(answer.data[0].embedding, vector_of(text), atol=1e-7)


@pytest.mark.slow
def test_200_requests_at_once_get_what_encode_gives(folder):
    encoder = valuembed.load(folder, "wva", layers=[1, 2], template={"query": "prompt_eol", "default": "none"})
    texts = [f"{text} {number}" for number, text in enumerate(some_texts(40) * 5)]
    with running(encoder, name="any", step_tokens=300) as (url, app):
        answers = gather(url, texts[:100]) + gather(url, texts[100:], extra_body={"input_type": "query"})
        page = app.state.serving.metrics.page().decode()
    expected = [*encoder.encode(texts[:100]), *encoder.encode_query(texts[100:])]
    np.testing.assert_allclose([answer.data[0].embedding for answer in answers], expected, rtol=0, atol=2e-5)
    # They were computed together.
    assert float(re.search(r"^valuembed_step_texts_count (.*)$", page, re.MULTILINE)[1]) < 120


@pytest.mark.slow
def test_too_many_requests_are_refused_and_the_server_recovers():
    engine = FakeEngine(seconds=0.002, step_tokens=8)
    limits = Limits(max_requests=20, max_waiting_texts=30, max_texts=10, max_waiting_bytes=10_000, max_body_bytes=5000)
    with running(engine, limits=limits, name="any") as (url, app):
        texts = [[f"text {number} {part}" for part in range(1 + number % 10)] for number in range(200)]
        answers = gather(url, texts)
        refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
        assert 0 < len(refused) < 200
        assert all(int(answer.response.headers["retry-after"]) >= 1 for answer in refused)
        for answer, of_one in zip(answers, texts, strict=True):
            if answer not in refused:
                expected = [vector_of(text) for text in of_one]
                np.testing.assert_allclose([item.embedding for item in answer.data], expected, atol=1e-7)
        admission = app.state.serving.admission
        until(lambda: (admission.requests, admission.texts, admission.bytes) == (0, 0, 0))
        until(lambda: app.state.serving.batcher.waiting() == (0, 0))
        for answer, text in zip(gather(url, ["a", "b", "c"]), ["a", "b", "c"], strict=True):
            np.testing.assert_allclose(answer.data[0].embedding, vector_of(text), atol=1e-7)


def test_clients_that_leave_take_their_texts_out_of_the_batch():
    engine = FakeEngine(step_tokens=10)
    with running(engine, name="any") as (url, app):
        batcher = app.state.serving.batcher
        engine.hold()
        held = batcher.submit(["held"])
        assert engine.entered.wait(20)

        async def some_leave():
            async with httpx.AsyncClient(timeout=60) as client:
                asked = [
                    asyncio.create_task(client.post(f"{url}/v1/embeddings", json={"input": [f"text{number}"] * 3}))
                    for number in range(20)
                ]
                while batcher.waiting() != (20, 60):
                    await asyncio.sleep(0.01)
                for task in asked[::2]:
                    task.cancel()
                while batcher.waiting() != (10, 30):
                    await asyncio.sleep(0.01)
                engine.open.set()
                return await asyncio.gather(*asked[1::2])

        for number, answer in zip(range(1, 20, 2), asyncio.run(some_leave()), strict=True):
            vectors = [item["embedding"] for item in answer.json()["data"]]
            np.testing.assert_allclose(vectors, [vector_of(f"text{number}")] * 3, atol=1e-7)
        assert held.result(20).tokens == 1
        computed = {text for step in engine.steps for text in step}
        assert computed == {"a", "held", *(f"text{number}" for number in range(1, 20, 2))}


@contextlib.contextmanager
def process(*arguments):
    """A server in a process of its own; it, and its URL. What it says is read to the end."""
    here = Path(__file__).parents[1] / "support"
    path = os.pathsep.join([str(Path(valuembed.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    child = subprocess.Popen(
        [sys.executable, here / "serving.py", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "VALUEMBED_API_KEY": KEY},
    )
    said = []
    try:
        for line in child.stderr:
            said.append(line)
            if found := re.search(r"serving fake at (http://127\.0\.0\.1:\d+)/v1$", line):
                break
        reader = threading.Thread(target=lambda: said.extend(child.stderr))
        reader.start()
        until(lambda: ready(found[1]))
        yield child, found[1], said
        reader.join(20)
    finally:
        child.kill()
        child.wait()
        child.stderr.close()


def ready(url):
    try:
        return httpx.get(f"{url}/ready", timeout=5).status_code
    except httpx.TransportError:
        return None


@pytest.mark.slow
@pytest.mark.process
def test_told_to_end_it_finishes_what_it_has():
    """Clients that never try twice: each request is answered, until connections are refused.

    A request may cross the closing of a connection that had nothing to answer; of those that are being answered, there
    are more.
    """
    with process(0.01, 2) as (child, url, said):
        told, stop = threading.Event(), time.monotonic() + 30
        outcomes, wrong, crossed = [], [], []

        def client(name):
            number = 0
            with httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=30) as http:
                while time.monotonic() < stop:
                    number += 1
                    text = f"quokka {name} {number}"
                    try:
                        answer = http.post(f"{url}/v1/embeddings", json={"input": text})
                        np.testing.assert_allclose(answer.json()["data"][0]["embedding"], vector_of(text), atol=1e-7)
                        outcomes.append(told.is_set())
                    except httpx.ConnectError:
                        return
                    except httpx.ReadError as error:
                        # A connection that waits to be accepted when the port closes is reset by the kernel. While
                        # the port is open, it would be a request that was lost.
                        if "reset by peer" not in str(error) or ready(url) is not None:
                            wrong.append(repr(error))
                        return
                    except httpx.RemoteProtocolError as error:
                        (wrong if ready(url) is not None else crossed).append(repr(error))
                        return
                    except Exception as error:
                        wrong.append(repr(error))
                        return

        clients = [threading.Thread(target=client, args=(number,)) for number in range(12)]
        for thread in clients:
            thread.start()
        until(lambda: len(outcomes) > 50)
        told.set()
        child.send_signal(signal.SIGTERM)
        # It says no before it refuses connections.
        until(lambda: ready(url) == 503)
        assert child.wait(30) == 0
        for thread in clients:
            thread.join()
        assert wrong == []
        assert len(crossed) <= 1
        assert sum(outcomes) > 12
    assert "SIGTERM: finishing what is in flight" in "".join(said)
    assert "quokka" not in "".join(said)
    assert KEY not in "".join(said)


@pytest.mark.slow
@pytest.mark.process
def test_told_twice_it_ends_at_once():
    with process(0.01, 20) as (child, url, _):
        child.send_signal(signal.SIGINT)
        until(lambda: ready(url) == 503)
        child.send_signal(signal.SIGINT)
        child.wait(10)


@pytest.mark.slow
@pytest.mark.parametrize("mode", GenerationMode)
def test_nothing_in_its_description_makes_it_fail(mode):
    """Requests made from the description, right ones or wrong ones: each is answered as it says."""
    as_described = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    answered = []
    with running(FakeEngine(), keys=[KEY], index=FakeIndex()) as (url, _), requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {KEY}"
        for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
            operation = found.ok()
            # The others have little that could be varied.
            examples = 40 if operation.path in ("/v1/embeddings", "/v1/search") else 5

            @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def fuzz(case):
                answer = case.call(session=session)
                answered.append((case.path, answer.status_code))
                case.validate_response(answer, checks=as_described)

            # What has no parameters cannot be asked for wrongly.
            with contextlib.suppress(Unsatisfiable):
                fuzz()
    expected = 200 if mode == GenerationMode.POSITIVE else 400
    assert expected in {status for path, status in answered if path == "/v1/embeddings"}
    # Few requests that fit the description name one thing to look for alone.
    assert 400 in {status for path, status in answered if path == "/v1/search"}

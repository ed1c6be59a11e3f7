"""The page to try a model with, at /, and what it asks for under /page."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Coroutine, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PlainValidator

from valuembed._utils.text import counted
from valuembed.data import check_text
from valuembed.errors import RequestError
from valuembed.serving.context import ServerContext
from valuembed.serving.jobs import EmbedRequest
from valuembed.serving.playground.api import SERVED, Playground, WeighedText, portions, to_unit_length
from valuembed.serving.playground.projection import project_2d
from valuembed.serving.request_body import JsonRoute
from valuembed.serving.schemas import MOST_CHARACTERS, responses

PATH = "/"

OWN_PATH = "/playground"
"""Where it is too, for servers with another page at /."""

PAGE = (Path(__file__).parent / "index.html").read_text(encoding="utf-8")

MOST_COMPARED = 100
"""Texts of a matrix."""

MOST_RANKED = 100
"""Texts that a search answers with."""

T = TypeVar("T")


def page_headers(page: str) -> dict[str, str]:
    """Headers of a page that is one file: a browser runs what stands in it and nothing else.

    Args:
        page: HTML with styles, and scripts if it has any, inside.
    """

    def own(tag: str) -> str:
        inline = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes = [base64.b64encode(sha256(text.encode()).digest()).decode() for text in inline]
        return " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"

    return {
        "Content-Security-Policy": f"default-src 'none'; style-src {own('style')}; script-src {own('script')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


HEADERS = page_headers(PAGE)


def _read_text(given: object) -> str:
    if given == "":
        raise ValueError("it is an empty text, which has no embedding")
    if reason := check_text(given):
        raise ValueError(f"it cannot be embedded: it is {reason}")
    return str(given)


def _read_texts(given: object) -> list[str]:
    if not isinstance(given, list) or not given:
        raise ValueError("it has to be a list of texts")
    for index, text in enumerate(given):
        if text == "":
            raise ValueError(f"item {index} is an empty text, which has no embedding")
        if reason := check_text(text):
            raise ValueError(f"item {index} cannot be embedded: it is {reason}")
    return given


Text = Annotated[str, PlainValidator(_read_text, json_schema_input_type=Annotated[str, Field(min_length=1)])]
Texts = Annotated[
    list[str],
    PlainValidator(
        _read_texts, json_schema_input_type=Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    ),
]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CompareRequest(_Asked):
    """Texts to compare with each other."""

    input: Texts = Field(description=f"At most {MOST_COMPARED}.")
    method: str = Field(SERVED, description="A name of /page/methods.")


class SearchRequest(_Asked):
    """Texts to rank by a query."""

    query: Text
    input: Texts
    method: str = Field(SERVED, description="A name of /page/methods.")


class WeightsRequest(_Asked):
    """A text whose tokens are to be weighed."""

    input: Text = Field(description=f"At most {MOST_CHARACTERS:,} characters.")


class Method(BaseModel):
    """A method that the page offers."""

    name: str
    label: str
    about: str
    signal: str


class Methods(BaseModel):
    """The model, the methods that its layers can give, and how many texts may be compared and searched."""

    model: str
    methods: list[Method]
    most_compared: int
    most_searched: int


class Compared(BaseModel):
    """Cosine similarities, places on a map, and how many texts were cut."""

    similarity: list[list[float]]
    map: list[tuple[float, float]]
    truncated: int


class PageHit(BaseModel):
    """A text that was found."""

    index: int
    score: float


class Found(BaseModel):
    """The most similar texts, best first, and how many texts were cut."""

    hits: list[PageHit]
    truncated: int


router = APIRouter(route_class=JsonRoute)


@router.get(PATH, include_in_schema=False)
@router.get(OWN_PATH, include_in_schema=False)
async def page() -> HTMLResponse:
    """The page."""
    return HTMLResponse(PAGE, headers=HEADERS)


@router.get("/page/methods", responses=responses(401, 429))
async def methods(request: Request) -> Methods:
    """What the page can compare."""
    serving: ServerContext = request.app.state.serving
    return Methods(
        model=serving.name,
        methods=[Method(**vars(choice)) for choice in _playground(serving).choices],
        most_compared=min(MOST_COMPARED, serving.limits.max_texts),
        most_searched=serving.limits.max_texts - 1,
    )


@router.post("/page/compare", responses=responses(400, 401, 408, 413, 415, 429, 500, 503))
async def compare(request: Request, body: CompareRequest) -> Compared:
    """Compare texts with each other."""
    serving: ServerContext = request.app.state.serving
    _check_count(len(body.input), min(MOST_COMPARED, serving.limits.max_texts))
    vectors, truncated = await _in_time(serving, _embed(request, body.input, body.method))
    scaled = to_unit_length(vectors)
    return Compared(
        similarity=np.round((scaled @ scaled.T).astype(float), 4).tolist(),
        map=np.round(project_2d(scaled), 5).tolist(),
        truncated=truncated,
    )


@router.post("/page/search", responses=responses(400, 401, 408, 413, 415, 429, 500, 503))
async def search(request: Request, body: SearchRequest) -> Found:
    """Rank texts by a query."""
    serving: ServerContext = request.app.state.serving
    _check_count(len(body.input), serving.limits.max_texts - 1)

    async def both() -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
        query, cut = await _embed(request, [body.query], body.method, "query")
        texts, truncated = await _embed(request, body.input, body.method, "document")
        return query, texts, cut + truncated

    query, texts, truncated = await _in_time(serving, both())
    scores = to_unit_length(texts) @ to_unit_length(query)[0]
    best = np.argsort(-scores, kind="stable")[:MOST_RANKED]
    hits = [PageHit(index=int(index), score=round(float(scores[index]), 4)) for index in best]
    return Found(hits=hits, truncated=truncated)


@router.post("/page/weights", responses=responses(400, 401, 408, 413, 415, 429, 500, 503))
async def weights(request: Request, body: WeightsRequest) -> WeighedText:
    """Tell what each token of a text counts for."""
    serving: ServerContext = request.app.state.serving
    if len(body.input) > MOST_CHARACTERS:
        raise _wrong(
            "input", f"input: {counted(len(body.input), 'character')}; weights are shown of at most {MOST_CHARACTERS:,}"
        )
    playground = _playground(serving)
    return await serving.call(request, lambda: playground.weights(body.input), texts=1)


async def _embed(
    request: Request, texts: Sequence[str], method: str, role: str | None = None
) -> tuple[NDArray[np.float32], int]:
    """Vectors ``[b, width]`` of b texts, and how many texts were cut."""
    serving: ServerContext = request.app.state.serving
    playground = _playground(serving)
    legal = [choice.name for choice in playground.choices]
    if method not in legal:
        raise _wrong("method", f"method: {method!r:.80} is not offered; {', '.join(legal)} are")
    if method == SERVED:
        embedded = await serving.embed(request, texts, EmbedRequest(role))
        return embedded.vectors, len(embedded.truncated)
    found, truncated = [], 0
    for portion in portions(texts, serving.batcher.engine.step_tokens):

        def compute(portion: Sequence[str] = portion) -> tuple[NDArray[np.float32], int]:
            return playground.vectors(portion, method, role)

        vectors, cut = await serving.call(request, compute, texts=len(portion))
        found.append(vectors)
        truncated += cut
    return np.concatenate(found), truncated


async def _in_time(serving: ServerContext, work: Coroutine[Any, Any, T]) -> T:
    """What some work gives, within the time that a single answer has, of however many calls it is made.

    Raises:
        RequestError: 503, it took too long.
    """
    seconds = serving.limits.answer_seconds
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError:
        raise RequestError(503, f"no answer was found in {seconds:g} s", code="timeout") from None


def _playground(serving: ServerContext) -> Playground:
    playground = serving.batcher.engine.playground
    assert playground is not None, "the routes are there for engines that have one"
    return playground


def _check_count(count: int, most: int) -> None:
    if count > most:
        raise _wrong("input", f"input: {counted(count, 'text')}; at most {most:,} are taken here")


def _wrong(param: str, message: str) -> RequestError:
    return RequestError(400, message, code="invalid_value", param=param)

"""Routes of a server with an index: /v1/search and /v1/index."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PlainValidator

from valuembed._utils.text import counted
from valuembed.data import check_text
from valuembed.errors import RequestError
from valuembed.serving.context import ServerContext
from valuembed.serving.jobs import EmbedRequest
from valuembed.serving.request_body import JsonRoute
from valuembed.serving.routes.shared import JSON
from valuembed.serving.schemas import RequestFields, Usage, responses

WAYS = ("query", "vector", "like")
"""What a search can begin with."""

USUAL_HITS = 10
"""How many are returned where a search does not say."""

router = APIRouter(prefix="/v1", route_class=JsonRoute)


def _read_query(given: object) -> str:
    if reason := check_text(given):
        raise ValueError(f"it cannot be embedded: it is {reason}")
    if not str(given).strip():
        raise ValueError("it is blank, so there is nothing to look for")
    return str(given)


class IndexSearchRequest(RequestFields):
    """What to look for: one of query, vector and like. Null is as if a field were left out."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "Where is the cat?", "k": 5}]})

    query: (
        Annotated[str, PlainValidator(_read_query, json_schema_input_type=Annotated[str, Field(min_length=1)])] | None
    ) = Field(None, description="A text, embedded as encode_query does.")
    vector: Annotated[list[float], Field(min_length=1)] | None = Field(
        None, description="A vector of the same make as those that are stored, and as wide, of any length above 0."
    )
    like: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="The key of a row, as a hit has it: finds what is similar to it, and leaves it out."
    )
    k: Annotated[int, Field(ge=1)] | None = Field(
        None, description=f"How many to return at most; left out, {USUAL_HITS}."
    )
    where: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="A condition in SQL on the columns of /v1/index."
    )
    hybrid: bool | None = Field(
        None,
        description="Rank by meaning and by the words of the query, fused; left out, as /v1/index says of searches "
        "for a query.",
    )
    centre: bool | Literal["whiten"] | None = Field(
        None,
        description='Take the mean of all rows from query and rows; "whiten" scales their principal directions too. '
        "Left out, the mean is taken where it is known to help.",
    )


class Hit(BaseModel):
    """A row that was found; null is what is not known of it."""

    rank: int = Field(description="1 is the best.")
    score: float = Field(description="Cosine similarity.")
    fused: float | None = Field(description="Of a hybrid search, what decided the rank.")
    key: str = Field(description="What the row is known by; like takes it.")
    source: str
    id: int | str
    file: str | None
    row: int | None
    chunk: int | None
    start: int | None
    end: int | None
    text: str
    title: str | None = Field(description="Of the document.")
    headings: str | None = Field(description="Those that the passage stands under, joined by ' > '.")
    page: int | None = Field(description="From 1.")
    line: int | None = Field(description="In the file, from 1.")
    words: list[list[int]] = Field(description="Where words of the query stand in text: [start, end], in characters.")
    more: dict[str, Any] = Field(description="The row's other columns.")


class IndexSearchAnswer(BaseModel):
    """What was found, best first."""

    object: Literal["list"]
    data: list[Hit]
    model: str
    usage: Usage


class IndexDescription(BaseModel):
    """What is searched."""

    rows: int
    columns: dict[str, str] = Field(description="Those that a condition can use, with their types.")
    width: int = Field(description="Of a vector that it can be asked with.")
    model: str = Field(description="That made its vectors.")
    method: str
    hybrid: bool = Field(description="Whether a search for a query that does not say so ranks by its words too.")
    sources: list[str] = Field(description="Names that rows are known under.")


@router.post(
    "/search",
    response_class=Response,
    responses={
        200: {"model": IndexSearchAnswer, "description": "What was found."},
        **responses(400, 401, 404, 408, 413, 415, 429, 500, 503),
    },
)
async def search(request: Request, body: IndexSearchRequest) -> Response:
    """Search the index."""
    serving: ServerContext = request.app.state.serving
    way = _way(body)
    most = serving.limits.max_hits
    k = body.k or min(USUAL_HITS, most)
    if k > most:
        raise _wrong("k", f"k: {k}; at most {most:,} are returned")
    if body.hybrid and way != "query":
        raise _wrong("hybrid", f"hybrid: it looks for the words of a query, and {way} has none; leave it out")
    options: dict[str, Any] = {"where": body.where, "hybrid": body.hybrid, "centre": body.centre}
    vector, tokens = None, 0
    if way == "query":
        # What cannot be asked is said before anything is computed.
        await serving.ask_index(request, lambda index: index.check(**options))
        embedded = await serving.embed(request, [str(body.query)], EmbedRequest("query"), field="query")
        vector, tokens = embedded.vectors[0], embedded.tokens
    elif way == "vector":
        assert serving.index is not None, "the routes are there for servers that have one"
        vector = _vector(body.vector or [], serving.index.width)
    start = time.monotonic()
    found = await serving.ask_index(
        request,
        lambda index: index.search(vector, query=body.query, like=body.like, k=k, **options),
    )
    serving.metrics.searched(time.monotonic() - start)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = {"object": "list", "data": found, "model": serving.name, "usage": usage}
    return Response(json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace"), media_type=JSON)


@router.get("/index", responses=responses(401, 429, 503))
async def index(request: Request) -> IndexDescription:
    """Tell what the index holds."""
    serving: ServerContext = request.app.state.serving
    return IndexDescription(**await serving.ask_index(request, lambda index: index.describe()))


def _way(body: IndexSearchRequest) -> str:
    """What a search begins with.

    Raises:
        RequestError: 400, nothing or several things.
    """
    given = [name for name in WAYS if getattr(body, name) is not None]
    if len(given) != 1:
        what = f"{' and '.join(given)} were given" if given else "none was given"
        raise _wrong(given[-1] if given else "query", f"{what}; give one of {', '.join(WAYS)}")
    return given[0]


def _vector(given: list[float], width: int) -> NDArray[np.float32]:
    """A request's vector.

    Raises:
        RequestError: 400, it has another width, no direction, or numbers that are none.
    """
    if len(given) != width:
        raise _wrong(
            "vector",
            f"vector: {counted(len(given), 'number')}; vectors of this index have {width:,}, as /v1/embeddings gives "
            f"them with dimensions={width}",
        )
    with np.errstate(over="ignore"):
        vector = np.asarray(given, np.float32)
    if not np.isfinite(vector).all() or not vector.any():
        raise _wrong("vector", "vector: it has to be finite, and not all zeros")
    return vector


def _wrong(param: str, message: str) -> RequestError:
    return RequestError(400, message, code="invalid_value", param=param)

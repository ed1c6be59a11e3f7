"""OpenAI's routes: /v1/embeddings and /v1/models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from valuembed._utils.text import counted
from valuembed.errors import RequestError
from valuembed.serving.context import ServerContext
from valuembed.serving.jobs import EmbedRequest
from valuembed.serving.request_body import JsonRoute
from valuembed.serving.schemas import (
    EmbeddingsAnswer,
    EmbeddingsRequest,
    Model,
    Models,
    answer_parts,
    check_ids,
    responses,
)

JSON = "application/json"

SMALL_ANSWER = 16
"""Vectors up to which an answer is sent in one piece; a larger one is written while other requests are served."""

router = APIRouter(prefix="/v1", route_class=JsonRoute)


@router.post(
    "/embeddings",
    response_class=Response,
    responses={
        200: {"model": EmbeddingsAnswer, "description": "The vectors."},
        **responses(400, 401, 404, 408, 413, 415, 429, 500, 503),
    },
)
async def embeddings(request: Request, body: EmbeddingsRequest) -> Response:
    """Embed texts."""
    serving: ServerContext = request.app.state.serving
    texts = body.texts
    check_model(serving, body.model)
    _check_input(serving, body)
    template = tuple(body.template) if isinstance(body.template, list) else body.template
    manner = EmbedRequest(body.input_type, body.prompt, template)
    embedded = await serving.embed(request, texts, manner, truncate=body.truncate is not False)
    parts = answer_parts(embedded, serving.name, body.encoding_format or "float", body.dimensions)
    if len(texts) <= SMALL_ANSWER:
        return Response(b"".join(parts), media_type=JSON)
    return StreamingResponse(_in_turns(parts), media_type=JSON)


@router.get("/models", responses=responses(401, 429))
async def models(request: Request) -> Models:
    """The models that are served: one."""
    return Models(data=[_model(request.app.state.serving)])


@router.get("/models/{model:path}", responses=responses(401, 404, 429))
async def model(request: Request, model: str) -> Model:
    """One model."""
    serving: ServerContext = request.app.state.serving
    check_model(serving, model)
    return _model(serving)


def check_model(serving: ServerContext, name: str | None) -> None:
    """Raise unless a request names no model or the one that is served.

    Raises:
        RequestError: 404.
    """
    if name not in (None, serving.name):
        raise RequestError(
            404, f"model {name!r:.200} is not served; {serving.name!r} is", code="model_not_found", param="model"
        )


def _check_input(serving: ServerContext, body: EmbeddingsRequest) -> None:
    width, limits = serving.batcher.engine.width, serving.limits
    if body.dimensions is not None and body.dimensions > width:
        raise RequestError(
            400,
            f"dimensions: {body.dimensions} is more than the {width} that vectors of this model have",
            code="invalid_value",
            param="dimensions",
        )
    if len(body.texts) > limits.max_texts:
        raise RequestError(
            400,
            f"input: {counted(len(body.texts), 'text')}; a request may hold {limits.max_texts:,}",
            code="invalid_value",
            param="input",
        )
    ids = sum(len(text) for text in body.texts if not isinstance(text, str))
    if ids > limits.max_ids:
        raise RequestError(
            400,
            f"input: {counted(ids, 'token id')}; a request may hold {limits.max_ids:,}",
            code="invalid_value",
            param="input",
        )
    check_ids(body.texts, serving.batcher.engine.token_ids)


def _model(serving: ServerContext) -> Model:
    return Model(id=serving.name, created=serving.since, width=serving.batcher.engine.width)


async def _in_turns(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
        # Writing numbers out keeps the event loop busy; others get their turn.
        await asyncio.sleep(0)

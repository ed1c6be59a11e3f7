"""OpenAI's routes: /v1/embeddings and /v1/models."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from valuembed.serving.context import ServerContext
from valuembed.serving.jobs import EmbedRequest
from valuembed.serving.request_body import JsonRoute
from valuembed.serving.routes.shared import check_model, check_texts, json_answer
from valuembed.serving.schemas import (
    EmbeddingsAnswer,
    EmbeddingsRequest,
    Model,
    Models,
    answer_parts,
    responses,
)

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
    check_texts(serving, texts, body.dimensions)
    template = tuple(body.template) if isinstance(body.template, list) else body.template
    manner = EmbedRequest(body.input_type, body.prompt, template)
    embedded = await serving.embed(request, texts, manner, truncate=body.truncate is not False)
    parts = answer_parts(embedded, serving.name, body.encoding_format or "float", body.dimensions)
    return json_answer(parts, len(texts))


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


def _model(serving: ServerContext) -> Model:
    return Model(id=serving.name, created=serving.since, width=serving.batcher.engine.width)

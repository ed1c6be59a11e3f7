"""Routes of Hugging Face's text-embeddings-inference (TEI): /embed and /info."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, PlainValidator

from valuembed._utils.version import __version__
from valuembed.errors import RequestError
from valuembed.serving.context import ServerContext
from valuembed.serving.error_shapes import tei_responses
from valuembed.serving.jobs import EmbedRequest
from valuembed.serving.request_body import JsonRoute
from valuembed.serving.routes.shared import check_texts, json_answer, list_parts
from valuembed.serving.schemas import TEXTS_OR_IDS, RequestFields, first_dimensions, read_input

FIELD = "inputs"

ROLES = ("query", "document")
"""Names that stand for a role's template and instruction; other names are those of the model's instructions."""

router = APIRouter(route_class=JsonRoute)


class TeiEmbedRequest(RequestFields):
    """Texts to embed, and how; null is as if a field were left out."""

    inputs: Annotated[
        Any,
        PlainValidator(read_input, json_schema_input_type=TEXTS_OR_IDS),
        Field(description="A text, a list of texts, or this model's own token ids of one or several."),
    ]
    truncate: bool | None = Field(True, description="Cut texts that are too long; if false, they are an error.")
    truncation_direction: Literal["right", "Right"] | None = Field(
        "Right", description="Texts lose tokens of their end only."
    )
    normalize: bool | None = Field(
        True, description="Scale vectors to length 1; if false, they are as the model gives them."
    )
    prompt_name: str | None = Field(
        None, description="query or document, as encode_query and encode_document do, or one of the model's prompts."
    )
    dimensions: Annotated[int, Field(ge=1)] | None = Field(None, description="Keep so many numbers of each vector.")
    encoding_format: Literal["float"] | None = Field("float", description="The only one here.")


class TeiPooling(BaseModel):
    """How the vectors are read."""

    pooling: str


class TeiModelType(BaseModel):
    """What the model is: one that embeds."""

    embedding: TeiPooling


class TeiInfo(BaseModel):
    """The model and what the server takes on."""

    model_id: str
    model_sha: str | None = None
    model_dtype: str
    model_type: TeiModelType
    max_concurrent_requests: int
    max_input_length: int | None
    max_batch_tokens: int
    max_batch_requests: int | None = None
    max_client_batch_size: int
    auto_truncate: bool = True
    tokenization_workers: int = 1
    version: str = Field(description="Of this server, not of text-embeddings-inference.")
    sha: str | None = None
    docker_label: str | None = None


# Its clients also ask at the address itself.
@router.post("/", response_class=Response, include_in_schema=False)
@router.post(
    "/embed",
    response_class=Response,
    responses={
        200: {"model": list[list[float]], "description": "The vectors."},
        **tei_responses(400, 401, 408, 413, 415, 422, 424, 429, 500, 503),
    },
)
async def embed(request: Request, body: TeiEmbedRequest) -> Response:
    """Embed texts, as text-embeddings-inference does."""
    serving: ServerContext = request.app.state.serving
    texts = body.inputs
    manner = _manner(serving, body.prompt_name)
    check_texts(serving, texts, body.dimensions, field=FIELD)
    embedded = await serving.embed(request, texts, manner, truncate=body.truncate is not False, field=FIELD)
    scaled = body.normalize is not False
    rows = (first_dimensions(row, body.dimensions, scaled=scaled) for row in embedded.vectors)
    return json_answer(list_parts(rows), len(texts))


@router.get("/info", responses=tei_responses(401, 429))
async def info(request: Request) -> TeiInfo:
    """Tell of the model and the server's limits."""
    serving: ServerContext = request.app.state.serving
    engine, limits = serving.batcher.engine, serving.limits
    return TeiInfo(
        model_id=serving.name,
        model_dtype=engine.facts.dtype,
        model_type=TeiModelType(embedding=TeiPooling(pooling=engine.facts.method)),
        max_concurrent_requests=limits.max_requests,
        max_input_length=engine.facts.max_tokens,
        max_batch_tokens=engine.step_tokens,
        max_client_batch_size=limits.max_texts,
        version=__version__,
    )


def _manner(serving: ServerContext, name: str | None) -> EmbedRequest:
    """How texts are embedded by a prompt's name.

    Raises:
        RequestError: 400, no such prompt.
    """
    prompts = serving.batcher.engine.facts.prompts
    if name is None or name in ROLES:
        return EmbedRequest(name)
    if name not in prompts:
        legal = ", ".join(dict.fromkeys((*ROLES, *prompts)))
        message = f"prompt_name: this model has no prompt {name!r:.80}; legal: {legal}"
        raise RequestError(400, message, code="invalid_value", param="prompt_name")
    return EmbedRequest(prompt=prompts[name])

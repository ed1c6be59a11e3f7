"""Ollama's routes: /api/embed and the older /api/embeddings, and what its clients ask before they use them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, PlainValidator

from valuembed._utils.version import __version__
from valuembed.serving.context import ServerContext
from valuembed.serving.error_shapes import ollama_responses
from valuembed.serving.jobs import Embedded, Text
from valuembed.serving.request_body import JsonRoute
from valuembed.serving.routes.shared import check_model, check_texts, json_answer, list_parts
from valuembed.serving.schemas import RequestFields, Words, first_dimensions, read_input

LATEST = ":latest"
"""The tag that Ollama's clients give a name that has none."""

TEXTS_ONLY = "it has to be a text or a list of texts"

EMBED_ERRORS = ollama_responses(400, 401, 404, 408, 413, 415, 429, 500, 503)

router = APIRouter(prefix="/api", route_class=JsonRoute)


def _read_texts(given: object) -> list[Text]:
    """The texts of a request; of an empty list, none, as Ollama takes it."""
    if given == []:
        return []
    if not isinstance(given, (str, list)):
        raise ValueError(TEXTS_ONLY)
    texts = read_input(given)
    if any(not isinstance(text, str) for text in texts):
        raise ValueError(f"{TEXTS_ONLY}; token ids are taken at /v1/embeddings")
    return texts


def _read_one(given: object) -> Text:
    if not isinstance(given, str):
        raise ValueError("it has to be a text")
    return read_input(given)[0]


class _Ollama(RequestFields):
    model: str | None = Field(None, description="A name of /api/tags; left out, the one that is served.")
    options: dict[str, Any] | None = Field(None, description="Taken for compatibility; nothing is done with it.")
    keep_alive: str | float | None = Field(None, description="Taken for compatibility; the model stays loaded.")


class OllamaEmbedRequest(_Ollama):
    """Texts to embed; null is as if a field were left out."""

    input: Annotated[
        Any,
        PlainValidator(_read_texts, json_schema_input_type=Words | list[Words]),
        Field(description="A text, or a list of texts."),
    ]
    truncate: bool | None = Field(True, description="Cut texts that are too long; if false, they are an error.")
    dimensions: Annotated[int, Field(ge=1)] | None = Field(None, description="Keep so many numbers of each vector.")


class OllamaEmbedAnswer(BaseModel):
    """Vectors of length 1 in the order of the texts; durations are in nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int = Field(description="Tokens that were fed, templates included.")


class OllamaEmbeddingsRequest(_Ollama):
    """A text to embed; null is as if a field were left out."""

    prompt: Annotated[Any, PlainValidator(_read_one, json_schema_input_type=Words), Field(description="A text.")]


class OllamaEmbeddingsAnswer(BaseModel):
    """One vector."""

    embedding: list[float]


class OllamaDetails(BaseModel):
    """What Ollama tells of a model file; there is none here."""

    parent_model: str = ""
    format: str = ""
    family: str = "valuembed"
    families: list[str] = ["valuembed"]
    parameter_size: str = ""
    quantization_level: str = ""


class OllamaModel(BaseModel):
    """A model that is served."""

    name: str
    model: str
    modified_at: str
    size: int = 0
    digest: str = ""
    details: OllamaDetails = OllamaDetails()


class OllamaModels(BaseModel):
    """The models that are served: one."""

    models: list[OllamaModel]


class OllamaVersion(BaseModel):
    """The version of this server, not of Ollama."""

    version: str


class OllamaShowRequest(RequestFields):
    """Which model to tell of."""

    model: str | None = Field(None, description="A name of /api/tags; left out, the one that is served.")
    name: str | None = Field(None, description="An older name of the field model.")
    verbose: bool | None = Field(None, description="Taken for compatibility; nothing is done with it.")


class OllamaShown(BaseModel):
    """What a model can do, how wide its vectors are and how many tokens it takes."""

    modelfile: str = ""
    parameters: str = ""
    template: str = ""
    details: OllamaDetails = OllamaDetails()
    model_info: dict[str, str | int | None]
    capabilities: list[Literal["embedding"]] = ["embedding"]
    modified_at: str


@router.post(
    "/embed",
    response_class=Response,
    responses={200: {"model": OllamaEmbedAnswer, "description": "The vectors."}, **EMBED_ERRORS},
)
async def embed(request: Request, body: OllamaEmbedRequest) -> Response:
    """Embed texts, as Ollama does."""
    serving: ServerContext = request.app.state.serving
    since, texts = time.monotonic_ns(), body.input
    _check_name(serving, body.model)
    check_texts(serving, texts, body.dimensions)
    embedded = await serving.embed(request, texts, truncate=body.truncate is not False)
    spent = time.monotonic_ns() - since
    return json_answer(_parts(embedded, body.model or serving.name, body.dimensions, spent), len(texts))


@router.post("/embeddings", responses=EMBED_ERRORS)
async def embeddings(request: Request, body: OllamaEmbeddingsRequest) -> OllamaEmbeddingsAnswer:
    """Embed one text, as older clients of Ollama ask for it; the vector is not scaled."""
    serving: ServerContext = request.app.state.serving
    _check_name(serving, body.model)
    embedded = await serving.embed(request, [body.prompt], field="prompt")
    return OllamaEmbeddingsAnswer(embedding=embedded.vectors[0].tolist())


@router.get("/tags", responses=ollama_responses(401, 429))
async def tags(request: Request) -> OllamaModels:
    """The models that are served: one."""
    serving: ServerContext = request.app.state.serving
    return OllamaModels(models=[OllamaModel(name=serving.name, model=serving.name, modified_at=_since(serving))])


@router.get("/version", responses=ollama_responses(401, 429))
async def version() -> OllamaVersion:
    """The version of this server."""
    return OllamaVersion(version=__version__)


@router.post("/show", responses=ollama_responses(400, 401, 404, 408, 413, 415, 429))
async def show(request: Request, body: OllamaShowRequest) -> OllamaShown:
    """Tell of a model."""
    serving: ServerContext = request.app.state.serving
    _check_name(serving, body.model or body.name)
    engine = serving.batcher.engine
    return OllamaShown(
        model_info={
            "general.architecture": "valuembed",
            "valuembed.embedding_length": engine.width,
            "valuembed.context_length": engine.facts.max_tokens,
        },
        modified_at=_since(serving),
    )


def _check_name(serving: ServerContext, name: str | None) -> None:
    check_model(serving, serving.name if name == serving.name + LATEST else name)


def _since(serving: ServerContext) -> str:
    return datetime.fromtimestamp(serving.since, timezone.utc).isoformat()


def _parts(embedded: Embedded, model: str, dimensions: int | None, spent: int) -> Iterator[bytes]:
    """An :class:`OllamaEmbedAnswer` as JSON."""
    yield f'{{"model": {json.dumps(model)}, "embeddings": '.encode()
    # Ollama's vectors have length 1, whatever the model's have.
    yield from list_parts(first_dimensions(row, dimensions) for row in embedded.vectors)
    # The model was loaded before.
    rest = json.dumps({"total_duration": spent, "load_duration": 0, "prompt_eval_count": embedded.tokens})
    yield f", {rest[1:]}".encode()

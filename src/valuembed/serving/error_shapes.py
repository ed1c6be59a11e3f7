"""The shape of an error in each API that the server speaks, told from the path that was asked for."""

from __future__ import annotations

from typing import Any, Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.types import Scope

from valuembed.errors import RequestError
from valuembed.serving.schemas import DESCRIPTIONS, EMPTY, error_response

OLLAMA_PREFIX = "/api/"

TEI_PATHS = frozenset({"/", "/embed", "/info"})
"""Paths of text-embeddings-inference; at ``/`` it takes what it takes at ``/embed``."""

TeiErrorType = Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"]

WRONG_VALUE: tuple[int, TeiErrorType] = (422, "Validation")

TEI_CODES: dict[str | None, tuple[int, TeiErrorType]] = {
    EMPTY: (400, "Empty"),
    "too_long": (413, "Validation"),
    "too_many": (413, "Validation"),
    "model_failed": (424, "Backend"),
}
"""Status and type of errors that text-embeddings-inference tells apart; other wrong values are :data:`WRONG_VALUE`."""

TEI_TYPES: dict[int, TeiErrorType] = {429: "Overloaded", 500: "Backend", 503: "Unhealthy"}
"""Types of the other statuses; of all that are not named it is Validation."""


class OllamaError(BaseModel):
    """What went wrong, as Ollama says it."""

    error: str


class TeiError(BaseModel):
    """What went wrong, as text-embeddings-inference says it."""

    error: str
    error_type: TeiErrorType


def error_answer(error: RequestError, path: str) -> JSONResponse:
    """An error in the shape of the API that a path belongs to: OpenAI's, where it is not another's.

    Args:
        error: of a request.
        path: within the application, as :func:`path_within` gives it.
    """
    if path.startswith(OLLAMA_PREFIX):
        return JSONResponse(OllamaError(error=str(error)).model_dump(), error.status, error.headers)
    if path in TEI_PATHS:
        usual = WRONG_VALUE if error.status == 400 else (error.status, TEI_TYPES.get(error.status, "Validation"))
        status, kind = TEI_CODES.get(error.code, usual)
        return JSONResponse(TeiError(error=str(error), error_type=kind).model_dump(), status, error.headers)
    return error_response(error)


def path_within(scope: Scope) -> str:
    """The path of a request within the application, without slashes at its end."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path.rstrip("/") or "/"


def ollama_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI description: errors of these statuses come in Ollama's shape."""
    return {status: {"model": OllamaError, "description": DESCRIPTIONS[status]} for status in statuses}


def tei_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI description: errors of these statuses come in text-embeddings-inference's shape."""
    said = {
        **DESCRIPTIONS,
        400: "There is no text, or an empty one.",
        413: "The body is too large, there are too many texts, or one is too long and may not be cut.",
        422: "The request is wrong; the message says what is.",
        424: "The model failed.",
    }
    return {status: {"model": TeiError, "description": said[status]} for status in statuses}

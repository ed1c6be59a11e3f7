"""The shapes of OpenAI's embeddings API: what a request may hold, what an answer holds, and errors in its envelope."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from valuembed.data import check_text
from valuembed.errors import RequestError
from valuembed.serving.jobs import MOST_TEMPLATES, Embedded, Text

MOST_CHARACTERS = 20_000
"""Of a template or an instruction: each of a request's texts is put into them."""

EMPTY = "empty_input"
"""The code of the error of a request without a text, or with an empty one."""

BUSY_TYPES = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
"""What OpenAI's envelope calls an error; every other status is the request's own fault."""

Id = Annotated[int, Field(ge=0)]
Words = Annotated[str, Field(min_length=1)]
Ids = Annotated[list[Id], Field(min_length=1)]
Template = Annotated[str, Field(max_length=MOST_CHARACTERS)]

TEXTS_OR_IDS: Any = (
    Words | Annotated[list[Words], Field(min_length=1)] | Ids | Annotated[list[Ids], Field(min_length=1)]
)
"""The four forms of an input, for the OpenAPI description."""


def read_input(given: object) -> list[Text]:
    """The texts of a request, in any of the four forms that OpenAI takes.

    Lists of numbers are taken for token ids here; :func:`check_ids` knows which of them the model has.

    Raises:
        ValueError: it is none of them, or holds what is no text. The message repeats nothing of it.
    """
    if isinstance(given, str):
        return [_text(given, "it")]
    if not isinstance(given, list) or not given:
        message = "it has to be a text, a list of texts, a list of token ids, or a list of such lists"
        raise PydanticCustomError(EMPTY, message) if given == [] else ValueError(message)
    if all(map(_is_number, given)):
        return [tuple(given)]
    return [_text(item, f"item {index}") for index, item in enumerate(given)]


def check_ids(texts: Sequence[Text], known: int | None, field: str = "input") -> None:
    """Raise on the first number that is no token id of a model.

    Args:
        texts: of a request.
        known: how many ids the model has, from 0 on; None for any number of them.
        field: of the request, that holds the texts.

    Raises:
        RequestError: 400, with the legal range.
    """
    for text, ids in enumerate(texts):
        for place, number in enumerate(() if isinstance(ids, str) else ids):
            whole = isinstance(number, int) and not isinstance(number, bool)
            if not whole or number < 0 or (known is not None and number >= known):
                legal = "from 0 on" if known is None else f"from 0 to {known - 1}"
                of = f"item {text}, " if len(texts) > 1 else ""
                raise RequestError(
                    400,
                    f"{field}: {of}token {place} is {json.dumps(number):.40}, which is no token id of this model: its "
                    f"ids are whole numbers {legal}; those of another tokenizer mean other words here, so send texts",
                    code="invalid_value",
                    param=field,
                )


def _is_number(item: object) -> bool:
    return isinstance(item, (int, float))


def _text(item: object, where: str) -> Text:
    if isinstance(item, list) and item and all(map(_is_number, item)):
        return tuple(item)
    if item is None:
        raise ValueError(f"{where} is null, and no text")
    if item == "":
        raise PydanticCustomError(EMPTY, f"{where} is an empty text, which has no embedding")
    if reason := check_text(item):
        raise ValueError(f"{where} cannot be embedded: it is {reason}")
    return str(item)


class RequestFields(BaseModel):
    """The fields of a request: no others are taken, and null is as if one were left out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        """Many clients send null for what they were not given, also in fields of other servers."""
        if not isinstance(given, dict):
            return given
        needed = {name for name, field in cls.model_fields.items() if field.is_required()}
        return {name: value for name, value in given.items() if value is not None or name in needed}


class EmbeddingsRequest(RequestFields):
    """What to embed, and how. The last four fields are this server's own; null is as if a field were left out."""

    input: Annotated[
        Any,
        PlainValidator(
            read_input,
            json_schema_input_type=TEXTS_OR_IDS,
        ),
        Field(
            description="A text, a list of texts, the token ids of a text, or a list of such ids. Ids are those of "
            "this model's own tokenizer; those of another mean other words."
        ),
    ]
    model: str | None = Field(None, description="A name of /v1/models; left out, the one that is served.")
    encoding_format: Literal["float", "base64"] | None = Field(
        "float", description="base64 is of little-endian float32."
    )
    dimensions: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Keep so many numbers of each vector, and scale what is left to length 1."
    )
    user: str | None = Field(None, description="Taken for compatibility; nothing is done with it.")
    input_type: Literal["query", "document"] | None = Field(
        None, description="Whose template and instruction: those of encode_query or of encode_document."
    )
    prompt: Annotated[str, Field(max_length=MOST_CHARACTERS)] | None = Field(
        None, description="An instruction in place of the model's own."
    )
    template: Template | Annotated[list[Template], Field(min_length=1, max_length=MOST_TEMPLATES)] | None = Field(
        None, description="A template in place of the model's own: a name, a string with one {text}, or several."
    )
    truncate: bool | None = Field(True, description="Cut texts that are too long; if false, they are an error.")

    @property
    def texts(self) -> list[Text]:
        """The texts, each a string or token ids."""
        found: list[Text] = self.input
        return found


class Embedding(BaseModel):
    """One vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens that were fed, templates included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """Vectors in the order of the texts, and which texts lost tokens of their end."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage
    truncated: list[int]


class Model(BaseModel):
    """A model that is served: OpenAI's fields, and what it gives."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "valuembed"
    width: int = Field(description="Of its vectors.")


class Models(BaseModel):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorBody(BaseModel):
    """What went wrong, in words and for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """OpenAI's envelope."""

    error: ErrorBody


def answer_parts(embedded: Embedded, model: str, encoding_format: str, dimensions: int | None) -> Iterator[bytes]:
    """An :class:`EmbeddingsAnswer` as JSON, a part for each vector: the whole of a large one is never in memory."""
    yield b'{"object": "list", "data": ['
    for index, row in enumerate(embedded.vectors):
        vector = row if dimensions is None else first_dimensions(row, dimensions)
        if encoding_format == "base64":
            written = f'"{base64.b64encode(vector.astype("<f4").tobytes()).decode()}"'
        else:
            written = json.dumps(vector.tolist())
        comma = ", " if index else ""
        yield f'{comma}{{"object": "embedding", "index": {index}, "embedding": {written}}}'.encode()
    usage = {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens}
    rest = json.dumps({"model": model, "usage": usage, "truncated": embedded.truncated})
    yield f"], {rest[1:]}".encode()


def first_dimensions(
    vector: NDArray[np.float32], dimensions: int | None, *, scaled: bool = True
) -> NDArray[np.float32]:
    """The first numbers of a vector, or all, scaled to length 1 unless they are to stay; zeros stay zeros."""
    first = vector[:dimensions]
    length = max(float(np.linalg.norm(first)), 1e-12) if scaled else 1.0
    found: NDArray[np.float32] = first / length
    return found


def error_response(error: RequestError) -> JSONResponse:
    """An error in OpenAI's envelope."""
    body = ErrorBody(
        message=str(error),
        type=BUSY_TYPES.get(error.status, "invalid_request_error"),
        param=error.param,
        code=error.code,
    )
    return JSONResponse(ErrorAnswer(error=body).model_dump(), error.status, error.headers)


def invalid_request(error: RequestValidationError, fields: Sequence[str]) -> RequestError:
    """What is wrong with a request, for the client; of its values nothing is repeated.

    Args:
        error: of its body.
        fields: that the body may have.
    """
    first: Mapping[str, Any] = error.errors()[0]
    kind, where = first["type"], first["loc"]
    if kind == "json_invalid":
        return RequestError(400, f"the body is not valid JSON: {first['ctx']['error']}", code="invalid_json")
    if len(where) < 2:
        return RequestError(400, "the body has to be a JSON object, sent as application/json", code="invalid_body")
    field = f"{where[1]:.40}" if isinstance(where[1], str) else str(where[1])
    if kind == "extra_forbidden":
        message = f"{field}: no such field; legal: {', '.join(fields)}"
        return RequestError(400, message, code="unknown_field", param=field)
    message = str(first["msg"]).removeprefix("Value error, ")
    return RequestError(400, f"{field}: {message}", code=EMPTY if kind == EMPTY else "invalid_value", param=field)


DESCRIPTIONS: Mapping[int, str] = {
    400: "The request is wrong; the message says what is.",
    401: "The key is missing or wrong.",
    404: "No such model.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is compressed, or not sent as JSON in UTF-8.",
    429: "The server is full; Retry-After says when to try again.",
    500: "The model failed.",
    503: "The server takes nothing now, or found no answer in time.",
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI description: errors of these statuses come in the envelope."""
    return {status: {"model": ErrorAnswer, "description": DESCRIPTIONS[status]} for status in statuses}

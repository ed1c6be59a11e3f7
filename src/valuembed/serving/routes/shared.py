"""What the routes of every API do alike: check what is asked for, and write vectors out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

import numpy as np
from fastapi.responses import Response, StreamingResponse
from numpy.typing import NDArray

from valuembed._utils.text import counted
from valuembed.errors import RequestError
from valuembed.serving.context import ServerContext
from valuembed.serving.jobs import Text
from valuembed.serving.schemas import check_ids

JSON = "application/json"

SMALL_ANSWER = 16
"""Vectors up to which an answer is sent in one piece; a larger one is written while other requests are served."""


def check_model(serving: ServerContext, name: str | None) -> None:
    """Raise unless a request names no model or the one that is served.

    Raises:
        RequestError: 404.
    """
    if name not in (None, serving.name):
        raise RequestError(
            404, f"model {name!r:.200} is not served; {serving.name!r} is", code="model_not_found", param="model"
        )


def check_texts(
    serving: ServerContext, texts: Sequence[Text], dimensions: int | None = None, *, field: str = "input"
) -> None:
    """Raise on more numbers of a vector, texts or token ids than there are or may be, and on ids that are none.

    Args:
        serving: the server.
        texts: of a request.
        dimensions: that are to be kept of each vector; None for all.
        field: of the request, that holds the texts.

    Raises:
        RequestError: 400.
    """
    width, limits = serving.batcher.engine.width, serving.limits
    if dimensions is not None and dimensions > width:
        raise RequestError(
            400,
            f"dimensions: {dimensions} is more than the {width} that vectors of this model have",
            code="invalid_value",
            param="dimensions",
        )
    if len(texts) > limits.max_texts:
        raise RequestError(
            400,
            f"{field}: {counted(len(texts), 'text')}; a request may hold {limits.max_texts:,}",
            code="too_many",
            param=field,
        )
    ids = sum(len(text) for text in texts if not isinstance(text, str))
    if ids > limits.max_ids:
        raise RequestError(
            400,
            f"{field}: {counted(ids, 'token id')}; a request may hold {limits.max_ids:,}",
            code="too_many",
            param=field,
        )
    check_ids(texts, serving.batcher.engine.token_ids, field)


def list_parts(vectors: Iterable[NDArray[np.float32]]) -> Iterator[bytes]:
    """Vectors as a JSON list of lists, a part for each: the whole of a large one is never in memory."""
    yield b"["
    for index, vector in enumerate(vectors):
        yield f"{', ' if index else ''}{json.dumps(vector.tolist())}".encode()
    yield b"]"


def json_answer(parts: Iterator[bytes], vectors: int) -> Response:
    """An answer of some vectors, written in parts where they are many."""
    if vectors <= SMALL_ANSWER:
        return Response(b"".join(parts), media_type=JSON)
    return StreamingResponse(_in_turns(parts), media_type=JSON)


async def _in_turns(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
        # Writing numbers out keeps the event loop busy; others get their turn.
        await asyncio.sleep(0)

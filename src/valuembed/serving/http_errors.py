"""Errors of requests as a client sees them: wrong fields, paths that are not there, methods that are not taken."""

from __future__ import annotations

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from valuembed.errors import RequestError
from valuembed.serving.error_shapes import OLLAMA_PREFIX, error_answer, path_within
from valuembed.serving.schemas import invalid_request

API_PATHS = ("/v1/embeddings", "/v1/models")
"""What clients of OpenAI's API ask for."""

INDEX_PATHS = ("/v1/search", "/v1/index", "/v1/map")
"""What is only there where an index is served."""

OTHER_APIS = {"/api/embed": "Ollama", "/api/embeddings": "Ollama", "/embed": "text-embeddings-inference"}
"""Where clients of other servers have texts embedded."""


async def on_error(request: Request, error: Exception) -> Response:
    """The answer to an error of a request, in the shape of the API that was asked."""
    if isinstance(error, RequestValidationError):
        error = invalid_request(error, _fields(request))
    elif isinstance(error, HTTPException):
        if error.status_code == 405:
            return _other_method(request, error)
        if error.status_code == 404 and error.detail == "Not Found":  # of no route at all
            error = RequestError(404, _no_path(request.scope["path"]), code="not_found")
        else:
            error = RequestError(error.status_code, error.detail, headers=dict(error.headers or {}))
    assert isinstance(error, RequestError)
    return error_answer(error, path_within(request.scope))


def _no_path(path: str) -> str:
    if path in INDEX_PATHS:
        return f"there is no {path!r} here, for no index is served; start the server with: valuembed serve --index DIR"
    for known, api in OTHER_APIS.items():
        if path.endswith(known):
            return f"there is no {path!r:.100} here; {api}'s clients find {known} if their address ends with the port"
    if path.startswith(OLLAMA_PREFIX):
        ours = " and ".join(known for known, api in OTHER_APIS.items() if api == "Ollama")
        return f"there is no {path!r:.100} here; of Ollama's API, this server embeds at {ours}, and generates nothing"
    for known in API_PATHS:
        last = known.removeprefix("/v1")
        if path.endswith(last):
            return (
                f"there is no {path!r:.100} here; {last[1:]} are at {known}, so the base URL of a client ends with the "
                "port and one /v1"
            )
    return f"there is no {path!r:.100} here; this server has {' and '.join(API_PATHS)}"


def _other_method(request: Request, error: HTTPException) -> Response:
    methods = sorted({name.strip() for name in (error.headers or {}).get("Allow", "").split(",") if name.strip()})
    headers = {"Allow": ", ".join([*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"])}
    if request.method == "OPTIONS":
        return Response(status_code=204, headers=headers)
    message = f"{request.method:.20} is not taken at {request.scope['path']!r:.100}; use {' or '.join(methods)}"
    return error_answer(
        RequestError(405, message, code="method_not_allowed", headers=headers), path_within(request.scope)
    )


def _fields(request: Request) -> list[str]:
    """The fields that a body may have at the path that was asked for."""
    body = getattr(request.scope.get("route"), "body_field", None)
    model = getattr(getattr(body, "field_info", None), "annotation", None)
    return list(getattr(model, "model_fields", ()))

"""What watches a server asks: /health, /ready and /metrics."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from valuembed.serving.batcher import DEAD
from valuembed.serving.context import ServerContext

router = APIRouter()


class Status(BaseModel):
    """What the server is doing."""

    status: Literal["ready", "starting", "stuck", "dead", "stopped", "leaving"]


@router.get(
    "/health", response_model=Status, responses={503: {"model": Status, "description": "Only a new process will do."}}
)
async def health(request: Request) -> JSONResponse:
    """Whether the process is of any use: it is, unless its model's thread has died."""
    return _answer(request, well=request.app.state.serving.state != DEAD)


@router.get(
    "/ready", response_model=Status, responses={503: {"model": Status, "description": "Send requests elsewhere."}}
)
async def ready(request: Request) -> JSONResponse:
    """Whether requests should be sent here: not while the model starts, is stuck or dead, or the server ends."""
    return _answer(request, well=request.app.state.serving.ready)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Counters and histograms, in Prometheus' text format."""
    serving: ServerContext = request.app.state.serving
    return Response(serving.metrics.page(), media_type=CONTENT_TYPE_LATEST)


def _answer(request: Request, *, well: bool) -> JSONResponse:
    serving: ServerContext = request.app.state.serving
    return JSONResponse({"status": serving.state}, 200 if well else 503)

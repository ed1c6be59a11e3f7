"""Routes of a server with an index: /v1/map, where each of its rows lies on a plane."""

from __future__ import annotations

import base64
import json
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from valuembed.errors import RequestError
from valuembed.serving.context import ServerContext
from valuembed.serving.request_body import JsonRoute
from valuembed.serving.routes.search import Hit
from valuembed.serving.routes.shared import JSON
from valuembed.serving.schemas import RequestFields, responses
from valuembed.serving.stored_map import PlacedRows, StoredMap

MOST_PASSAGES = 100
"""Of one request for passages of a map, or for their places."""

router = APIRouter(prefix="/v1/map", route_class=JsonRoute)


class Area(BaseModel):
    """Rows that are similar."""

    words: list[str] = Field(description="That tell the area from the others, the most telling first.")
    rows: int
    place: tuple[float, float] = Field(description="Where they crowd, from -1 to 1.")
    examples: list[int] = Field(description="Numbers of the rows next to that place.")


class PlacedMap(BaseModel):
    """Where the rows of an index lie: near means similar."""

    version: str = Field(description="Differs between maps.")
    rows: int = Field(description="Of the index; a large one has a sample on its map.")
    points: int = Field(description="Rows that are on the map, numbered from 0.")
    places: str = Field(
        description="x and y of each row in turn, from 0 (-1) to 65535 (1), as base64 of little-endian uint16."
    )
    area_of: str = Field(description="The number of each row's area, as base64 of bytes.")
    areas: list[Area] = Field(description="The largest first.")


class MapAnswer(BaseModel):
    """The map, and what is going on."""

    object: Literal["map"]
    state: Literal["ready", "making", "failed"] = Field(description="A map may be there while the next one is made.")
    step: Literal["reading", "placing", "naming"] | None
    done: float | None = Field(description="How much of the step, from 0 to 1.")
    map: PlacedMap | None = Field(description="Null where there is none yet, or where the client has it.")
    version: str | None = Field(description="Of the latest map.")


class PassagesRequest(RequestFields):
    """Rows to look up: by their numbers on a map, or by their keys."""

    version: str | None = Field(None, description="Of the map that the numbers are of.")
    numbers: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MOST_PASSAGES)] | None = None
    keys: Annotated[list[str], Field(max_length=MOST_PASSAGES)] | None = None


class Passages(BaseModel):
    """Rows in the order in which they were asked for; null is one that is no longer there."""

    object: Literal["list"]
    data: list[Hit | None]


class PlacesRequest(RequestFields):
    """Rows to find on a map."""

    version: str = Field(description="Of the map.")
    keys: Annotated[list[str], Field(max_length=MOST_PASSAGES)]


class Places(BaseModel):
    """The number of each row on the map; null is one that is not on it."""

    object: Literal["list"]
    data: list[int | None]


@router.get(
    "",
    response_class=Response,
    responses={200: {"model": MapAnswer, "description": "The map."}, **responses(400, 401, 429, 503)},
)
async def corpus_map(request: Request, known: str | None = None) -> Response:
    """Show where the rows of the index lie on a plane; ask again until it is ready.

    A client that names the version it has is not sent that one again.
    """
    found, told = await _ask(request)
    shown = None if found is None or found.version == known else _packed(found)
    answer = {"object": "map", **told, "map": shown, "version": found.version if found else None}
    return _json(answer)


@router.post(
    "/passages",
    response_class=Response,
    responses={
        200: {"model": Passages, "description": "The rows."},
        **responses(400, 401, 404, 408, 413, 415, 429, 503),
    },
)
async def passages(request: Request, body: PassagesRequest) -> Response:
    """Look rows up, by their numbers on the map or by their keys."""
    if (body.numbers is None) == (body.keys is None):
        raise RequestError(400, "give either numbers or keys", code="invalid_value", param="numbers")
    keys = body.keys or []
    if body.numbers is not None:
        on_map = await _of_version(request, body.version)
        if wrong := [number for number in body.numbers if number >= len(on_map.keys)]:
            message = f"numbers: {wrong[0]}; those of this map end at {len(on_map.keys) - 1:,}"
            raise RequestError(400, message, code="invalid_value", param="numbers")
        keys = [on_map.keys[number] for number in body.numbers]
    serving: ServerContext = request.app.state.serving
    found = await serving.ask_index(request, lambda index: _map(serving).passages(keys))
    return _json({"object": "list", "data": list(found)})


@router.post("/places", responses=responses(400, 401, 404, 408, 413, 415, 429, 503))
async def places(request: Request, body: PlacesRequest) -> Places:
    """Find rows on the map by their keys."""
    on_map = await _of_version(request, body.version)
    return Places(object="list", data=[on_map.numbers.get(key) for key in body.keys])


async def _ask(request: Request) -> tuple[PlacedRows | None, dict[str, object]]:
    serving: ServerContext = request.app.state.serving
    return await serving.ask_index(request, lambda index: _map(serving).find())


async def _of_version(request: Request, version: str | None) -> PlacedRows:
    """The map that a client has.

    Raises:
        RequestError: 404, there is another one by now.
    """
    found, _ = await _ask(request)
    if found is None or found.version != version:
        raise RequestError(
            404,
            f"there is no map of version {version!r:.40} any more; GET /v1/map",
            code="map_changed",
            param="version",
        )
    return found


def _map(serving: ServerContext) -> StoredMap:
    assert serving.map is not None, "the routes are there for servers that have one"
    return serving.map


def _packed(found: PlacedRows) -> dict[str, object]:
    numbers = np.round((np.clip(found.places, -1, 1) + 1) * 32767.5).astype("<u2")
    return {
        "version": found.version,
        "rows": found.rows,
        "points": len(found.keys),
        "places": base64.b64encode(numbers.tobytes()).decode(),
        "area_of": base64.b64encode(found.area_of.tobytes()).decode(),
        "areas": [
            {
                "words": list(area.words),
                "rows": area.rows,
                "place": [round(float(at), 4) for at in area.place],
                "examples": list(area.examples),
            }
            for area in found.areas
        ],
    }


def _json(answer: object) -> Response:
    return Response(json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace"), media_type=JSON)

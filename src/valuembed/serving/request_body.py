"""The body of a request: a JSON object in UTF-8, or an error that says why it is none."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from email.message import Message
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from valuembed.errors import RequestError

SEND_JSON = "send JSON, with the header 'Content-Type: application/json'"


class JsonRoute(APIRoute):
    """A route that reads its body by :func:`read_json`, whose errors name the reason."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """What answers a request."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            if self.body_field is not None:
                request = _JsonRequest(request.scope, request.receive)
                await request.json()
            return await handle(request)

        return answer


class _JsonRequest(Request):
    """A request that is read once, before FastAPI asks for what it holds."""

    _read: dict[str, Any] | None = None

    async def json(self) -> dict[str, Any]:
        if self._read is None:
            self._read = read_json(self.headers, await self.body())
        return self._read


def read_json(headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """The object that a request's body holds.

    Args:
        headers: of the request, their names in lower case.
        body: as it was sent.

    Raises:
        RequestError: 415 where it is not sent as JSON, 400 where it is not a JSON object in UTF-8. The message repeats
            nothing of its values.
    """
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise _unsupported(f"Content-Encoding {coding!r:.40}: compressed bodies are not taken; send the body as it is")
    _check_type(headers.get("content-type"))
    if not body:
        raise _invalid("the body is empty; it has to be a JSON object", code="invalid_body")
    if body.startswith(b"\x1f\x8b"):
        raise _invalid("the body is compressed with gzip; send it as it is")
    if not json.detect_encoding(body).startswith("utf-8"):
        raise _invalid("the body is in UTF-16 or UTF-32; send JSON in UTF-8")
    try:
        found = json.loads(body.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise _invalid(
            f"the body is not valid UTF-8: byte 0x{body[error.start]:02X} at position {error.start}; send JSON in UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise _invalid(
            f"the body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise _invalid("the body is nested too deeply") from None
    except ValueError:
        # What is left is Python's limit to the digits of a whole number.
        raise _invalid("the body holds a number of too many digits") from None
    if not isinstance(found, dict):
        kind = {list: "a list", str: "a string", type(None): "null", bool: "true or false"}.get(type(found), "a number")
        raise _invalid(f"the body has to be a JSON object, not {kind}", code="invalid_body")
    return found


def _check_type(given: str | None) -> None:
    if not given:
        raise _unsupported(f"the body came without a Content-Type; {SEND_JSON}")
    message = Message()
    message["content-type"] = given
    kind = message.get_content_subtype()
    if message.get_content_maintype() != "application" or not (kind == "json" or kind.endswith("+json")):
        raise _unsupported(f"the body came as {message.get_content_type()!r:.60}; {SEND_JSON}")
    charset = str(message.get_param("charset", "utf-8")).lower()
    if charset.replace("_", "-") not in ("utf-8", "utf8", "us-ascii", "ascii"):
        raise _unsupported(f"charset {charset!r:.40}: JSON is in UTF-8; send it so, without a charset")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _invalid(f"{twice:.40}: the field stands in the body more than once", code="invalid_body")
    return found


def _invalid(message: str, code: str = "invalid_json") -> RequestError:
    return RequestError(400, message, code=code)


def _unsupported(message: str) -> RequestError:
    return RequestError(415, message, code="unsupported_media_type")

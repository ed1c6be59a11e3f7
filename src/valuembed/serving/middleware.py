"""What every request passes first: the key, the limits, and a place where errors end without their texts in a log."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
from collections.abc import Callable, Collection, Sequence
from hashlib import sha256
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from valuembed.errors import InputError, RequestError, trace_of
from valuembed.serving.admission import Admission, Slot
from valuembed.serving.error_shapes import error_answer, path_within
from valuembed.serving.metrics import Metrics

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/", "/playground", "/health", "/ready", "/metrics", "/docs", "/openapi.json"})
"""Paths that need no key to be read: they say nothing of texts, and those who watch a server have no key."""

GONE = 499
"""The status under which a request is counted whose client went away; nobody is sent it."""

TICKET = "valuembed.ticket"
"""Where a request's ticket is found in its scope."""


class ClientGone(Exception):
    """The client has closed the connection and waits for nothing."""


class Guard:
    """Middleware around a server: checks the key, reads the body within limits, counts, and answers errors.

    Args:
        app: what comes behind.
        admission: what counts.
        metrics: is told of every answer.
        keys: that open it; none, and it stands open.
        leaving: whether the server is about to end; connections are then closed after their answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        admission: Admission,
        metrics: Metrics,
        keys: Collection[str],
        leaving: Callable[[], bool],
    ) -> None:
        self.app = app
        self._admission = admission
        self._metrics = metrics
        self._keys = [sha256(key.encode()).digest() for key in keys]
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked, path = scope["method"], path_within(scope)
        # What can be read can also be asked for without its body, and with a slash at its end.
        scope = {**scope, "method": "GET" if asked == "HEAD" else asked, "path": scope.get("root_path", "") + path}
        answer = _Answer(send, self._leaving, self._admission.limits.answer_seconds, headers_only=asked == "HEAD")
        start = time.monotonic()
        ticket: Slot | None = None
        try:
            # Nobody shows a key to ask what may be asked.
            if asked != "OPTIONS" and (path not in OPEN_PATHS or scope["method"] != "GET"):
                self._check_key(scope)
                ticket = scope[TICKET] = self._admission.admit()
                receive = await self._with_body(scope, receive, ticket)
            await self.app(scope, receive, answer)
        except ClientGone:
            answer.status = GONE
        except RequestError as error:
            await error_answer(error, path)(scope, receive, answer)
        except Exception as error:
            logger.error("a request failed: %s", trace_of(error))
            if not answer.started:
                failed = RequestError(500, "the server failed", code="internal")
                await error_answer(failed, path)(scope, receive, answer)
        finally:
            if ticket is not None:
                ticket.release()
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.answered(route, answer.status, time.monotonic() - start)

    def _check_key(self, scope: Scope) -> None:
        if not self._keys:
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        digest = sha256(key.strip()).digest()
        # Every key is compared, each in constant time.
        right = [hmac.compare_digest(digest, known) for known in self._keys]
        if scheme.lower() != b"bearer" or not any(right):
            raise RequestError(
                401,
                "the key is missing or wrong; send it as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _with_body(self, scope: Scope, receive: Receive, ticket: Slot) -> Receive:
        """Read the body, counting as it comes; what hands it on, and then tells when the client goes."""
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        seconds = self._admission.limits.body_seconds
        try:
            body = await asyncio.wait_for(_read(receive, ticket, _number(announced)), seconds)
        except asyncio.TimeoutError:
            raise RequestError(
                408,
                f"the request's body was not there after {seconds:g} s",
                code="timeout",
                headers={"Connection": "close"},
            ) from None
        parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def handed_on() -> Message:
            return parts.pop() if parts else await receive()

        return handed_on


def cross_origin(origins: Collection[str]) -> dict[str, Any]:
    """Settings of starlette's ``CORSMiddleware`` that let pages of other sites call a server with a key.

    Args:
        origins: schemes and hosts of those sites; ``*`` is any.

    Raises:
        InputError: something that is neither.
    """
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#*]+", origin):
            raise InputError(
                f"CORS origin {origin!r} has to be a scheme and a host in small letters, without a path or a slash at "
                "its end, such as https://app.example.com; * allows every site"
            )
    return {
        "allow_origins": list(origins),
        "allow_methods": ["GET", "POST"],
        "allow_headers": ["*"],
        "expose_headers": ["Retry-After"],
    }


def _number(announced: bytes) -> int:
    return int(announced) if announced.isdigit() and len(announced) < 20 else 0


async def _read(receive: Receive, ticket: Slot, announced: int) -> bytes:
    # A body that is too large by its own word is refused before it is sent.
    ticket.add_bytes(announced)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > announced:
            ticket.add_bytes(len(body) - announced)
            announced = len(body)
        if not message.get("more_body", False):
            return bytes(body)


class _Answer:
    """Sends an answer on, knows its status, and gives up on clients that do not take it."""

    def __init__(self, send: Send, leaving: Callable[[], bool], seconds: float, *, headers_only: bool) -> None:
        self._send = send
        self._headers_only = headers_only
        self._leaving = leaving
        self._seconds = seconds
        self._streams = False
        self.started = False
        self.status = 500

    async def __call__(self, message: Message) -> None:
        """Send one part."""
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            if self._leaving():
                headers: Sequence[tuple[bytes, bytes]] = message.get("headers", ())
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
        elif self._headers_only:
            message = {**message, "body": b""}
        # Only answers of several parts can have to wait until the client has taken some of them.
        self._streams = self._streams or message.get("more_body", False)
        await (asyncio.wait_for(self._send(message), self._seconds) if self._streams else self._send(message))

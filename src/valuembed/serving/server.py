"""The server: embeddings APIs around a loaded model, as an application and as a running process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
import warnings
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from copy import deepcopy
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from valuembed._utils.version import __version__
from valuembed.errors import InputError, RequestError
from valuembed.execution import cpu_memory
from valuembed.serving.addresses import is_loopback, listen, url_of
from valuembed.serving.admission import Admission, Limits
from valuembed.serving.batcher import PROBE, Batcher
from valuembed.serving.context import ServerContext
from valuembed.serving.http_errors import on_error
from valuembed.serving.jobs import Engine
from valuembed.serving.metrics import Metrics
from valuembed.serving.middleware import OPEN_PATHS, Guard, cross_origin
from valuembed.serving.playground import routes
from valuembed.serving.routes import corpus_map, docs_page, health, ollama, openai, search, tei
from valuembed.serving.search_page import routes as search_page
from valuembed.serving.stored_index import StoredIndex
from valuembed.serving.stored_map import StoredMap

if TYPE_CHECKING:
    from valuembed.models import ValueEncoder

logger = logging.getLogger(__name__)

KEY_VARIABLE = "VALUEMBED_API_KEY"
"""Environment variable that holds the key clients have to send."""

KEEP_ALIVE_SECONDS = 75
"""Longer than proxies keep an idle connection: the side that reuses it should be the one that closes it."""

ACCEPT_SECONDS = 0.05
"""How long connections are still accepted that were made before the port is closed."""

SETTLE_TICKS = 10
"""Turns of the main loop, of a tenth of a second at least, in which connections may still finish what they have begun
after the port is closed. Turns, as a clock goes on while a machine stands still, and a request that came meanwhile
would be dropped unread."""

NO_TELEMETRY: Any = dict.fromkeys(("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False)
"""For FastAPI, which would otherwise report to whatever collector a process or its environment names."""


class OpenServerWarning(UserWarning):
    """A server can be reached from other machines, by anyone."""


def create_app(
    embedder: ValueEncoder | Engine,
    *,
    index: StoredIndex | None = None,
    index_map: StoredMap | None = None,
    name: str | None = None,
    keys: Collection[str] = (),
    limits: Limits | None = None,
    step_tokens: int | None = None,
    docs: bool = True,
    cors_origins: Collection[str] = (),
) -> FastAPI:
    """An application that serves a model: ``/v1/embeddings``, ``/v1/models``, ``/health``, ``/ready``, ``/metrics``.

    It also answers as Ollama (``/api/embed``) and text-embeddings-inference (``/embed``) do.

    ``/docs`` and ``/openapi.json`` describe it. Around a loaded model, and around an engine with a playground, there is
    also a page to try it with at ``/playground``, and at ``/``. With an index there are ``/v1/search`` and
    ``/v1/index`` too, with its map also ``/v1/map``, and a page to search it with at ``/``.

    The model's thread runs as long as the application's lifespan.

    Args:
        embedder: what :func:`valuembed.load` returns, which has to stay as it is, or an engine.
        index: what ``/v1/search`` looks in, as :meth:`valuembed.search.LiveIndex.open` gives it; whether the model is
            the one that made it is for the caller to have looked at.
        index_map: what ``/v1/map`` shows, as :class:`valuembed.search.LiveMap` makes it of that index.
        name: of the model, for clients; None is its own.
        keys: that open it, sent as ``Authorization: Bearer KEY``; none, and it stands open.
        limits: what it takes on at most.
        step_tokens: tokens that are computed in one step; None suits the device.
        docs: whether ``/docs`` and ``/openapi.json`` are there.
        cors_origins: sites whose pages may call it from a browser, such as ``https://app.example.com``; ``*`` is any.

    Raises:
        InputError: something that is no origin.
    """
    if isinstance(embedder, Engine):
        engine = embedder
    else:
        from valuembed.serving.engine import EncoderEngine

        engine = EncoderEngine(embedder, step_tokens)
    limits, metrics = limits or Limits(), Metrics()
    batcher = Batcher(engine, stuck_after=limits.stuck_seconds, watch=metrics)
    admission = Admission(limits, batcher.seconds_to_clear)
    serving = ServerContext(name or engine.name, batcher, admission, metrics, index, index_map)
    _show(serving)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        serving.close()
        await asyncio.to_thread(batcher.stop)

    app = FastAPI(
        title="valuembed",
        version=__version__,
        summary="Embeddings from attention values, in the shapes of OpenAI, Ollama and TEI.",
        openapi_url="/openapi.json" if docs else None,
        # Their pages are fetched from elsewhere.
        docs_url=None,
        redoc_url=None,
        # The gate takes a slash at the end of a path away.
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry=NO_TELEMETRY,
    )
    app.state.serving = serving
    for api in (openai, ollama, tei):
        app.include_router(api.router)
    if index is not None:
        app.include_router(search.router)
        # Before the page to try a model with, which is at / where there is nothing to search.
        app.include_router(search_page.router)
    if index_map is not None:
        app.include_router(corpus_map.router)
    app.include_router(health.router)
    if engine.playground is not None:
        app.include_router(routes.router)
    if docs:
        app.include_router(docs_page.router)
    app.add_exception_handler(RequestError, on_error)
    app.add_exception_handler(RequestValidationError, on_error)
    app.add_exception_handler(HTTPException, on_error)
    app.add_middleware(Guard, admission=admission, metrics=metrics, keys=keys, leaving=lambda: serving.leaving)
    if cors_origins:
        # Around the gate: a browser asks whether it may ask before it sends a key.
        app.add_middleware(CORSMiddleware, **cross_origin(cors_origins))
    _describe(app, locked=bool(keys))
    return app


def _show(serving: ServerContext) -> None:
    """Let the metrics look up what is going on."""
    gauge, batcher, admission = serving.metrics.gauge, serving.batcher, serving.admission
    gauge("ready", "1 where requests should be sent here.", lambda: serving.ready)
    gauge("serving_requests", "Requests in the server.", lambda: admission.requests)
    gauge("serving_texts", "Texts of requests in the server.", lambda: admission.texts)
    gauge("serving_bytes", "Bytes of requests in the server.", lambda: admission.bytes)
    gauge("waiting_requests", "Requests with texts that no step has taken yet.", lambda: batcher.waiting()[0])
    gauge("waiting_texts", "Texts that no step has taken yet.", lambda: batcher.waiting()[1])


def _describe(app: FastAPI, *, locked: bool) -> None:
    """Correct FastAPI's description: wrong requests are answered with 400, and a locked server wants its key."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = made()
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    if "HTTPValidationError" in str(operation["responses"].get("422")):
                        del operation["responses"]["422"]
                    if locked and path not in OPEN_PATHS:
                        operation["security"] = [{"key": []}]
            parts = schema.setdefault("components", {})
            for unused in ("HTTPValidationError", "ValidationError"):
                parts.get("schemas", {}).pop(unused, None)
            if locked:
                parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def read_keys(path: str | os.PathLike[str] | None = None) -> list[str]:
    """The keys that open a server: one a line of a file, else the one in :data:`KEY_VARIABLE`; none is no key.

    Raises:
        InputError: the file cannot be read, or holds no key.
    """
    if path is None:
        key = os.environ.get(KEY_VARIABLE, "").strip()
        return [key] if key else []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"key file {os.fspath(path)!r} cannot be read: {reason}") from error
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise InputError(f"key file {os.fspath(path)!r} holds no key; write one a line")
    return keys


def serve(
    embedder: ValueEncoder | Engine,
    *,
    index: StoredIndex | None = None,
    index_map: StoredMap | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    keys: Collection[str] = (),
    limits: Limits | None = None,
    step_tokens: int | None = None,
    docs: bool = True,
    cors_origins: Collection[str] = (),
    drain_seconds: float = 2.0,
) -> None:
    """Serve a model until SIGTERM or SIGINT, and then finish what is in flight.

    Told to end, it first turns ``/ready`` red and goes on serving for a while, so that those who send requests notice;
    then it closes the port, finishes every request it has, and returns. A second signal ends it at once.

    Args:
        embedder, index, index_map, name, keys, limits, step_tokens, docs, cors_origins: as in :func:`create_app`.
        host: address to listen on; others than loopback can be reached from other machines.
        port: 0 picks a free one.
        drain_seconds: between the signal and the closing of the port.

    Raises:
        ValuembedError: the model cannot embed a text, which is tried first.
        ServingError: the port is taken or not allowed, or the address is not this machine's.
        InputError: something that is no origin.
    """
    if not keys and not is_loopback(host):
        warnings.warn(
            f"{host} can be reached from other machines, and no key is asked for; set {KEY_VARIABLE}, or give a file "
            "of keys",
            OpenServerWarning,
            stacklevel=2,
        )
    cpu_memory.tune_memory()
    if not isinstance(embedder, Engine):
        embedder.encode([PROBE], show_progress_bar=False)
    app = create_app(
        embedder,
        index=index,
        index_map=index_map,
        name=name,
        keys=keys,
        limits=limits,
        step_tokens=step_tokens,
        docs=docs,
        cors_origins=cors_origins,
    )
    sock = listen(host, port)
    server = Server(app, drain_seconds, log_config=_log_config(), url=url_of(host, sock))
    server.run([sock])


def _log_config() -> dict[str, Any]:
    """Uvicorn's, with this library's messages beside its own."""
    config = deepcopy(uvicorn.config.LOGGING_CONFIG)
    config["loggers"]["valuembed"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    return config


class Server(uvicorn.Server):
    """Uvicorn, but told to end it drains first, and then ends well; and it logs no requests.

    Args:
        app: of :func:`create_app`.
        drain_seconds: as in :func:`serve`.
        log_config: for ``logging.config.dictConfig``; None leaves logging as it is.
        url: where it is reached, which is logged once it is ready; None logs nothing.
    """

    def __init__(
        self, app: FastAPI, drain_seconds: float, log_config: dict[str, Any] | None = None, url: str | None = None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=log_config,
                access_log=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                server_header=False,
            )
        )
        # Its lines hold query strings, and uvicorn writes them wherever it finds a handler.
        logging.getLogger("uvicorn.access").disabled = True
        self._serving: ServerContext = app.state.serving
        self._drain_seconds = drain_seconds
        self._url = url
        self._described = app.openapi_url is not None
        self._told: float | None = None
        self._ticks_since_closed: int | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On the first signal leave, on the second go at once."""
        if self._told is None:
            self._told = time.monotonic()
            self._serving.leaving = True
            logger.info("%s: finishing what is in flight", signal.Signals(sig).name)
        else:
            self.should_exit = self.force_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        self._listeners = list(sockets or ())
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Whether to leave the main loop; called ten times a second."""
        stop = await super().on_tick(counter)
        if self._url and self._serving.ready:
            self._say_where(self._url)
            self._url = None
        if self._told is None or stop:
            return stop
        if self._ticks_since_closed is None:
            if time.monotonic() < self._told + self._drain_seconds:
                return False
            await self._close()
            self._ticks_since_closed = 0
        else:
            self._ticks_since_closed += 1
        # Each answer closes its connection, so those that are left are idle, or busy still.
        return not self.server_state.connections or self._ticks_since_closed >= SETTLE_TICKS

    def _say_where(self, url: str) -> None:
        logger.info("serving %s at %s/v1", self._serving.name, url)
        if self._serving.index is not None:
            logger.info("a page to search it with: %s%s", url, search_page.PATH)
        if self._serving.batcher.engine.playground is not None:
            path = routes.PATH if self._serving.index is None else routes.OWN_PATH
            logger.info("a page to try it with: %s%s", url, path)
        if self._described:
            logger.info("what can be asked of it: %s%s", url, docs_page.PATH)

    async def _close(self) -> None:
        """Take no further connections, but those that wait already."""
        for listener in self._listeners:
            listener.listen(0)
        await asyncio.sleep(ACCEPT_SECONDS)
        for server in self.servers:
            server.close()

"""What the routes of a server share: its parts, and how they have texts embedded."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request

from valuembed.errors import (
    IndexUnavailableError,
    InputError,
    ReadingError,
    RequestError,
    ServingError,
    TemplateError,
    TextFailed,
    TextTooLongError,
    UnknownRowError,
    ValuembedError,
    trace_of,
)
from valuembed.serving.admission import Admission, Limits, Slot
from valuembed.serving.batcher import DEAD, READY, Batcher
from valuembed.serving.jobs import Embedded, EmbedRequest, Text
from valuembed.serving.metrics import Metrics
from valuembed.serving.middleware import TICKET, ClientGone
from valuembed.serving.stored_index import StoredIndex
from valuembed.serving.stored_map import StoredMap

logger = logging.getLogger(__name__)

LEAVING = "leaving"
"""A server that is about to end; the other states are those of its batcher."""

SEARCHES_AT_ONCE = 4
"""Threads that search; the index itself uses every core for one search."""

T = TypeVar("T")


@dataclass
class ServerContext:
    """The parts of one server, for its routes: ``request.app.state.serving``.

    Attributes:
        name: of the model, as clients name it.
        batcher: what embeds.
        admission: what counts.
        metrics: what is counted for others to see.
        index: what is searched; None where there is none.
        map: of that index; None where there is none.
        leaving: whether it is about to end.
        since: when it began, in seconds since 1970.
    """

    name: str
    batcher: Batcher
    admission: Admission
    metrics: Metrics
    index: StoredIndex | None = None
    map: StoredMap | None = None
    leaving: bool = False
    since: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self._searching = ThreadPoolExecutor(SEARCHES_AT_ONCE, "valuembed-search")

    @property
    def limits(self) -> Limits:
        """What it takes on at most."""
        return self.admission.limits

    @property
    def state(self) -> str:
        """:data:`LEAVING`, or one of the states of a batcher."""
        state = self.batcher.state
        return LEAVING if self.leaving and state != DEAD else state

    @property
    def ready(self) -> bool:
        """Whether requests should be sent to it."""
        return self.state == READY

    async def embed(
        self,
        request: Request,
        texts: Sequence[Text],
        manner: EmbedRequest | None = None,
        *,
        truncate: bool = True,
        field: str = "input",
    ) -> Embedded:
        """Have texts embedded for a request; it is over when its client goes away or its time is up.

        Args:
            request: theirs, whose body has been read.
            texts: b texts, known to be texts.
            manner, truncate: as in :meth:`valuembed.serving.batcher.Batcher.submit`.
            field: of the request, that held the texts.

        Raises:
            RequestError: 400 for a text or a template that cannot be embedded, 429 where the server is full, 500 where
                the model fails, 503 where it takes nothing or found no answer in time.
            ClientGone: there is nobody to answer.
        """
        ticket: Slot = request.scope[TICKET]
        ticket.add_texts(len(texts))
        try:
            embedded = await self.wait(request, self.batcher.submit(texts, manner, truncate=truncate))
        except ServingError as error:
            raise _unavailable(error) from error
        except TextFailed as error:
            raise _refusal(error, len(texts), field) from error
        self.metrics.embedded(len(texts), embedded.tokens, len(embedded.truncated))
        return embedded

    async def call(self, request: Request, function: Callable[[], T], *, texts: int) -> T:
        """Have something else done with the model for a request, between two rounds: nothing that takes long.

        Args:
            request: theirs, whose body has been read.
            function: called on the model's thread.
            texts: how many it reads.

        Raises:
            RequestError: 400 for what cannot be done, 429 where the server is full, 500 where the model fails, 503
                where it takes nothing or found no answer in time.
            ClientGone: there is nobody to answer.
        """
        ticket: Slot = request.scope[TICKET]
        ticket.add_texts(texts)
        try:
            return await self.wait(request, self.batcher.call(function))
        except ServingError as error:
            raise _unavailable(error) from error
        except ReadingError as error:
            raise RequestError(500, str(error), code="model_failed") from error
        except RequestError:
            raise
        except ValuembedError as error:
            raise RequestError(400, str(error), code="invalid_value", param="input") from error

    async def ask_index(self, request: Request, function: Callable[[StoredIndex], T]) -> T:
        """Have something done with the index for a request, on a thread of its own.

        Args:
            request: theirs, whose body has been read.
            function: called with the index.

        Raises:
            RequestError: 400 for what cannot be asked, 404 for a row that is not there, 503 where the index cannot be
                read or no answer was found in time.
            ClientGone: there is nobody to answer.
        """
        assert self.index is not None, "the routes are there for servers that have one"
        try:
            return await self.wait(request, self._searching.submit(function, self.index))
        except IndexUnavailableError as error:
            logger.warning("the index is unavailable: %s", trace_of(error))
            raise RequestError(503, str(error), code="index_unavailable", headers={"Retry-After": "5"}) from error
        except UnknownRowError as error:
            raise RequestError(404, str(error), code="not_found", param="like") from error
        except ReadingError as error:
            raise RequestError(500, str(error), code="index_failed") from error
        except RequestError:
            raise
        except ValuembedError as error:
            raise RequestError(400, str(error), code="invalid_value") from error

    def close(self) -> None:
        """Begin no further search."""
        self._searching.shutdown(wait=False, cancel_futures=True)
        if self.map is not None:
            self.map.close()

    async def wait(self, request: Request, future: Future[T]) -> T:
        """What a future gives that another thread works on; it is cancelled when nobody waits for it any more.

        Raises:
            RequestError: 503, it took too long.
            ClientGone: there is nobody to answer.
        """
        result, gone = asyncio.wrap_future(future), asyncio.ensure_future(_gone(request))
        first: set[asyncio.Future[Any]] = {result, gone}
        try:
            seconds = self.limits.answer_seconds
            done, _ = await asyncio.wait(first, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if result in done:
                return result.result()
            if gone in done:
                raise ClientGone
            raise RequestError(503, f"no answer was found in {seconds:g} s", code="timeout")
        finally:
            gone.cancel()
            # At once: the wrapped one passes a cancellation on in a later turn of the loop, and a request that has
            # been given up would be begun meanwhile.
            future.cancel()
            result.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _unavailable(error: ServingError) -> RequestError:
    return RequestError(503, str(error), code="unavailable", headers={"Retry-After": "5"})


def _refusal(error: TextFailed, texts: int, field: str) -> RequestError:
    """What a client is told of a text that failed."""
    cause = error.cause
    if isinstance(cause, (ReadingError, ServingError)) or not isinstance(cause, ValuembedError):
        told = str(cause) if isinstance(cause, ValuembedError) else "the model failed on it"
        return RequestError(500, f"{field}: item {error.index}: {told}", code="model_failed")
    if isinstance(cause, InputError):
        place = "it" if texts == 1 else f"item {error.index}"
        code = "too_long" if isinstance(cause, TextTooLongError) else "invalid_value"
        return RequestError(400, f"{field}: {place} cannot be embedded: {cause}", code=code, param=field)
    param = "template" if isinstance(cause, TemplateError) else None
    return RequestError(400, str(cause), code="invalid_value", param=param)

"""What a server takes on at once: counted before a text is tokenized, given back when the answer has left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from valuembed._utils.text import counted
from valuembed.errors import InputError, RequestError


@dataclass(frozen=True)
class Limits:
    """How much a server takes on. Beyond the first four a request is refused for good, beyond the others for now.

    Attributes:
        max_body_bytes: of a request.
        max_texts: of a request.
        max_ids: token ids of a request, where it holds ids instead of texts.
        max_hits: that a search may ask for.
        max_requests: that are in the server at once.
        max_waiting_texts: of all requests in the server.
        max_waiting_bytes: of all their bodies.
        body_seconds: until a request's body has to be there.
        answer_seconds: until an answer has to be found, and again until it has to be taken.
        stuck_seconds: after which a single step of the model counts as stuck.

    Raises:
        InputError: a limit that is not above 0, or a single request that could never be taken on.
    """

    max_body_bytes: int = 8_000_000
    max_texts: int = 2048
    max_ids: int = 300_000
    max_hits: int = 100
    max_requests: int = 1024
    max_waiting_texts: int = 8192
    max_waiting_bytes: int = 64_000_000
    body_seconds: float = 30.0
    answer_seconds: float = 300.0
    stuck_seconds: float = 120.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise InputError(f"{field.name}={getattr(self, field.name)} has to be above 0")
        for one, all_of_them in (("max_texts", "max_waiting_texts"), ("max_body_bytes", "max_waiting_bytes")):
            if getattr(self, one) > getattr(self, all_of_them):
                raise InputError(
                    f"{one}={getattr(self, one)} is above {all_of_them}={getattr(self, all_of_them)}: such a request "
                    "could never be taken on"
                )


class Admission:
    """Counts what is in the server. For one event loop: nothing is locked.

    Args:
        limits: what to take on at most.
        seconds_to_clear: about how long what waits will take.
    """

    def __init__(self, limits: Limits, seconds_to_clear: Callable[[], float] = lambda: 0.0) -> None:
        self.limits = limits
        self._seconds_to_clear = seconds_to_clear
        self.requests = self.texts = self.bytes = 0

    def admit(self) -> Slot:
        """Let a request in.

        Raises:
            RequestError: 429, the server is full.
        """
        if self.requests >= self.limits.max_requests:
            raise self.full(f"{counted(self.requests, 'request is', 'requests are')} being served")
        return Slot(self)

    def full(self, why: str) -> RequestError:
        """The error that says to come back later."""
        seconds = min(60, max(1, round(self._seconds_to_clear())))
        return RequestError(
            429,
            f"the server is full: {why}; try again in {seconds} s",
            code="server_busy",
            headers={"Retry-After": str(seconds)},
        )


class Slot:
    """What one request takes up, until it is released."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._texts = self._bytes = 0
        admission.requests += 1

    def add_bytes(self, count: int) -> None:
        """Count a part of the body.

        Raises:
            RequestError: 413, a body that is too large, or 429, the server is full.
        """
        admission, limits = self._admission, self._admission.limits
        if self._bytes + count > limits.max_body_bytes:
            raise RequestError(
                413,
                f"the request's body is larger than {counted(limits.max_body_bytes, 'byte')}; send fewer texts at once",
                code="request_too_large",
            )
        if admission.bytes + count > limits.max_waiting_bytes:
            raise admission.full(f"requests of {counted(admission.bytes, 'byte')} are being served")
        self._bytes += count
        admission.bytes += count

    def add_texts(self, count: int) -> None:
        """Count texts.

        Raises:
            RequestError: 429, the server is full.
        """
        admission = self._admission
        if admission.texts + count > admission.limits.max_waiting_texts:
            raise admission.full(f"{counted(admission.texts, 'text is', 'texts are')} being served")
        self._texts += count
        admission.texts += count

    def release(self) -> None:
        """Give everything back."""
        self._admission.requests -= 1
        self._admission.texts -= self._texts
        self._admission.bytes -= self._bytes

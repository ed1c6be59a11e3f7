"""Texts of many requests, embedded together on one thread: the model's, which alone touches tokenizer and decoder.

The thread works in rounds. A round takes a text of each waiting request in turn until it has a step's budget of tokens,
so that a request of thousands of texts holds up nobody, and what arrives while one round is computed makes up the next.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from valuembed.errors import ServingError, TextTooLongError, ValuembedError, trace_of
from valuembed.execution import plan_steps
from valuembed.serving.jobs import Embedded, EmbedJob, EmbedRequest, Engine, QueuedText, Text, Tokenized

logger = logging.getLogger(__name__)

STARTING, READY, STUCK, DEAD, STOPPED = "starting", "ready", "stuck", "dead", "stopped"
"""What a batcher's thread can be found to be."""

LINGER_SECONDS, LINGER_SHARE = 0.005, 0.1
"""After a round, clients that were answered send again: the next waits for them so long, and this share of the last."""

PROBE = "a"
"""A text that any model can embed."""

T = TypeVar("T")


class BatcherListener:
    """What a batcher tells about its work; this one listens to nothing."""

    def waited(self, seconds: float) -> None:
        """A request's first text was taken."""

    def computed(self, texts: int, tokens: int, seconds: float) -> None:
        """A step was computed."""


class Batcher:
    """Embeds the texts of many requests on a thread of its own.

    Args:
        engine: what embeds them.
        stuck_after: seconds after which a single step counts as stuck.
        watch: is told what is done.
    """

    def __init__(self, engine: Engine, *, stuck_after: float = 120.0, watch: BatcherListener | None = None) -> None:
        self.engine = engine
        self._stuck_after = stuck_after
        self._watch = watch or BatcherListener()
        self._changed = threading.Condition()
        self._waiting: OrderedDict[EmbedJob, None] = OrderedDict()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._thread = threading.Thread(target=self._work, name="valuembed-model", daemon=True)
        self._state = STARTING
        self._in_round: set[EmbedJob] = set()
        self._stopping = False
        self._busy_since: float | None = None
        self._tokens_a_character = 0.5
        self._texts_a_second = 0.0
        self._answered, self._linger_until = 0, 0.0

    def start(self) -> None:
        """Start the thread; its first work is to embed :data:`PROBE`."""
        self._thread.start()

    def stop(self, seconds: float = 10.0) -> None:
        """Take nothing more, refuse what still waits, and end the thread; give up on it after some seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(seconds)

    @property
    def state(self) -> str:
        """One of :data:`STARTING`, :data:`READY`, :data:`STUCK`, :data:`DEAD`, :data:`STOPPED`."""
        if self._stopping and self._state != DEAD:
            return STOPPED
        since = self._busy_since
        if self._state in (STARTING, READY) and since is not None and time.monotonic() - since > self._stuck_after:
            return STUCK
        return self._state

    def waiting(self) -> tuple[int, int]:
        """How many requests, and how many texts, no round has taken yet."""
        with self._changed:
            return len(self._waiting), sum(len(job.pending) for job in self._waiting)

    def seconds_to_clear(self) -> float:
        """About how long the texts that wait will take, by the speed of late; 0 where it is not known."""
        return self.waiting()[1] / self._texts_a_second if self._texts_a_second else 0.0

    def submit(
        self, texts: Sequence[Text], manner: EmbedRequest | None = None, *, truncate: bool = True
    ) -> Future[Embedded]:
        """Have texts embedded. Cancelling the future takes them out of the queue, and out of rounds to come.

        Args:
            texts: b texts, known to be texts.
            manner: how; None is as the model does by itself.
            truncate: whether a text that is too long may lose its end.

        Raises:
            ServingError: the thread takes nothing. In the future, :class:`TextFailed` with the first text that cannot
                be embedded, or ServingError where the thread ends before the work does.
        """
        vectors = np.empty((len(texts), self.engine.width), np.float32)
        job = EmbedJob(texts, manner or EmbedRequest(), truncate, vectors)
        with self._changed:
            self._check_open()
            if texts:
                self._waiting[job] = None
                self._changed.notify_all()
        if not texts:
            job.future.set_result(Embedded(vectors, 0, []))
        # However it ends, a request that is over waits no longer.
        job.future.add_done_callback(lambda _: self._drop(job))
        return job.future

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Have something else done with the model, between two rounds: only its thread may touch it.

        Raises:
            ServingError: the thread takes nothing.
        """
        future: Future[T] = Future()
        with self._changed:
            self._check_open()
            self._calls.append((function, future))
            self._changed.notify_all()
        return future

    def _check_open(self) -> None:
        if (state := self.state) not in (STARTING, READY):
            raise ServingError(f"the model takes no requests: its thread is {state}; ask another replica, or later")

    def _drop(self, job: EmbedJob) -> None:
        with self._changed:
            self._waiting.pop(job, None)

    # What follows runs on the model's thread.

    def _work(self) -> None:
        try:
            self._beat()
            self._probe()
            self._state = READY
            while self._await_work():
                self._call_one()
                self._round()
            self._state = STOPPED
        except BaseException as error:
            self._state = DEAD
            logger.critical("the model's thread has died: %s", trace_of(error))
        finally:
            self._busy_since = None
            self._refuse_all()

    def _beat(self) -> None:
        self._busy_since = time.monotonic()

    def _probe(self) -> None:
        self.engine.run(self.engine.prepare([PROBE], EmbedRequest()))

    def _await_work(self) -> bool:
        """Wait for something to do; whether there is."""
        with self._changed:
            self._busy_since = None
            while not (self._waiting or self._calls or self._stopping):
                self._changed.wait()
            while len(self._waiting) < self._answered and not (self._calls or self._stopping):
                left = self._linger_until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            self._beat()
            return not self._stopping

    def _refuse_all(self) -> None:
        with self._changed:
            self._stopping = True
            jobs, calls = list(self._waiting), list(self._calls)
            self._waiting.clear()
            self._calls.clear()
        error = ServingError(f"the model takes no requests: its thread is {self._state}; ask another replica, or later")
        for job in [*jobs, *self._in_round]:
            job.fail(error)
        for _, future in calls:
            with suppress(InvalidStateError):
                future.set_exception(error)

    def _call_one(self) -> None:
        with self._changed:
            if not self._calls:
                return
            function, future = self._calls.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = function()
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _round(self) -> None:
        start = time.monotonic()
        taken = self._take()
        self._in_round = {piece.job for piece in taken}
        pieces = self._within_budget(self._prepare(taken))
        answered = sum(self._step(step) for step in self._steps(pieces))
        self._in_round = set()
        now = time.monotonic()
        self._answered, self._linger_until = answered, now + min(LINGER_SECONDS, LINGER_SHARE * (now - start))
        if pieces:
            speed = len(pieces) / max(now - start, 1e-6)
            self._texts_a_second = 0.7 * self._texts_a_second + 0.3 * speed if self._texts_a_second else speed

    def _take(self) -> list[QueuedText]:
        """A text of each waiting request in turn, until they are about a step's budget of tokens."""
        taken: list[QueuedText] = []
        size, now = 0.0, time.monotonic()
        with self._changed:
            while self._waiting and size < self.engine.step_tokens:
                job, _ = self._waiting.popitem(last=False)
                index = job.pending.popleft()
                if job.pending:
                    self._waiting[job] = None
                if not job.taken:
                    job.taken = True
                    self._watch.waited(now - job.since)
                piece = QueuedText(job, index)
                size += piece.ready.tokens if index in job.ready else 1 + self._tokens_a_character * len(piece.text)
                taken.append(piece)
        return taken

    def _prepare(self, pieces: Sequence[QueuedText]) -> list[QueuedText]:
        """Tokenize what is not yet; those that can be computed, in their order."""
        fresh: dict[EmbedRequest, list[QueuedText]] = {}
        for piece in pieces:
            if piece.index not in piece.job.ready:
                fresh.setdefault(piece.job.manner, []).append(piece)
        tokens = characters = 0
        for manner, alike in fresh.items():
            self._beat()
            for piece, found in self._prepared(alike, manner):
                piece.job.ready[piece.index] = found
                tokens, characters = tokens + found.tokens, characters + len(piece.text)
                if found.truncated and not piece.job.truncate:
                    piece.fail(TextTooLongError("it is longer than the model takes, and truncate is false"))
        if characters:
            self._tokens_a_character = 0.7 * self._tokens_a_character + 0.3 * tokens / characters
        return [piece for piece in pieces if piece.wanted]

    def _prepared(self, pieces: Sequence[QueuedText], manner: EmbedRequest) -> list[tuple[QueuedText, Tokenized]]:
        pieces = [piece for piece in pieces if piece.wanted]
        if not pieces:
            return []
        try:
            found = self.engine.prepare([piece.text for piece in pieces], manner)
        except Exception as error:
            if len(pieces) > 1:
                return [pair for piece in pieces for pair in self._prepared([piece], manner)]
            self._failed(pieces[0], error)
            return []
        return list(zip(pieces, found, strict=True))

    def _within_budget(self, pieces: list[QueuedText]) -> list[QueuedText]:
        """The first pieces that are a step's budget, at least one; the others go back to the head of the queue."""
        size, count = 0, 0
        for piece in pieces:
            size += piece.ready.tokens
            if count and size > self.engine.step_tokens:
                break
            count += 1
        with self._changed:
            for piece in reversed(pieces[count:]):
                if piece.wanted:
                    piece.job.pending.appendleft(piece.index)
                    self._waiting[piece.job] = None
                    self._waiting.move_to_end(piece.job, last=False)
        return pieces[:count]

    def _steps(self, pieces: Sequence[QueuedText]) -> list[list[QueuedText]]:
        groups: dict[Hashable, list[QueuedText]] = {}
        for piece in pieces:
            groups.setdefault(piece.ready.group, []).append(piece)
        return [
            [group[row] for row in step]
            for group in groups.values()
            for step in plan_steps(
                [piece.ready.length for piece in group],
                self.engine.step_tokens,
                self.engine.step_cost,
                packed_cost=group[0].ready.packed_cost,
            )
        ]

    def _step(self, pieces: Sequence[QueuedText]) -> int:
        """Compute some texts; where that fails, in halves, so that a text fails alone. How many requests are done."""
        pieces = [piece for piece in pieces if piece.wanted]
        if not pieces:
            return 0
        self._beat()
        start = time.monotonic()
        try:
            vectors = self.engine.run([piece.ready for piece in pieces])
        except Exception as error:
            if len(pieces) > 1:
                half = len(pieces) // 2
                return self._step(pieces[:half]) + self._step(pieces[half:])
            self._failed(pieces[0], error)
            return 0
        tokens = sum(piece.ready.tokens for piece in pieces)
        self._watch.computed(len(pieces), tokens, time.monotonic() - start)
        return sum(piece.job.receive(piece.index, row) for piece, row in zip(pieces, vectors, strict=True))

    def _failed(self, piece: QueuedText, error: Exception) -> None:
        """Answer a request whose text failed. After what nobody expected, find out whether the model still works."""
        unexpected = not isinstance(error, ValuembedError)
        if unexpected:
            logger.error("a text could not be embedded: %s", trace_of(error))
        piece.fail(error)
        if unexpected:
            self._beat()
            self._probe()

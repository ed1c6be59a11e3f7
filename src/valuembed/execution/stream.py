"""The one loop from texts to vectors: tokenized and scheduled a little ahead of what is computed, then collected."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from valuembed._utils.progress import step_done
from valuembed.backbone import Plan
from valuembed.errors import UnknownTokenError
from valuembed.execution.executor import Executor, PrefixCache
from valuembed.execution.report import EncodeReport, not_finite_error
from valuembed.execution.scheduler import Batch
from valuembed.tokenization import TextTokenizer, TokenSequence

TEXTS_PER_WINDOW = 8192
"""Texts that are tokenized and sorted together: enough to keep padding small, few enough to keep memory flat."""

PREFETCH_FROM = 64
"""Texts of a call from which on a thread of its own pays for itself."""

COPIES_UNDER_WAY = 2
"""Copies out of a device that may be under way while later steps are computed."""

T = TypeVar("T")


@dataclass(frozen=True)
class BatchResult:
    """The vectors of a batch of texts.

    Attributes:
        rows: which of the texts they are.
        vectors: for each plan ``[len(rows), width]`` float32, on the decoder's device.
        tokens: tokens of their sequences, templates included.
        reused: of these, tokens of prefixes that were computed once for all texts of the call.
        truncated: which of the texts lost tokens of their end.
        counts: how many vectors each text has, where its sequence has several spans.
    """

    rows: list[int]
    vectors: list[Tensor]
    tokens: int
    reused: int
    truncated: list[int]
    counts: list[int]


def read_texts(
    executor: Executor,
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    plans: Sequence[Plan],
    *,
    role: str | None = None,
    prompt: str | None = None,
    max_tokens: int | None = None,
    each_token: bool = False,
) -> Iterator[BatchResult]:
    """Read texts in batches of a token budget, longest first within windows of :data:`TEXTS_PER_WINDOW`.

    Args:
        executor: of the decoder.
        tokenizer: of the texts.
        texts: b texts, known to be texts.
        plans: of this decoder, which feed the same tokens.
        role: ``"query"``, ``"document"`` or None: whose templates.
        prompt: an instruction, or None.
        max_tokens: the longest sequence that is fed.
        each_token: a vector for each of the text's own tokens, in place of one for the text; of one template.

    Raises:
        UnknownTokenError: texts with tokens for which the decoder has no embedding, by their rows.
    """
    prefixes = executor.prefixes(len(texts), plans[0].recipe)

    def tokenized() -> Iterator[Sequence[tuple[TokenSequence, ...]]]:
        for start in range(0, len(texts), TEXTS_PER_WINDOW):
            try:
                by_template = tokenizer.sequences(
                    texts[start : start + TEXTS_PER_WINDOW],
                    plans[0].recipe,
                    role,
                    prompt,
                    max_tokens=max_tokens,
                    prefixes=prefixes is not None,
                )
            except UnknownTokenError as error:
                raise error.moved(start, len(texts)) from None
            if each_token:
                by_template = [[sequence.by_token() for sequence in of_template] for of_template in by_template]
            yield list(zip(*by_template, strict=True))

    yield from read_sequences(executor, tokenized(), plans, prefixes, count=len(texts))


def read_sequences(
    executor: Executor,
    windows: Iterator[Sequence[tuple[TokenSequence, ...]]],
    plans: Sequence[Plan],
    prefixes: PrefixCache | None,
    *,
    count: int,
) -> Iterator[BatchResult]:
    """Read what is tokenized, window by window, in batches of a token budget.

    Args:
        executor: of the decoder.
        windows: the k sequences of each text, of as many texts as are sorted together.
        plans: of this decoder, which feed the same tokens.
        prefixes: where what the sequences tell they begin with is kept; None where each is run whole.
        count: texts of the call. Where they are many, they are tokenized in a thread of its own, while others are
            computed.
    """
    # Here and not in the thread that makes the batches, where gradients would always seem to be wanted.
    packing = executor.packing(count)

    def scheduled() -> Iterator[Batch]:
        start = 0
        for texts in windows:
            batches = executor.schedule(texts, packing, share=prefixes is not None)
            yield from (batch.moved(start) for batch in batches)
            start += len(texts)

    for batch in prefetch(scheduled()) if count >= PREFETCH_FROM else scheduled():
        vectors = executor.read(batch, plans, prefixes)
        yield BatchResult(batch.rows, vectors, batch.tokens, batch.reused, batch.truncated, batch.counts)


def collect(
    results: Iterable[BatchResult],
    texts: Sequence[str],
    device: torch.device | str,
    finish: Callable[[list[Tensor]], list[Tensor]] = lambda vectors: vectors,
    bar: Any = None,
    rows: int | None = None,
) -> tuple[list[Tensor], EncodeReport]:
    """Gather the vectors of a call, in the order of its texts.

    Args:
        results: as :func:`read_texts` gives them.
        texts: b of them.
        device: where the vectors are wanted.
        finish: from a batch's vectors to those that are returned.
        bar: a progress bar, which moves on by a text.
        rows: how many vectors there will be; None is one for each text.

    Returns:
        For each plan ``[b, width]`` float32, ``[0, 0]`` where there are no texts; and what was done.
    """
    gathers: list[AsyncGather] = []
    done = Tally(texts, bar)
    for result in results:
        finished = finish(result.vectors)
        gathers = gathers or [AsyncGather(len(texts) if rows is None else rows, device) for _ in finished]
        for gather, vectors in zip(gathers, finished, strict=True):
            gather.put(result.rows, vectors)
        done.add(result)
    return [gather.all() for gather in gathers], done.report()


def check_vectors(vectors: Tensor, dtype: torch.dtype) -> None:
    """Raise where vectors of a call are NaN or infinite.

    Args:
        vectors: ``[b, width]``, all of the call.
        dtype: that the decoder computes in.

    Raises:
        NotFiniteError: some are; it names their rows.
    """
    if not torch.isfinite(vectors).all():
        raise not_finite_error(vectors, dtype)


class Tally:
    """What the batches of a call did so far, shown on its bar.

    Args:
        texts: of the call.
        bar: a progress bar, which moves on by a row.
    """

    def __init__(self, texts: Sequence[str], bar: Any = None) -> None:
        self._texts, self._bar = texts, bar
        self._tokens = self._reused = self._truncated = 0

    def add(self, result: BatchResult) -> None:
        """Count a batch."""
        self._tokens += result.tokens
        self._reused += result.reused
        self._truncated += len(result.truncated)
        if self._bar is not None:
            self._bar.update(len(result.rows))
        step_done(len(result.rows))

    def report(self) -> EncodeReport:
        """What the whole call did."""
        blank = sum(not text.strip() for text in self._texts)
        return EncodeReport(len(self._texts), self._tokens, self._truncated, blank, self._reused)


class AsyncGather:
    """The vectors of a call, filled in batch by batch without making the device wait.

    Args:
        rows: b, how many there will be.
        device: where they are wanted.
    """

    def __init__(self, rows: int, device: torch.device | str) -> None:
        self._rows = rows
        self._device = torch.device(device)
        self._vectors: Tensor | None = None
        self._under_way: deque[tuple[list[int], Tensor, torch.cuda.Event]] = deque()

    def put(self, rows: list[int], vectors: Tensor) -> None:
        """Take the vectors ``[len(rows), width]`` of some rows; a copy out of a CUDA device is only begun."""
        if self._vectors is None:
            self._vectors = torch.empty(self._rows, vectors.shape[1], dtype=torch.float32, device=self._device)
        if vectors.device.type != "cuda" or self._device.type != "cpu":
            self._vectors[rows] = vectors.to(self._device, torch.float32)
            return
        landed = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
        landed.copy_(vectors, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record(torch.cuda.current_stream(vectors.device))
        self._under_way.append((rows, landed, arrived))
        while len(self._under_way) > COPIES_UNDER_WAY:
            self._wait_oldest()

    def all(self) -> Tensor:
        """``[b, width]`` float32, once every row has been put; ``[0, 0]`` where there are none."""
        while self._under_way:
            self._wait_oldest()
        return torch.empty(0, 0, dtype=torch.float32) if self._vectors is None else self._vectors

    def _wait_oldest(self) -> None:
        rows, landed, arrived = self._under_way.popleft()
        arrived.synchronize()
        assert self._vectors is not None
        self._vectors[rows] = landed.float()


def prefetch(items: Iterator[T], most: int = 4) -> Iterator[T]:
    """Items that are made in a thread of their own, up to so many before they are asked for.

    What goes wrong there is raised here, and the thread ends when the iterator is closed or dropped.
    """
    made: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(most)
    closed = threading.Event()

    def put(item: T | None, error: BaseException | None, more: bool) -> None:
        while not closed.is_set():
            with suppress(queue.Full):
                made.put((item, error, more), timeout=0.1)
                return

    def work() -> None:
        try:
            for item in items:
                put(item, None, True)
                if closed.is_set():
                    return
            put(None, None, False)
        except BaseException as error:
            put(None, error, False)

    def given() -> Iterator[T]:
        threading.Thread(target=work, name="valuembed-tokenizing", daemon=True).start()
        try:
            while True:
                item, error, more = made.get()
                if error is not None:
                    raise error
                if not more:
                    return
                yield item  # type: ignore[misc]
        finally:
            closed.set()

    return given()

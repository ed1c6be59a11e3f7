"""Texts on their way into a decoder: tokenized and cut into steps, a little ahead of what is computed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from valuembed.errors import UnknownTokenError
from valuembed.execution.prefix_cache import LEAST_TOKENS, PrefixCache
from valuembed.execution.scheduler import plan_steps, rope_groups, usual_step
from valuembed.recipes import Recipe
from valuembed.tokenization import TokenSequence

if TYPE_CHECKING:
    from valuembed.models import ValueReader

TEXTS_PER_WINDOW = 8192
"""Texts that are tokenized and sorted together: enough to keep padding small, few enough to keep memory flat."""

SHARED_FROM = 8
"""Texts of a call from which on what a template puts in front of them is computed once."""

AHEAD_FROM = 64
"""Texts of a call from which on a thread of its own pays for itself."""

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Texts of about one length, ready to be read in one step.

    Attributes:
        rows: which of the texts they are.
        features: as :meth:`valuembed.models.ValueReader.features` makes them.
        tokens: tokens of their sequences, templates included.
        reused: of these, tokens of beginnings that are computed once for all texts of the call.
        truncated: how many of them lost tokens of their end.
    """

    rows: list[int]
    features: dict[str, Tensor]
    tokens: int
    reused: int
    truncated: int


def batches(
    reader: ValueReader, texts: Sequence[str], prompt: str | None, role: str | None, recipe: Recipe
) -> Iterator[Batch]:
    """Texts cut into steps of a token budget, longest first within windows of :data:`TEXTS_PER_WINDOW`.

    Args:
        reader: whose tokenizer and decoder.
        texts: b texts, known to be texts.
        prompt, role, recipe: as in :meth:`valuembed.models.ValueReader.tokenize_texts`.
    """
    # Here and not in the thread that makes the batches, where gradients would always seem to be wanted.
    shared = shared_prefixes(reader, len(texts), recipe)
    made = _made(reader, texts, prompt, role, recipe, shared, reader.packed_up_to())
    return prefetch(made) if len(texts) >= AHEAD_FROM else made


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


def _made(
    reader: ValueReader,
    texts: Sequence[str],
    prompt: str | None,
    role: str | None,
    recipe: Recipe,
    shared: PrefixCache | None,
    packed_up_to: int,
) -> Iterator[Batch]:
    for start in range(0, len(texts), TEXTS_PER_WINDOW):
        try:
            rows = reader.tokenize_texts(texts[start : start + TEXTS_PER_WINDOW], prompt, role, recipe=recipe)
        except UnknownTokenError as error:
            raise error.moved(start, len(texts)) from None
        by_text = list(zip(*rows, strict=True))
        cached = cached_tokens(reader, rows, prompt, role, recipe, shared)
        fed = [max(map(_fed, of_text, skipped)) for of_text, skipped in zip(by_text, cached, strict=True)]
        packed = [max(len(row.ids) for row in of_text) <= packed_up_to for of_text in by_text]
        # Sequences behind different beginnings go into steps of their own, others share theirs.
        budget = reader.tokens_per_step if shared else max(1, reader.tokens_per_step // len(rows))
        for step in _steps(reader.model, fed, packed, budget):
            features: dict[str, Any] = reader.features([[part[i] for i in step] for part in rows])
            if shared:
                features["cached"] = torch.tensor([cached[i] for i in step])
                features["prefixes"] = shared
            yield Batch(
                rows=[start + i for i in step],
                features=features,
                tokens=sum(len(row.ids) for i in step for row in by_text[i]),
                reused=sum(sum(cached[i]) for i in step),
                truncated=sum(any(row.truncated for row in by_text[i]) for i in step),
            )


def _steps(model: PreTrainedModel, fed: list[int], packed: list[bool], budget: int) -> list[list[int]]:
    """Texts for each step, those of the padded lane first."""
    _, cost = usual_step(model.device)
    steps = []
    for layout in (False, True):
        members = [text for text, takes in enumerate(packed) if takes is layout]
        found = plan_steps([fed[text] for text in members], budget, cost, rope_groups(model), packed=layout)
        steps += [[members[i] for i in step] for step in found]
    return steps


def _fed(row: TokenSequence, cached: int) -> int:
    return len(row.ids) - cached


def shared_prefixes(reader: ValueReader, texts: int, recipe: Recipe) -> PrefixCache | None:
    """Where the beginnings of a call's sequences are kept; None where each text is to be run whole."""
    whole = texts < SHARED_FROM or (recipe.span == "all" and recipe.weights == "mean")
    if whole or torch.is_grad_enabled() or reader.prefix_unsupported_reason():
        return None
    return PrefixCache(reader.model, reader.plan.decoder_spec)


def cached_tokens(
    reader: ValueReader,
    rows: list[list[TokenSequence]],
    prompt: str | None,
    role: str | None,
    recipe: Recipe,
    shared: PrefixCache | None,
) -> list[list[int]]:
    """How many tokens at the beginning of each sequence are its template's own, ``[b, k]``; 0 for few or others.

    Args:
        reader: whose tokenizer.
        rows: for each of the k templates, b sequences.
        prompt, role, recipe: that they were tokenized with.
        shared: where beginnings are kept; None where they are not.
    """
    if shared is None:
        return [[0] * len(rows)] * len(rows[0])
    found = []
    for template, of_template in zip(recipe.templates_for(role), rows, strict=True):
        prefix = list(reader.texts.prefix(template, prompt or ""))
        p = len(prefix) if len(prefix) >= LEAST_TOKENS else 0
        found.append([p if p <= row.span[0] and row.ids[:p] == prefix[:p] else 0 for row in of_template])
    return [list(of_text) for of_text in zip(*found, strict=True)]

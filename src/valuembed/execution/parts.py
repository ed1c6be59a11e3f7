"""Vectors of parts of a text, and of its single tokens, from the passes that run the text as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from valuembed.backbone import Plan
from valuembed.errors import UnknownTokenError
from valuembed.execution import stream
from valuembed.execution.executor import Executor
from valuembed.execution.report import EncodeReport
from valuembed.execution.stream import BatchResult
from valuembed.tokenization import TextTokenizer, TokenSequence, tokenize_parts


@dataclass(frozen=True)
class ReadParts:
    """The vectors of the parts of b texts, part by part.

    Attributes:
        vectors: ``[p, width]`` float32, those of all texts one after the other; ``[0, 0]`` where there are none.
        tokens: of each text, how many tokens each of its parts has.
        report: what was done.
    """

    vectors: Tensor
    tokens: list[list[int]]
    report: EncodeReport


def read_parts(
    executor: Executor,
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    parts: Sequence[Sequence[tuple[int, int]]],
    plan: Plan,
    *,
    role: str | None = None,
    prompt: str | None = None,
    max_tokens: int | None = None,
    context: int | None = None,
    device: torch.device | str = "cpu",
    finish: Callable[[Tensor], Tensor] = lambda vectors: vectors,
    bar: Any = None,
) -> ReadParts:
    """Read parts of texts: each text is run as a whole, and a part's vector is the mean over its tokens.

    Args:
        executor: of the decoder.
        tokenizer: of the texts.
        texts: b texts, known to be texts.
        parts: of each text character ranges, known to be within it.
        plan: of this decoder, whose recipe passes :func:`valuembed.recipes.check_takes_parts`.
        role, prompt: as in :func:`valuembed.execution.read_texts`.
        max_tokens: the longest sequence that is fed; a longer text is run in windows.
        context: tokens of the text in front of a part in its window, see
            :func:`valuembed.tokenization.windows_of`.
        device: where the vectors are wanted.
        finish: from raw vectors ``[p, width]`` to those that are returned, on the decoder's device.
        bar: a progress bar, which moves on by a part.

    Raises:
        InputError: a part has no token, or is too long for a window.
        UnknownTokenError: texts with tokens for which the decoder has no embedding, by their rows.
    """
    recipe = plan.recipe
    k = len(recipe.templates_for(role))
    ends = list(accumulate(map(len, parts)))
    total = ends[-1] if ends else 0
    prefixes = executor.prefixes(len(texts), recipe)
    tokens: list[list[int]] = [[0] * len(of_text) for of_text in parts]
    rows: list[list[int]] = []

    def tokenized() -> Iterator[Sequence[tuple[TokenSequence, ...]]]:
        for start in range(0, len(texts), stream.TEXTS_PER_WINDOW):
            stop = min(start + stream.TEXTS_PER_WINDOW, len(texts))
            try:
                by_template = tokenize_parts(
                    tokenizer, texts[start:stop], parts[start:stop], recipe, role, prompt,
                    max_tokens=max_tokens, context=context, prefixes=prefixes is not None, first=start,
                )  # fmt: skip
            except UnknownTokenError as error:
                raise error.moved(start, len(texts)) from None
            found = []
            for template, of_texts in enumerate(by_template):
                for text, windows in enumerate(of_texts, start):
                    for window in windows:
                        found.append((window.sequence,))
                        before = ends[text] - len(parts[text])
                        rows.append([(before + part) * k + template for part in window.parts])
                        for part, (begin, end) in zip(window.parts, window.sequence.spans, strict=True):
                            tokens[text][part] = end - begin
            yield found

    def placed() -> Iterator[BatchResult]:
        for result in stream.read_sequences(executor, tokenized(), [plan], prefixes, count=len(texts)):
            yield replace(result, rows=[row for sequence in result.rows for row in rows[sequence]])

    # With several templates a vector is finished when all of them are there.
    once = k == 1
    found, report = stream.collect(
        placed(),
        texts,
        device if once else executor.model.device,
        (lambda vectors: [finish(vectors[0])]) if once else list,
        bar,
        rows=total * k,
    )
    vectors = found[0] if found else torch.empty(0, 0)
    if found and not once:
        vectors = finish(vectors.view(total, k, -1).mean(dim=1)).to(device)
    return ReadParts(vectors, tokens, report)


def read_token_vectors(
    executor: Executor,
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    plan: Plan,
    *,
    role: str | None = None,
    prompt: str | None = None,
    max_tokens: int | None = None,
    finish: Callable[[Tensor], Tensor] = lambda vectors: vectors,
    bar: Any = None,
) -> tuple[list[Tensor], EncodeReport]:
    """Read a vector for each token of each text, which is a part of one token.

    Args:
        executor, tokenizer, texts, plan, role, prompt, bar: as in :func:`read_parts`; of one template.
        max_tokens: the longest sequence that is fed; a longer text loses its end.
        finish: from raw vectors ``[t, width]`` of any texts to those that are returned.

    Returns:
        For each text ``[t, width]`` float32 of its own tokens, on the decoder's device; and what was done.

    Raises:
        UnknownTokenError: as in :func:`read_parts`.
    """
    found: list[Tensor] = [torch.empty(0, 0)] * len(texts)
    done = stream.Tally(texts, bar)
    results = stream.read_texts(
        executor, tokenizer, texts, [plan], role=role, prompt=prompt, max_tokens=max_tokens, each_token=True
    )
    for result in results:
        vectors = finish(result.vectors[0])
        for row, of_text in zip(result.rows, torch.split(vectors, result.counts), strict=True):
            found[row] = of_text
        done.add(result)
    return found, done.report()

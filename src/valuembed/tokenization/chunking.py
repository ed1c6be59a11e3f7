"""Long documents cut into chunks of so many tokens, each with its place in the document.

A chunk is a slice of the document, never decoded from tokens. It ends between two tokens, and where it can between two
words; else at least no character that a reader sees as one is torn apart.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from valuembed.errors import InputError
from valuembed.tokenization.offsets import token_starts

WINDOW = 100_000
"""Characters tokenized at a time: a document may be a whole library."""

MARGIN = 16
"""Tokens at a window's end that are not used, because a longer window might have cut them differently."""

_JOINER = "\u200d"


@dataclass(frozen=True)
class Chunk:
    """A part of a document.

    Attributes:
        text: ``document[start:end]``, without blanks at its ends.
        start, end: in characters.
    """

    text: str
    start: int
    end: int


class Cutter:
    """Cuts documents.

    Args:
        tokenizer: one that reports character offsets.
        tokens: of a chunk at most; a chunk that ends between two words may be a quarter shorter.
        overlap: tokens at the end of a chunk that the next one repeats, at most half of a chunk; fewer where it
            begins with a word.

    Raises:
        InputError: numbers that mean nothing.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens: int, overlap: int = 0) -> None:
        if tokens < 1:
            raise InputError(f"chunk={tokens} has to be at least 1 token")
        if not 0 <= overlap <= tokens // 2:
            raise InputError(f"overlap={overlap} has to be 0 to {tokens // 2}, at most half of a chunk of {tokens}")
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.overlap = overlap

    def cut(self, document: str) -> list[Chunk]:
        """The chunks of a document, in order. Blank ones are left out; a document that is not blank has one."""
        chunks: list[Chunk] = []
        begin, size = 0, WINDOW
        while True:
            window = document[begin : begin + size]
            starts = token_starts(self.tokenizer, window)
            whole = begin + size >= len(document)
            at = 0
            # The window's last tokens are those of a chunk that a later window begins with, or of the last one.
            while len(starts) - at > self.tokens + (0 if whole else MARGIN):
                end = self._end(window, starts, at)
                if end == len(starts):
                    break
                _add(chunks, document, begin + (starts[at] if at else 0), begin + starts[end])
                at = self._next(window, starts, at, end)
            if whole:
                _add(chunks, document, begin + (starts[at] if at else 0), len(document))
                return chunks
            if at:
                begin += starts[at]
            else:
                size *= 2

    def _end(self, text: str, starts: list[int], at: int) -> int:
        """The token that a chunk ends before: the last that fits, at a blank if there is one in the last quarter.

        Where one character as a reader sees it has more tokens than a chunk, it is the one behind it, or the end.
        """
        last = at + self.tokens
        near = range(last, max(last - self.tokens // 4, at + 1) - 1, -1)
        if (end := next((i for i in near if _between_words(text, starts, i)), None)) is not None:
            return end
        if (end := next((i for i in range(last, at, -1) if _between_characters(text, starts, i)), None)) is not None:
            return end
        return next((i for i in range(last, len(starts)) if _between_characters(text, starts, i)), len(starts))

    def _next(self, text: str, starts: list[int], at: int, end: int) -> int:
        """The token that the next chunk begins with."""
        first = max(end - self.overlap, at + 1)
        near = range(first, min(first + self.tokens // 4, end) + 1)
        if (begin := next((i for i in near if _between_words(text, starts, i)), None)) is not None:
            return begin
        return next((i for i in range(first, end) if _between_characters(text, starts, i)), end)


def _add(chunks: list[Chunk], document: str, start: int, end: int) -> None:
    """Append a chunk, unless it is blank; of two that overlap, one that is a part of the other says nothing new."""
    text = document[start:end]
    start += len(text) - len(text.lstrip())
    text = text.strip()
    end = start + len(text)
    if not text or (chunks and end <= chunks[-1].end):
        return
    if chunks and start == chunks[-1].start:
        chunks.pop()
    chunks.append(Chunk(text, start, end))


def _between_words(text: str, starts: list[int], token: int) -> bool:
    at = starts[token]
    return _between_characters(text, starts, token) and (text[at - 1].isspace() or text[at].isspace())


def _between_characters(text: str, starts: list[int], token: int) -> bool:
    """Whether a token begins a character as a reader sees it, with its accents, or its parts of an emoji."""
    at = starts[token]
    if at == starts[token - 1]:
        return False
    before, after = text[at - 1], text[at]
    joined = before == _JOINER or after == _JOINER or (before, after) == ("\r", "\n")
    mark = unicodedata.category(after) in ("Mn", "Me", "Mc") or "\U0001f3fb" <= after <= "\U0001f3ff"
    jamo = "\u1160" <= after <= "\u11ff"
    flag = all("\U0001f1e6" <= letter <= "\U0001f1ff" for letter in (before, after))
    return not (joined or mark or jamo or flag)

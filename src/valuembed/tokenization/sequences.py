"""Token sequences to feed, and where a text's own tokens are in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from valuembed._utils.text import counted
from valuembed.errors import TemplateError


@dataclass(frozen=True)
class TokenSequence:
    """One sequence to feed.

    Attributes:
        ids: token ids, BOS included where the tokenizer adds one, an added EOS left out.
        span: range ``[start, end)`` of the tokens that a mean over the text covers; never empty.
        truncated: whether tokens of the text were cut away.
        prefix: how many tokens at the beginning are the template's own, the same for every text, as far as that was
            asked for.
        spans: ranges of tokens, each of which has a vector of its own in place of one for ``span``; they may overlap.
            Empty for ``span`` alone.
    """

    ids: list[int]
    span: tuple[int, int]
    truncated: bool = False
    prefix: int = 0
    spans: tuple[tuple[int, int], ...] = ()

    def by_token(self) -> TokenSequence:
        """The same, with a vector for each token of its span."""
        return replace(self, spans=tuple((token, token + 1) for token in range(*self.span)))


@dataclass(frozen=True)
class PlacedText:
    """A text in its template, whole, with the place of each token in the text.

    Attributes:
        ids: t token ids, as those of a :class:`TokenSequence`.
        own: range ``[start, end)`` of the text's own tokens, empty where it has none.
        inner: of these, the ones that hold no character of the template.
        echo: those of the earlier copy that the template may have; empty where there is none.
        offsets: of each token its characters, counted from where the text begins.
        length: of the text, in characters.
    """

    ids: list[int]
    own: tuple[int, int]
    inner: tuple[int, int]
    echo: tuple[int, int]
    offsets: list[tuple[int, int]]
    length: int


def without_suffix(offsets: Sequence[tuple[int, int]], tokens: tuple[int, int], high: int) -> tuple[int, int]:
    """A text's tokens less the one at its end that holds characters of what follows too, such as ``."`` in a quotation.

    Cutting that one would take a character of the suffix away.
    """
    start, end = tokens
    while end > start and offsets[end - 1][1] > high:
        end -= 1
    return start, end


def within(offsets: Sequence[tuple[int, int]], tokens: tuple[int, int], characters: tuple[int, int]) -> tuple[int, int]:
    """A text's tokens less those at its borders that hold characters of the template too."""
    start, end = without_suffix(offsets, tokens, characters[1])
    while start < end and offsets[start][0] < characters[0]:
        start += 1
    return start, end


def cut_text(ids: list[int], text: tuple[int, int], echo: tuple[int, int], excess: int, template: str) -> TokenSequence:
    """Take ``excess`` tokens from the end of the text, or from both of its copies."""
    copies = 2 if echo[1] > echo[0] else 1
    drop = -(-excess // copies)
    room = min(text[1] - text[0], echo[1] - echo[0] if copies == 2 else text[1] - text[0])
    if drop >= room:
        fixed = len(ids) - (text[1] - text[0]) - (echo[1] - echo[0])
        raise TemplateError(
            f"template {template!r} and prompt take {counted(fixed, 'token')} by themselves, of {len(ids) - excess} "
            "allowed (max_tokens): no room is left for the text; raise max_tokens or shorten the prompt"
        )
    start, end = text[0], text[1] - drop
    ids = ids[:end] + ids[text[1] :]
    if copies == 2:
        ids = ids[: echo[1] - drop] + ids[echo[1] :]
        start, end = start - drop, end - drop
    return TokenSequence(ids, (start, end), truncated=True)

"""Parts of a text as ranges of its tokens, and the windows that a text beyond a model's length is run in.

A window holds the template's tokens and a run of the text's own, as long as the model takes. Each part lies whole in
one, behind so many of the text's tokens that it sees, or behind the text's beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from valuembed._utils.text import counted
from valuembed.data import check_prompt
from valuembed.errors import InputError, TemplateError
from valuembed.recipes import Recipe
from valuembed.tokenization.sequences import PlacedText, TokenSequence

if TYPE_CHECKING:
    from valuembed.tokenization.tokenizer import TextTokenizer

CONTEXT_SHARE = 4
"""A part sees a quarter of a window in front of it, where nobody says how much: a text then costs at most about 4/3 of
its tokens."""


@dataclass(frozen=True)
class PartWindow:
    """A sequence to feed, and which parts are read from it.

    Attributes:
        sequence: its ``spans`` are the tokens of the parts.
        parts: their numbers in the text.
    """

    sequence: TokenSequence
    parts: list[int]


def tokenize_parts(
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    parts: Sequence[Sequence[tuple[int, int]]],
    recipe: Recipe,
    role: str | None = None,
    prompt: str | None = None,
    *,
    max_tokens: int | None,
    context: int | None = None,
    prefixes: bool = False,
    first: int = 0,
) -> list[list[list[PartWindow]]]:
    """Tokenize b texts in a recipe's templates, each for its parts.

    Args:
        tokenizer, texts, recipe, role, prompt, max_tokens, prefixes: as in :meth:`TextTokenizer.sequences`; the recipe
            cleans nothing.
        parts, context: of each text, as in :func:`windows_of`.
        first: number of the first text, for errors.

    Returns:
        For each of the k templates and each text its windows.

    Raises:
        InputError, UnknownTokenError, TemplateError: as :func:`windows_of` and :meth:`TextTokenizer.sequences`.
    """
    check_prompt(prompt)
    found = []
    for template in recipe.templates_for(role):
        placed = tokenizer.placed(texts, template, prompt or "")
        tokenizer.check([TokenSequence(text.ids, text.own) for text in placed], template)
        prefix = list(tokenizer.prefix(template, prompt or "")) if prefixes else []
        of_template = []
        for number, (text, of_text) in enumerate(zip(placed, parts, strict=True), first):
            windows = windows_of(
                text, of_text, max_tokens=max_tokens, context=context, template=template, name=f"text {number}"
            )
            of_template.append([replace(window, sequence=_behind(window.sequence, prefix)) for window in windows])
        found.append(of_template)
    return found


def _behind(sequence: TokenSequence, prefix: list[int]) -> TokenSequence:
    """A sequence that tells how many of a template's tokens it begins with, where those are all of the prefix."""
    p = len(prefix)
    begins = p <= min(start for start, _ in sequence.spans) and sequence.ids[:p] == prefix
    return replace(sequence, prefix=p) if p and begins else sequence


def part_tokens(placed: PlacedText, parts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The tokens of a text that hold at least one of a part's characters, as ranges.

    A part that begins or ends where the text does takes the tokens without characters there too, so that a part that is
    the text has the text's tokens.

    Args:
        placed: the text.
        parts: character ranges, each within the text.

    Returns:
        For each part its range in ``placed.ids``; empty where it has no token.
    """
    first, stop = placed.own
    offsets = np.array(placed.offsets[first:stop], dtype=np.int64).reshape(-1, 2)
    # Both grow, so that the first token that ends behind a place and the last that starts before one are soon found.
    ends = np.maximum.accumulate(offsets[:, 1])
    starts = np.minimum.accumulate(offsets[::-1, 0])[::-1]
    found = []
    for low, high in parts:
        start = first if low == 0 else first + int(ends.searchsorted(low, side="right"))
        end = stop if high == placed.length else first + int(starts.searchsorted(high, side="left"))
        found.append((start, max(start, end)))
    return found


def windows_of(
    placed: PlacedText,
    parts: Sequence[tuple[int, int]],
    *,
    max_tokens: int | None,
    context: int | None = None,
    template: str = "{text}",
    name: str = "the text",
) -> list[PartWindow]:
    """The sequences in which a text is run for its parts: one, or overlapping windows where it is too long for that.

    Args:
        placed: the text.
        parts: character ranges, each within the text, in any order.
        max_tokens: the longest sequence to feed; None for no limit.
        context: tokens of the text that a part has in front of it at least, unless the window begins with the text.
            None is a quarter of a window, less for a part that needs the room.
        template: for errors.
        name: of the text, for errors.

    Raises:
        InputError: a part has no token, or is too long for a window.
        TemplateError: template and prompt leave no room for a token of the text.
    """
    tokens = part_tokens(placed, parts)
    for number, ((low, high), (start, end)) in enumerate(zip(parts, tokens, strict=True)):
        if start == end:
            raise InputError(
                f"{name}, part {number}: characters {low} to {high} have no token of their own; leave blank parts out"
            )
    if not parts:
        return []
    if max_tokens is None or len(placed.ids) <= max_tokens:
        return [PartWindow(TokenSequence(placed.ids, placed.own, spans=tuple(tokens)), list(range(len(parts))))]
    inner, echo = placed.inner, placed.echo
    copies = 2 if echo[1] > echo[0] else 1
    total = inner[1] - inner[0]
    fixed = len(placed.ids) - total - (echo[1] - echo[0])
    room = (max_tokens - fixed) // copies
    if room < 1:
        raise TemplateError(
            f"template {template!r} and prompt take {counted(fixed, 'token')} by themselves, of {max_tokens} allowed "
            "(max_tokens): no room is left for the text; raise max_tokens or shorten the prompt"
        )
    # Counted among the inner tokens; those at the borders are in the first window and in the last.
    ranges = [(_clipped(start - inner[0], total), _clipped(end - inner[0], total)) for start, end in tokens]
    longest = max(end - start for start, end in ranges)
    if longest + (context or 0) > room:
        number = next(at for at, (start, end) in enumerate(ranges) if end - start == longest)
        behind, less = (f" behind {counted(context, 'token')} of context", " or less context") if context else ("", "")
        raise InputError(
            f"{name}, part {number}: it has {counted(longest, 'token')}, and {max(0, room - (context or 0))} fit into "
            f"a window{behind} (max_tokens={max_tokens}, template included); ask for smaller parts{less}"
        )
    before = room // CONTEXT_SHARE if context is None else context
    found = []
    for (begin, stop), members in plan_windows(ranges, total, room, before):
        at, until = inner[0] + begin, inner[0] + stop
        front = placed.ids[: inner[0]]
        if copies == 2:
            copy = placed.ids[echo[0] + begin : min(echo[0] + stop, echo[1])]
            front = [*front[: echo[0]], *copy, *front[echo[1] :]]
        moved = len(front) - at
        ids = [*front, *placed.ids[at:until], *placed.ids[inner[1] :]]
        spans = tuple((tokens[part][0] + moved, tokens[part][1] + moved) for part in members)
        found.append(PartWindow(TokenSequence(ids, (at + moved, until + moved), spans=spans), members))
    return found


def _clipped(token: int, total: int) -> int:
    return min(max(token, 0), total)


def plan_windows(
    parts: Sequence[tuple[int, int]], total: int, room: int, context: int
) -> list[tuple[tuple[int, int], list[int]]]:
    """Windows over the tokens of a text, as few as hold all its parts.

    Args:
        parts: token ranges, none longer than ``room``.
        total: tokens of the text, more than ``room``.
        room: tokens of a window.
        context: tokens that stand in front of a part in its window, unless that begins where the text does; fewer for a
            part that needs the room.

    Returns:
        For each window its range of tokens, and the numbers of the parts that are read from it.
    """

    def latest_begin(part: tuple[int, int]) -> int:
        """Where a window that shows the part its context begins at the latest."""
        return max(0, part[0] - min(context, room - (part[1] - part[0])))

    waiting = sorted(range(len(parts)), key=lambda number: parts[number])
    found = []
    while waiting:
        first = parts[waiting[0]]
        # As far to the left as it can lie, for what it shows the part; the last one ends where the text does.
        begin = 0 if first[1] <= room else max(0, min(latest_begin(first), total - room))
        end = min(begin + room, total)
        inside = [number for number in waiting if parts[number][1] <= end and begin <= latest_begin(parts[number])]
        found.append(((begin, end), inside))
        done = set(inside)
        waiting = [number for number in waiting if number not in done]
    return found

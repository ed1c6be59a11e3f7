"""Cut the text of a document into passages of a budget of tokens, where its sections, paragraphs and sentences end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from valuembed.data.documents.extraction import Extraction
from valuembed.errors import InputError

SMALL = 4
"""A section below this share of the budget, one in four, is put together with its neighbours."""

STRETCH = 20_000
"""Characters that are cut at once: the time that it takes grows faster than their number."""

SCRAP = 8
"""The last passage of a section that is cut has at least this share of the budget, one in eight, where that can be."""


@dataclass(frozen=True)
class Passage:
    """A piece of a document that is embedded by itself.

    Attributes:
        text: of the passage: ``extraction.text[start:end]``.
        title: of the document; of a file of rows, that of the row; None where there is none.
        headings: those above it, the outermost first; of a passage over several sections, those that they share.
        page: on which it begins, from 1; None where the document has no pages.
        line: of the file in which it begins, from 1; of Parquet, the row; None where the document has no lines.
        chunk: its number in the document, from 0.
        start, end: its characters in the text that was taken out of the document, or out of the row.
    """

    text: str
    title: str | None
    headings: tuple[str, ...]
    page: int | None
    line: int | None
    chunk: int
    start: int
    end: int


@dataclass
class _Section:
    """A heading with what stands below it, up to the next heading."""

    start: int
    end: int
    body: int
    trail: tuple[str, ...]
    is_hollow: bool


@dataclass
class _Group:
    """Sections that become one passage, or that are cut together."""

    start: int
    end: int
    body: int
    size: int
    sections: list[_Section] = field(default_factory=list)


class Splitter:
    """Cuts texts into passages.

    Sections that fit into the budget stay whole, and those below a quarter of it are put together with what follows
    under the same heading. Longer ones are cut between paragraphs, else lines, else sentences, else words
    (``semantic-text-splitter``); their heading stays with their first passage.

    Args:
        budget: tokens that a passage has at most.
        count_tokens: says how many tokens a text has.

    Raises:
        InputError: a budget below 1.
    """

    def __init__(self, budget: int, count_tokens: Callable[[str], int]) -> None:
        if budget < 1:
            raise InputError(f"budget={budget} has to be at least 1 token")
        self.budget = budget
        self.count_tokens = count_tokens
        self._cutters: dict[int, Any] = {}

    @cached_property
    def _maker(self) -> Any:
        from semantic_text_splitter import TextSplitter

        return TextSplitter

    def passages(self, extraction: Extraction, first: int = 0) -> list[Passage]:
        """Cut the text of a document.

        Args:
            extraction: of the document.
            first: number of its first passage.
        """
        text = extraction.text
        sections = _sections(extraction)
        least = self.budget // SMALL
        found: list[Passage] = []
        for group in self._groups(text, sections, least):
            for start, end in self._spans(text, group):
                trail = _shared([section for section in group.sections if section.start < end and start < section.end])
                found.append(
                    Passage(
                        text[start:end],
                        extraction.title,
                        trail,
                        extraction.page(start),
                        extraction.line(start),
                        first + len(found),
                        start,
                        end,
                    )
                )
        return found

    def _groups(self, text: str, sections: list[_Section], least: int) -> list[_Group]:
        groups: list[_Group] = []
        for section in sections:
            size = self.count_tokens(text[section.start : section.end])
            new = _Group(section.start, section.end, section.body, size, [section])
            if groups and self._joins(text, groups[-1], new, least):
                self._join(text, groups[-1], new)
            else:
                # What could not go on with the next section may still end the one before it.
                self._join_backwards(text, groups, least)
                groups.append(new)
        self._join_backwards(text, groups, least)
        return groups

    def _joins(self, text: str, group: _Group, new: _Group, least: int) -> bool:
        section = new.sections[0]
        parent, trail = section.trail[:-1], group.sections[-1].trail
        if trail[: len(parent)] != parent:
            return False
        if not (group.size < least or all(section.is_hollow for section in group.sections)):
            return False
        if self.count_tokens(text[group.start : new.end]) <= self.budget:
            return True
        # It is cut anyway, and what is put in front of it is short.
        head = self.count_tokens(text[group.start : new.body])
        return new.size > self.budget and head <= self.budget // 2 and len(trail) < len(section.trail)

    def _join_backwards(self, text: str, groups: list[_Group], least: int) -> None:
        if len(groups) < 2 or groups[-1].size >= least // 2:
            return
        before, last = groups[-2:]
        parent, trail = last.sections[0].trail[:-1], before.sections[-1].trail
        fits = before.size <= self.budget and self.count_tokens(text[before.start : last.end]) <= self.budget
        if fits and trail[: len(parent)] == parent:
            self._join(text, before, groups.pop())

    def _join(self, text: str, group: _Group, new: _Group) -> None:
        if new.size > self.budget:
            group.body = new.body
        group.end = new.end
        group.sections += new.sections
        group.size = self.count_tokens(text[group.start : group.end])

    def _spans(self, text: str, group: _Group) -> list[tuple[int, int]]:
        if group.size <= self.budget:
            return [_trimmed(text, group.start, group.end)]
        body = group.body + len(text[group.body : group.end]) - len(text[group.body : group.end].lstrip())
        head = self.count_tokens(text[group.start : body]) if body > group.start else 0
        start = body if head <= self.budget // 2 else group.start
        # How the last token of a heading and the first below it are cut apart may take one more.
        room = max(1, self.budget - head - 1) if head and start == body else self.budget
        spans = self._cut(text, start, group.end, room)
        if spans and start == body:
            spans[0] = (group.start, spans[0][1])
        return self._evened(text, spans)

    def _cut(self, text: str, start: int, end: int, room: int) -> list[tuple[int, int]]:
        spans = []
        for begin, finish in _stretches(text, start, end):
            pieces = self._cutter(room).chunk_indices(text[begin:finish])
            spans += [_trimmed(text, begin + at, begin + at + len(piece)) for at, piece in pieces]
        return [span for span in spans if span[0] < span[1]]

    def _evened(self, text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Spans whose last one is no scrap: the one before it gives it of its own."""
        if len(spans) < 2 or self.count_tokens(text[slice(*spans[-1])]) >= self.budget // SCRAP:
            return spans
        start, end = spans[-2][0], spans[-1][1]
        # In steps, so that few cutters are made.
        share = max(1, self.budget // SCRAP)
        room = min(self.budget, (self.count_tokens(text[start:end]) * 5 // 8 // share + 1) * share)
        halves = self._cut(text, start, end, room)
        return [*spans[:-2], *halves] if len(halves) == 2 else spans

    def _cutter(self, room: int) -> Any:
        if room not in self._cutters:
            self._cutters[room] = self._maker.from_callback(self.count_tokens, room)
        return self._cutters[room]


def _sections(extraction: Extraction) -> list[_Section]:
    """The sections of a text in order; a heading with nothing below it but a lower one begins that one's."""
    text = extraction.text
    borders = [(heading.start, heading) for heading in extraction.headings]
    found: list[_Section] = []
    open_headings: list[tuple[int, str]] = []
    first = borders[0][0] if borders else len(text)
    if text[:first].strip():
        found.append(_Section(0, first, 0, (), False))
    for number, (start, heading) in enumerate(borders):
        end = borders[number + 1][0] if number + 1 < len(borders) else len(text)
        while open_headings and open_headings[-1][0] >= heading.level:
            open_headings.pop()
        open_headings.append((heading.level, heading.title))
        trail = tuple(title for _, title in open_headings)
        section = _Section(start, end, heading.end, trail, not text[heading.end : end].strip())
        if found and found[-1].is_hollow and len(found[-1].trail) < len(trail):
            section.start = found.pop().start
        found.append(section)
    return found


def _shared(sections: Sequence[_Section]) -> tuple[str, ...]:
    """The headings above all of some sections."""
    trails = [section.trail for section in sections if not section.is_hollow] or [each.trail for each in sections]
    if not trails:
        return ()
    shared = trails[0]
    for trail in trails[1:]:
        same = 0
        while same < min(len(shared), len(trail)) and shared[same] == trail[same]:
            same += 1
        shared = shared[:same]
    return shared


def _stretches(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """A span in pieces that are quickly cut, which end with a paragraph, a line or a word where they can."""
    while end - start > STRETCH:
        places = (text.rfind(border, start + 1, start + STRETCH) for border in ("\n\n", "\n", " "))
        finish = next((place for place in places if place > start), start + STRETCH)
        yield start, finish
        start = finish
    yield start, end


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A span without blank lines around it."""
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    return start, max(start, end - (len(piece) - len(piece.rstrip())))

"""Which words of a query stand in a text, and where: what a person sees marked in a hit."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

_WORD = re.compile(r"[^\W_]+(?:[\u0300-\u036f]+[^\W_]*)*")
"""A word as the index of words takes it: letters and digits in a row, whatever stands between parts them."""

_WITHOUT_BLANKS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]+"
)
"""Letters of scripts that put no blanks between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""

_LETTERS = str.maketrans(
    {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ð": "d", "ł": "l", "\u0131": "i", "þ": "th", "ħ": "h"}
)

SAYING_NOTHING = frozenset(
    """a about an and are as at be by can could did do does for from had has have how i if in into is it its me my not
    of on or our should so that the their them then there these they this to was we were what when where which who why
    will with would you your""".split()  # noqa: SIM905
)
"""English words of grammar: marked only where a query has no others."""


def matched_words(query: str, text: str) -> list[tuple[int, int]]:
    """Find where words of a query stand in a text, compared without case and accents.

    Words are letters and digits in a row, as the index of words splits them. In scripts without blanks between words,
    where that index has a dictionary, two characters in a row that the query has too count as a match. Stems are not
    looked at. English words of grammar, such as "the", count only where the query has no others.

    Args:
        query: what was looked for.
        text: of a hit.

    Returns:
        Start and end of each place in the text, in characters, in order and without overlaps.
    """
    wanted, pairs = set(), set()
    for match in _WORD.finditer(query):
        for word, _, is_spaced in _pieces(match):
            if is_spaced:
                wanted.add(_folded(word))
            else:
                pairs |= {word} if len(word) == 1 else {a + b for a, b in pairwise(word)}
    if (wanted - SAYING_NOTHING) or pairs:
        wanted -= SAYING_NOTHING
    found: list[tuple[int, int]] = []
    for match in _WORD.finditer(text):
        for word, start, is_spaced in _pieces(match):
            if is_spaced:
                if _folded(word) in wanted:
                    found.append((start, start + len(word)))
            else:
                _add_pairs(found, word, start, pairs)
    return found


def _pieces(match: re.Match[str]) -> list[tuple[str, int, bool]]:
    """Parts of a match in one kind of script, each with its place, and whether blanks part its words."""
    pieces, at, word = [], 0, match[0]
    for run in _WITHOUT_BLANKS.finditer(word):
        pieces += [(word[at : run.start()], match.start() + at, True), (run[0], match.start() + run.start(), False)]
        at = run.end()
    pieces.append((word[at:], match.start() + at, True))
    return [piece for piece in pieces if piece[0]]


def _add_pairs(found: list[tuple[int, int]], run: str, start: int, pairs: set[str]) -> None:
    """Add the characters of a run that are a part of one of these pairs."""
    at = 0
    while at < len(run):
        length = 2 if run[at : at + 2] in pairs else 1 if run[at] in pairs else 0
        if not length:
            at += 1
            continue
        end = at + length
        while end < len(run) and run[end - 1 : end + 1] in pairs:
            end += 1
        found.append((start + at, start + end))
        at = end


def _folded(word: str) -> str:
    """A word in lower case, without accents and ligatures."""
    if word.isascii():
        return word.lower()
    apart = unicodedata.normalize("NFKD", word.lower().translate(_LETTERS))
    return "".join(letter for letter in apart if not unicodedata.combining(letter))

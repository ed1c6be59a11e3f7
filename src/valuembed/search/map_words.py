"""Words that tell the areas of a map apart."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable

from valuembed.search.words import SAYING_NOTHING

_WORD = re.compile(r"[^\W\d_]{3,}(?:['\u2019-][^\W\d_]+)*")
_WITHOUT_BLANKS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]{2,}")
"""Letters of scripts that put no blanks between words: of these, two in a row are taken for a word."""

MOST_CHARACTERS = 2000
"""Of a passage; what it is about is said by then."""

LEAST_GAIN = math.log(1.5)
"""A word has to be so much more frequent in its area than in all of them."""

LEAST_PASSAGES = 2
"""Of an area, that a word has to stand in: a name in one passage says nothing of the others."""


class WordCounts:
    """In how many passages of each area a word stands.

    Args:
        areas: how many there are.
    """

    def __init__(self, areas: int) -> None:
        self._passages = [0] * areas
        self._words: list[Counter[str]] = [Counter() for _ in range(areas)]
        self._capital: Counter[str] = Counter()
        self._forms: dict[str, str] = {}

    def add(self, area: int, text: str) -> None:
        """Count a passage's words, each once."""
        self._passages[area] += 1
        found: dict[str, str] = {}
        for word in _words_of(text[:MOST_CHARACTERS]):
            # A word that is also written small is no name.
            small = word.lower()
            if small in SAYING_NOTHING:
                continue
            if small not in found or word == small:
                found[small] = word
        self._words[area].update(found.keys())
        for small, word in found.items():
            if word != small:
                self._capital[small] += 1
                self._forms[small] = word

    def telling(self, most: int = 4) -> list[list[str]]:
        """For each area the words that tell it from the others, the most telling first.

        A word counts by ``p(w | area) log(p(w | area) / p(w)) log(1 / p(w))``, with the share p of passages that it
        stands in: as in c-TF-IDF (Grootendorst 2022), often in the area and seldom elsewhere, but by passages, so that
        one that repeats a word does not name its area. The last factor is the usual one for words of grammar, which
        stand everywhere; English ones are left out.
        """
        total = Counter[str]()
        for words in self._words:
            total.update(words)
        everything = max(1, sum(self._passages))
        found = []
        for passages, words in zip(self._passages, self._words, strict=True):
            scores = {}
            for word, count in words.items():
                share = count / max(1, passages)
                gain = math.log(share * everything / total[word])
                if count >= LEAST_PASSAGES and gain > LEAST_GAIN:
                    scores[word] = share * gain * math.log(everything / total[word])
            chosen: list[str] = []
            for word in sorted(scores, key=lambda word: (-scores[word], word)):
                if len(chosen) == most:
                    break
                if not any(_alike(word, other) for other in chosen):
                    chosen.append(word)
            found.append([self._form(word, total[word]) for word in chosen])
        return found

    def _form(self, word: str, passages: int) -> str:
        return self._forms[word] if self._capital[word] > 0.7 * passages else word


def _words_of(text: str) -> Iterable[str]:
    for match in _WORD.finditer(text):
        if run := _WITHOUT_BLANKS.search(match[0]):
            yield from (run[0][at : at + 2] for at in range(len(run[0]) - 1))
        else:
            yield match[0]


def _alike(word: str, other: str) -> bool:
    """Whether two words are forms of one, such as a plural."""
    short, long = sorted((word, other), key=len)
    stem = max(4, len(short) - 2)
    return len(long) - len(short) <= 3 and short[:stem] == long[:stem] and len(short) >= 4

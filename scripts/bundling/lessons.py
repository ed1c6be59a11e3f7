"""What the prompts ask for, as lessons: sentences in the templates, and the words that would answer them.

A large language model understands `This sentence : "..." means in one word:"` by itself; one of a few million
parameters does not. A lesson is the whole prompt, then one content word and the closing quotation mark. At the prompt's
last token the target is not that one word but the distribution over all of the sentence's content words, which teaches
what drawing a word again and again would teach. PromptEOL's words are the sentence's own, FutureEOL's the next one's.

All of this is ours; the numbers below are choices, not findings.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from bundling.rows import encode
from bundling.text import BOS_ID, PAD_ID, sentences
from valuembed.recipes.templates import TEMPLATES

FUTURE = 0.35
"""Share of the lessons that ask for what follows."""
WORDS = (4, 30)
"""Fewest and most words of a sentence."""
ENDS, ANSWERS = 10, 8
"""Most lessons in a row, and most answers of a lesson."""
COMMON = 4.0
"""A word whose idf (natural logarithm, over sentences) is lower is no content word; weights grow from there..."""
RARE = 5.0
"""...by so much at most, lest misspelt words and names be everything."""
LEAST = 5
"""A word in fewer sentences is left out: nothing can be learned about it."""

_WORD = re.compile(r"[A-Za-z][A-Za-z'-]+")


@dataclass(frozen=True)
class Lesson:
    """A rendered prompt and its answers, each with its share (they add up to 1)."""

    prompt: str
    answers: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class LessonRows:
    """Lessons in rows of equal length, padded at the end.

    Attributes:
        ids: ``[rows, t]`` uint16.
        ends: ``[rows, ENDS]`` place of each prompt's last token; -1 where there is none.
        answers: ``[rows, ENDS, ANSWERS]`` uint16, first tokens of the answers.
        weights: ``[rows, ENDS, ANSWERS]`` float32, adding up to 1 in each lesson.
    """

    ids: np.ndarray
    ends: np.ndarray
    answers: np.ndarray
    weights: np.ndarray


def weigh_words(documents: Iterable[str]) -> dict[str, float]:
    """Weight of each content word, in lower case: its idf in excess of what common words have, capped."""
    count, found = 0, Counter[str]()
    for document in documents:
        for paragraph in sentences(document):
            for sentence in paragraph:
                count += 1
                found.update({word.lower() for word in _WORD.findall(sentence)})
    excess = {word: math.log(count / often) - COMMON for word, often in found.items() if often >= LEAST}
    return {word: min(weight, RARE) for word, weight in excess.items() if weight > 0}


def make_lessons(documents: Iterable[str], weights: dict[str, float], share: float, seed: int) -> Iterator[Lesson]:
    """Lessons from a share of the sentences that are fit for one."""
    draw = random.Random(seed)
    for document in documents:
        for paragraph in sentences(document):
            for sentence, following in zip(paragraph, [*paragraph[1:], None], strict=True):
                if not WORDS[0] <= len(sentence.split()) <= WORDS[1] or draw.random() >= share:
                    continue
                future = following is not None and draw.random() < FUTURE
                template = TEMPLATES["future_eol" if future else "prompt_eol"]
                answers = _content(following if future else sentence, weights)
                if answers:
                    yield Lesson(str(template).replace("{text}", sentence), answers)


def _content(sentence: str | None, weights: dict[str, float]) -> tuple[tuple[str, float], ...]:
    found: dict[str, float] = {}
    for place, word in enumerate(_WORD.findall(sentence or "")):
        # A sentence's first word has a capital letter that says nothing.
        if (weight := weights.get(word.lower())) is not None:
            found[word.lower() if place == 0 else word] = weight
    heaviest = sorted(found.items(), key=lambda item: -item[1])[:ANSWERS]
    total = sum(weight for _, weight in heaviest)
    return tuple((word, weight / total) for word, weight in heaviest)


def pack_lessons(lessons: Iterable[Lesson], tokenizer: PreTrainedTokenizerBase, length: int, seed: int) -> LessonRows:
    """Tokenize lessons whole and lay them into rows; one that is longer than a row is left out."""
    draw = random.Random(seed)
    given = list(lessons)
    draw.shuffle(given)
    spoken = [draw.choices(*zip(*lesson.answers, strict=True))[0] for lesson in given]
    prompts = encode(tokenizer, (lesson.prompt for lesson in given))
    wholes = encode(tokenizer, (f'{lesson.prompt}{word}"' for lesson, word in zip(given, spoken, strict=True)))
    first = dict(_first_tokens(tokenizer, {word for lesson in given for word, _ in lesson.answers}))
    ids: list[list[int]] = [[]]
    lists: list[list[tuple[int, list[tuple[int, float]]]]] = [[]]
    for lesson, prompt, whole in zip(given, prompts, wholes, strict=True):
        # The prompt's tokens must open the whole's, else its last token would not be the one that answers.
        if len(whole) + 1 > length or whole[: len(prompt)] != prompt:
            continue
        if len(ids[-1]) + len(whole) + 1 > length or len(lists[-1]) == ENDS:
            ids.append([])
            lists.append([])
        lists[-1].append((len(ids[-1]) + len(prompt), [(first[word], share) for word, share in lesson.answers]))
        ids[-1] += [BOS_ID, *whole]
    rows = len(ids)
    packed = LessonRows(
        np.full((rows, length), PAD_ID, np.uint16),
        np.full((rows, ENDS), -1, np.int16),
        np.zeros((rows, ENDS, ANSWERS), np.uint16),
        np.zeros((rows, ENDS, ANSWERS), np.float32),
    )
    for row, (tokens, ends) in enumerate(zip(ids, lists, strict=True)):
        packed.ids[row, : len(tokens)] = tokens
        for number, (end, answers) in enumerate(ends):
            packed.ends[row, number] = end
            packed.answers[row, number, : len(answers)] = [token for token, _ in answers]
            packed.weights[row, number, : len(answers)] = [share for _, share in answers]
    return packed


def _first_tokens(tokenizer: PreTrainedTokenizerBase, words: set[str]) -> Iterator[tuple[str, int]]:
    ordered = sorted(words)
    for word, ids in zip(ordered, encode(tokenizer, ordered), strict=True):
        yield word, ids[0]

"""Texts of many lengths, the same in every run."""

import random

import numpy as np

WORDS = ["the", "sun", "rose", "over", "a", "quiet", "town", "while", "nobody", "watched", "rain", "fell", "again"]


def some_texts(count: int) -> list[str]:
    generator = np.random.default_rng(3)
    return [" ".join(generator.choice(WORDS, size=generator.integers(1, 40))) for _ in range(count)]


SCRIPTS = (
    (0x20, 0x7E), (0x30, 0x39), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x5D0, 0x5EA),
    (0x620, 0x64A), (0x900, 0x97F), (0xE00, 0xE7F), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
    (0x1F300, 0x1F6FF), (0x2000, 0x206F), (0x0, 0x1F),
)  # fmt: skip
"""Ranges of characters: Latin, digits, accents, Greek, Cyrillic, Hebrew, Arabic, ..., blanks of all kinds."""


def mixed_texts(count: int) -> list[str]:
    """Texts of words in many scripts, with blanks of all kinds between them."""
    draw = random.Random(0)
    return ["".join(word(draw) for _ in range(draw.randint(1, 20))) for _ in range(count)]


def word(draw: random.Random) -> str:
    first, last = draw.choice(SCRIPTS)
    letters = "".join(chr(draw.randint(first, last)) for _ in range(draw.randint(1, 6)))
    return letters + draw.choice(["", "", " ", " ", "  ", "\n", "\n\n", "\t", " \n ", "   "])

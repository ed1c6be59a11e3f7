"""Texts of many lengths, the same in every run."""

import numpy as np

WORDS = ["the", "sun", "rose", "over", "a", "quiet", "town", "while", "nobody", "watched", "rain", "fell", "again"]


def some_texts(count: int) -> list[str]:
    generator = np.random.default_rng(3)
    return [" ".join(generator.choice(WORDS, size=generator.integers(1, 40))) for _ in range(count)]

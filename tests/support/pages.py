"""An engine with a page around it that needs no model."""

from __future__ import annotations

import numpy as np
from serving import FakeEngine, vector_of

from valuembed.errors import InputError, ReadingError
from valuembed.serving.playground.api import SERVED, Choice, Playground, WeighedText, WeighedToken

KEY = "sk-a-secret-key"


def other_vector_of(text):
    """Another vector than :func:`serving.vector_of` gives."""
    return vector_of(text[::-1])


class FakePlayground(Playground):
    """Its other method embeds the letters backwards; a word weighs 2.5 % a letter, and is a token.

    Texts with such a word fail: ``unweighable``, ``unreadable`` (errors of the library), ``poison`` (any other).
    """

    choices = (
        Choice(SERVED, "letters (as served)", "Letters", "value"),
        Choice("backwards", "letters backwards", "Letters from the end", "hidden"),
    )

    def __init__(self):
        self.portions = []

    def vectors(self, texts, name, role):
        assert name == "backwards"
        self.portions.append(list(texts))
        if any("poison" in text for text in texts):
            raise RuntimeError("failed on a text with poison")
        if any("unreadable" in text for text in texts):
            raise ReadingError("a vector is not finite")
        found = [other_vector_of(f"{role or ''}{text}"[:1000]) for text in texts]
        return np.stack(found), sum(len(text) > 1000 for text in texts)

    def weights(self, text):
        if "unweighable" in text:
            raise InputError("the text is unweighable")
        first, *others = text.split() or [text]
        words = [first, *(f" {word}" for word in others)]
        tokens = [WeighedToken(word, 0.025 * len(word.strip()), True) for word in words]
        return WeighedText(
            "letters", 0.15, False, [[WeighedToken("<s>", 0.6, False), *tokens, WeighedToken(" so", 0.05, False)]]
        )


class PageEngine(FakeEngine):
    """A fake engine with a page."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.playground = FakePlayground()

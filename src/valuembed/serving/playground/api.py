"""What a page to try a model with needs of it: other methods beside its own, weights of tokens, and some arithmetic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SERVED = "served"
"""The method that a server embeds with: its vectors are those of ``/v1/embeddings``."""


@dataclass(frozen=True)
class Choice:
    """A method that the page offers.

    Attributes:
        name: :data:`SERVED`, or one that a playground computes.
        label: for a list of choices.
        about: what is read, and where.
        signal: ``"value"`` or ``"hidden"``.
    """

    name: str
    label: str
    about: str
    signal: str


@dataclass(frozen=True)
class WeighedToken:
    """A token as a reader sees it.

    Attributes:
        text: its characters, or its name where it adds none.
        weight: that the last token gives it, the mean over layers and heads.
        is_text: whether it is the text's own, not the template's.
    """

    text: str
    weight: float
    is_text: bool


@dataclass(frozen=True)
class WeighedText:
    """What the last token of a text makes of the others.

    Attributes:
        about: of which method and layers.
        full: the weight for full colour.
        truncated: whether tokens of the text were cut away.
        sequences: of each of the method's templates, its tokens.
    """

    about: str
    full: float
    truncated: bool
    sequences: list[list[WeighedToken]]


class Playground(ABC):
    """What a loaded model can show beside its own vectors; only ever called from the model's thread.

    Attributes:
        choices: the methods it offers, :data:`SERVED` first.
    """

    choices: tuple[Choice, ...]

    @abstractmethod
    def vectors(self, texts: Sequence[str], name: str, role: str | None) -> tuple[NDArray[np.float32], int]:
        """Vectors ``[b, width]`` float32 of b texts by a choice other than :data:`SERVED`; how many texts were cut."""

    @abstractmethod
    def weights(self, text: str) -> WeighedText:
        """What each token of a text counts for."""


def to_unit_length(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors ``[b, width]`` scaled to length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = vectors / np.maximum(lengths, 1e-12)
    return scaled


def portions(texts: Sequence[str], characters: int) -> Iterator[Sequence[str]]:
    """Texts in their order, cut into portions of so many characters, or of a single longer text.

    The model's thread does other requests' work between two portions.
    """
    start = size = 0
    for index, text in enumerate(texts):
        if index > start and size + len(text) > characters:
            yield texts[start:index]
            start, size = index, 0
        size += len(text)
    if texts:
        yield texts[start:]

"""An encoder without a network: enough of a model for what reads files, writes files and prints."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from valuembed.backbone.checkpoints.location import LoadedFrom


class FakeEncoder:
    """Counts letters: equal texts have equal vectors, and texts with common letters are similar.

    Args:
        name: of the model.
        width: of the vectors; letters are counted modulo the width.
        poison: texts that contain this become NaN.
        shift: added to every vector; another shift stands for other weights.
        dtype: of its weights.
        max_tokens: the longest sequence it is said to take.
        recipe: what ``model.recipe.to_dict()`` gives.
    """

    def __init__(self, name="fake", width=16, poison=None, shift=0.0, dtype="float32", max_tokens=None, **recipe: Any):
        self.width, self.poison, self.shift = width, poison, shift
        # What loads without a network, whatever its name.
        loaded_from = LoadedFrom("bundled")
        self.reader = SimpleNamespace(origin=SimpleNamespace(name=name), loaded_from=loaded_from)
        choices = {"method": "aligned_wva", "signal": "value", "weights": "last", "alignment": "projection"}
        choices = {**choices, "layers": (2, 3), "template": ("{text}",), **recipe}
        self.recipe = SimpleNamespace(to_dict=lambda: dict(choices), **choices)
        self.report = None
        self.compute_dtype, self.max_seq_length = dtype, max_tokens
        self.calls: list[tuple[str, list[str]]] = []

    def get_embedding_dimension(self) -> int:
        return self.width

    def _vectors(self, role, texts):
        self.calls.append((role, list(texts)))
        vectors = np.full((len(texts), self.width), self.shift, np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for char in text.lower():
                row[ord(char) % self.width] += 1
            if self.poison and self.poison in text:
                row[0] = np.nan
        tokens = sum(len(text.split()) for text in texts)
        self.report = SimpleNamespace(tokens=tokens, truncated=sum(len(text) > 200 for text in texts))
        return vectors

    def encode(self, inputs, *, show_progress_bar=None):
        return self._vectors("plain", inputs)

    def encode_query(self, inputs, *, show_progress_bar=None):
        return self._vectors("query", inputs)

    def encode_document(self, inputs, *, show_progress_bar=None):
        return self._vectors("document", inputs)

"""The Parquet layout of stored embeddings: what the verbs write, read, and compare before they mix vectors.

A file holds the columns ``id``, ``text`` and ``embedding`` (fixed-size list of float32). Its schema metadata says,
under the key ``valuembed``, which model and which recipe made the vectors, for vectors of different makes cannot be
compared. A name cannot tell weights apart (a folder is renamed, an adapter is put on), so the vector of one fixed
sentence is kept as well, and decides.
"""

from __future__ import annotations

import base64
import binascii
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from valuembed import __version__
from valuembed.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ID, TEXT, EMBEDDING = "id", "text", "embedding"
METADATA_KEY = b"valuembed"
PROBE = "The quick brown fox jumps over the lazy dog."
PROBE_COSINE = 0.99
"""Two makes are the same above this: the same weights in half precision stay above 0.999, other weights fall below."""


class Report(Protocol):
    """What a model says about its last call."""

    @property
    def tokens(self) -> int:
        """Tokens that were computed."""

    @property
    def truncated(self) -> int:
        """Texts of which only the beginning was read."""


class Recipe(Protocol):
    """A recipe, as far as storage is concerned."""

    def to_dict(self) -> dict[str, Any]:
        """Everything that decides how a vector is read, as plain data for JSON."""


class Origin(Protocol):
    """Where weights come from."""

    @property
    def name(self) -> str:
        """A hub id, a folder's name, or ``"bundled"``."""


class Reader(Protocol):
    """The part of a model that knows its origin."""

    @property
    def origin(self) -> Origin:
        """Where the weights come from."""


class Encoder(Protocol):
    """What the verbs need of a model; :func:`valuembed.load` returns one. Vectors are float32 ``[b, width]``."""

    @property
    def reader(self) -> Reader:
        """The module that reads the decoder."""

    @property
    def recipe(self) -> Recipe:
        """How a vector is read from the decoder."""

    @property
    def report(self) -> Report | None:
        """Counts of the last call."""

    def get_embedding_dimension(self) -> int | None:
        """Width of a vector."""

    def encode(self, inputs: list[str], *, show_progress_bar: bool | None = ...) -> Any:
        """Embed texts that are compared with each other."""

    def encode_query(self, inputs: list[str], *, show_progress_bar: bool | None = ...) -> Any:
        """Embed texts that ask."""

    def encode_document(self, inputs: list[str], *, show_progress_bar: bool | None = ...) -> Any:
        """Embed texts that are searched."""


@dataclass(frozen=True)
class Make:
    """Which model and recipe made the vectors.

    Attributes:
        model: the model's name, for people to read.
        recipe: as plain data.
        probe: the vector ``[width]`` of :data:`PROBE` as a document.
    """

    model: str
    recipe: dict[str, Any]
    probe: NDArray[np.float32]

    @property
    def width(self) -> int:
        """Width of a vector."""
        return len(self.probe)

    @classmethod
    def of(cls, model: Encoder) -> Make:
        """The make of the vectors that this model returns."""
        import numpy as np

        with warnings.catch_warnings():
            # Under a very small token limit even the probe is cut: the same on both sides, and no news to anyone.
            warnings.simplefilter("ignore")
            probe = np.asarray(model.encode_document([PROBE], show_progress_bar=False), np.float32)[0]
        # Through JSON and back: what was stored and what was not are then equal when they mean the same.
        return cls(model.reader.origin.name, json.loads(json.dumps(model.recipe.to_dict())), probe)

    @classmethod
    def from_metadata(cls, path: str | Path, metadata: dict[bytes, bytes] | None) -> Make:
        """The make that a file's schema metadata records.

        Raises:
            InputError: there is no such record, or it is damaged.
        """
        import numpy as np

        if METADATA_KEY not in (metadata or {}):
            raise InputError(f"{path} does not say which model made its vectors; write it with: valuembed embed")
        try:
            record = json.loads((metadata or {})[METADATA_KEY])
            probe = np.frombuffer(base64.b64decode(record["probe"], validate=True), "<f4")
            return cls(str(record["model"]), dict(record["recipe"]), probe)
        except (KeyError, ValueError, TypeError, binascii.Error) as error:
            raise InputError(f"{path} holds a damaged record of the model that made its vectors ({error!r})") from error

    def to_metadata(self) -> dict[bytes, bytes]:
        """The record as schema metadata of a Parquet file."""
        record = {
            "model": self.model,
            "recipe": self.recipe,
            "width": self.width,
            "version": __version__,
            "probe": base64.b64encode(self.probe.astype("<f4").tobytes()).decode(),
        }
        return {METADATA_KEY: json.dumps(record, ensure_ascii=False).encode()}

    def __str__(self) -> str:
        layers = self.recipe.get("layers")
        return f"model {self.model!r}, method {self.recipe.get('method')!r}, layers {layers}, width {self.width}"

    def differences(self, other: Make) -> list[str]:
        """What sets another make apart, in words; empty when vectors of the two can be compared."""
        # The name of a method decides nothing: two names for the same choices give the same vectors.
        keys = [key for key in dict.fromkeys([*self.recipe, *other.recipe]) if key != "method"]
        found = [
            f"{key} {self.recipe.get(key)!r} against {other.recipe.get(key)!r}"
            for key in keys
            if self.recipe.get(key) != other.recipe.get(key)
        ]
        if self.width != other.width:
            found.append(f"width {self.width} against {other.width}")
        # Only where nothing else explains it.
        if not found and (cosine := _cosine(self.probe, other.probe)) < PROBE_COSINE:
            found.append(f"other weights or prompts: the same sentence has cosine {cosine:.3f}")
        return found


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    import numpy as np

    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale else 0.0

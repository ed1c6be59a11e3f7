"""The Parquet layout of stored embeddings: what the verbs write, read, and compare before they mix vectors.

A file holds the columns ``id``, ``text`` and ``embedding`` (fixed-size list of float32, or of what the precision
stores); a shard of a corpus also says of which file and row they are. Its schema metadata says, under the key
``valuembed``, which model and which recipe made the vectors and how they are kept, for vectors of different makes
cannot be compared. A name cannot tell weights apart (a folder is renamed, an adapter is put on), so the vector of one
fixed sentence is kept as well, and decides.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from valuembed._utils.text_warnings import text_warnings_held_back
from valuembed._utils.version import __version__
from valuembed.backbone.checkpoints import LoadedFrom
from valuembed.errors import InputError
from valuembed.recipes import recipe_differences
from valuembed.vectors.quantization import PRECISIONS, check_precision, pack, shorten, stored_width, unpack

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ID, TEXT, EMBEDDING = "id", "text", "embedding"
FILE, ROW, CHUNK, START, END = "file", "row", "chunk", "start", "end"
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


class RecipeLike(Protocol):
    """A recipe, as far as storage is concerned."""

    def to_dict(self) -> dict[str, Any]:
        """Everything that decides how a vector is read, as plain data for JSON."""


class OriginLike(Protocol):
    """Where weights come from."""

    @property
    def name(self) -> str:
        """A hub id, a folder's name, or ``"bundled"``."""


class ReaderLike(Protocol):
    """The part of a model that knows its origin."""

    @property
    def origin(self) -> OriginLike:
        """Where the weights come from."""

    @property
    def loaded_from(self) -> LoadedFrom | None:
        """What was loaded, which may be an adapter on those weights."""


class Encoder(Protocol):
    """What the verbs need of a model; :func:`valuembed.load` returns one. Vectors are float32 ``[b, width]``."""

    @property
    def reader(self) -> ReaderLike:
        """The module that reads the decoder."""

    @property
    def recipe(self) -> RecipeLike:
        """How a vector is read from the decoder."""

    @property
    def report(self) -> Report | None:
        """Counts of the last call."""

    @property
    def compute_dtype(self) -> str:
        """What is computed in, and what the weights are kept in where that is something else."""

    @property
    def max_seq_length(self) -> int | None:
        """The longest sequence that is fed, template included."""

    def get_embedding_dimension(self) -> int | None:
        """Width of a vector."""

    def encode(self, inputs: list[str], *, show_progress_bar: bool | None = ...) -> Any:
        """Embed texts that are compared with each other."""

    def encode_query(self, inputs: list[str], *, show_progress_bar: bool | None = ...) -> Any:
        """Embed texts that ask."""

    def encode_document(self, inputs: list[str], *, show_progress_bar: bool | None = ...) -> Any:
        """Embed texts that are searched."""


@dataclass(frozen=True)
class VectorSpec:
    """Which model and recipe made the vectors, and how they are stored.

    Attributes:
        model: the model's name, for people to read.
        recipe: as plain data.
        probe: the vector of :data:`PROBE` as a document, as the model gives it.
        precision: how its numbers are stored, a name of :data:`valuembed.vectors.PRECISIONS`.
        dim: how many numbers of a vector are kept, which is then scaled to length 1 again; None is all, as they are.
        loaded_from: what to load for a model that makes such vectors; None where that is not known.
    """

    model: str
    recipe: dict[str, Any]
    probe: NDArray[np.float32]
    precision: str = "float32"
    dim: int | None = None
    loaded_from: LoadedFrom | None = None

    @property
    def width(self) -> int:
        """Width of a stored vector, in numbers of it."""
        return self.dim or len(self.probe)

    @property
    def vector_type(self) -> Any:
        """The Arrow type of a stored vector."""
        import pyarrow as pa

        kind = pa.type_for_alias(PRECISIONS[self.precision].stored)
        return pa.list_(kind, stored_width(self.precision, self.width))

    def pack(self, vectors: NDArray[Any]) -> NDArray[Any]:
        """Vectors of the model, float32 ``[b, m]``, as they are stored; see :mod:`valuembed.vectors.quantization`."""
        return pack(vectors if self.dim is None else shorten(vectors, self.dim), self.precision)

    def fits(self, vectors: NDArray[Any]) -> NDArray[Any]:
        """Which vectors of the model, float32 ``[b, m]``, can be stored, ``[b]``.

        One that is not finite cannot, nor one without a direction in the numbers that are kept, nor one that is too
        large for its precision.
        """
        import numpy as np

        kept = vectors if self.dim is None else shorten(vectors, self.dim)
        fine: NDArray[Any] = np.isfinite(pack(kept, "float16") if self.precision == "float16" else kept).all(axis=1)
        return fine

    def unpack(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Stored vectors as float32 ``[b, width]``, to be compared by cosine."""
        return unpack(stored, self.precision, self.width)

    @classmethod
    def of(cls, model: Encoder, precision: str = "float32", dim: int | None = None) -> VectorSpec:
        """The make of this model's vectors, stored in a precision and a size.

        Raises:
            InputError: an unknown precision, or a size that the vectors do not have.
        """
        import numpy as np

        # Under a very small token limit even the probe is cut: the same on both sides, and no news to anyone.
        with text_warnings_held_back():
            probe = np.asarray(model.encode_document([PROBE], show_progress_bar=False), np.float32)[0]
        if dim is not None and not 1 <= dim <= len(probe):
            raise InputError(f"dim={dim}: the vectors of this model are {len(probe)} wide; legal: 1 to {len(probe)}")
        # Through JSON and back: what was stored and what was not are then equal when they mean the same.
        recipe = json.loads(json.dumps(model.recipe.to_dict()))
        reader = model.reader
        return cls(reader.origin.name, recipe, probe, check_precision(precision), dim, reader.loaded_from)

    @classmethod
    def from_metadata(cls, path: str | Path, metadata: dict[bytes, bytes] | None) -> VectorSpec:
        """The make that a file's schema metadata records.

        Raises:
            InputError: there is no such record, or it is damaged.
        """
        if METADATA_KEY not in (metadata or {}):
            raise InputError(f"{path} does not say which model made its vectors; write it with: valuembed embed")
        try:
            return cls.from_record(json.loads((metadata or {})[METADATA_KEY]))
        except (KeyError, ValueError, TypeError, binascii.Error) as error:
            raise InputError(f"{path} holds a damaged record of the model that made its vectors ({error!r})") from error

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> VectorSpec:
        """The make that plain data records; a KeyError, TypeError or ValueError where it does not."""
        import numpy as np

        probe = np.frombuffer(base64.b64decode(record["probe"], validate=True), "<f4")
        # A record may leave out that vectors are whole and of full width.
        precision, dim = check_precision(record.get("precision", "float32")), record.get("dim")
        loaded = LoadedFrom(**record["loaded_from"]) if record.get("loaded_from") else None
        dim = None if dim is None else int(dim)
        return cls(str(record["model"]), dict(record["recipe"]), probe, precision, dim, loaded)

    def to_record(self) -> dict[str, Any]:
        """The make as plain data for JSON."""
        return {
            "model": self.model,
            "loaded_from": asdict(self.loaded_from) if self.loaded_from else None,
            "recipe": self.recipe,
            "width": self.width,
            "precision": self.precision,
            "dim": self.dim,
            "version": __version__,
            "probe": base64.b64encode(self.probe.astype("<f4").tobytes()).decode(),
        }

    def to_metadata(self) -> dict[bytes, bytes]:
        """The record as schema metadata of a Parquet file."""
        return {METADATA_KEY: json.dumps(self.to_record(), ensure_ascii=False).encode()}

    def __str__(self) -> str:
        layers = self.recipe.get("layers")
        kept = "" if self.precision == "float32" else f", precision {self.precision}"
        return f"model {self.model!r}, method {self.recipe.get('method')!r}, layers {layers}, width {self.width}{kept}"

    def differences(self, other: VectorSpec, least_cosine: float = PROBE_COSINE) -> list[str]:
        """What sets another make apart, in words; empty when vectors of the two can be compared.

        Args:
            other: the other make.
            least_cosine: between the vectors of one sentence, from which on the weights count as the same.
        """
        recipes = recipe_differences(self.recipe, other.recipe)
        found = [f"{name} {own!r} against {others!r}" for name, (own, others) in recipes.items()]
        if self.width != other.width or len(self.probe) != len(other.probe):
            widths = [f"{one.width} of {len(one.probe)}" if one.dim else str(one.width) for one in (self, other)]
            found.append(f"width {' against '.join(widths)}")
        if self.precision != other.precision:
            found.append(f"precision {self.precision!r} against {other.precision!r}")
        # Only where nothing else explains it.
        if not found and (cosine := _cosine(self.probe, other.probe)) < least_cosine:
            found.append(f"other weights or prompts: the same sentence has cosine {cosine:.3f}")
        return found


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    import numpy as np

    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale else 0.0

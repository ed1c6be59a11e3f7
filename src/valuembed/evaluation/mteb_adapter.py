"""Methods as mteb wants its encoders, several on one decoder: vectors of a pass are kept for those that come next.

mteb runs one encoder after the other over a task. The first that is asked for texts has the vectors of all the others
computed that feed the same tokens and still have the task before them; they lie in a temporary folder until then.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from valuembed._utils.optional import require
from valuembed._utils.progress import track
from valuembed._utils.text import counted
from valuembed._utils.text_warnings import text_warnings_held_back
from valuembed.errors import OutputError, ReadingError
from valuembed.execution import EncodeReport
from valuembed.models import ValueEncoder
from valuembed.recipes import Recipe

if TYPE_CHECKING:
    from mteb.models import ModelMeta

TEXTS_PER_CHUNK = 2048
"""Texts whose vectors are in memory together, at most."""

CHARACTERS_PER_CHUNK = 130_000
"""The same in characters: enough to fill several steps, few enough for the bar to move."""

BYTES_PER_CHUNK = 256_000_000
"""The same in bytes of vectors, for many methods or wide ones; a chunk has at least 256 texts."""


class VectorSource(Protocol):
    """What computes vectors: a :class:`valuembed.models.MultiReadout`, or :class:`AsLoaded`."""

    report: EncodeReport | None

    @property
    def recipes(self) -> Mapping[str, Recipe]:
        """The recipes by name, their layers absolute."""

    @property
    def by_role(self) -> bool:
        """Whether the same text may have another vector as a query than as a document."""

    def widths(self) -> dict[str, int]:
        """Width of each recipe's vectors."""

    def groups(self, role: str | None = None) -> list[list[str]]:
        """Names of the recipes that share a forward pass for texts of a role."""

    def encode(
        self, texts: Sequence[str], *, names: Sequence[str] | None = None, role: str | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """The vectors of some recipes, ``[b, width]`` each."""


class AsLoaded:
    """What ``load`` gave, under one name: the later modules of a saved folder apply.

    Args:
        encoder: the model.
        name: what to call it.
    """

    def __init__(self, encoder: ValueEncoder, name: str) -> None:
        self.encoder = encoder
        self.name = name
        self.report: EncodeReport | None = None

    @property
    def recipes(self) -> Mapping[str, Recipe]:
        """The recipe by its name."""
        return {self.name: self.encoder.recipe}

    @property
    def by_role(self) -> bool:
        """True: besides templates, prompts that the model was saved with may decide, and so may its later modules."""
        return True

    def widths(self) -> dict[str, int]:
        """Width after the last module."""
        return {self.name: self.encoder.get_embedding_dimension() or 0}

    def groups(self, role: str | None = None) -> list[list[str]]:
        """One name."""
        return [[self.name]]

    def encode(
        self, texts: Sequence[str], *, names: Sequence[str] | None = None, role: str | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Vectors as ``encode``, ``encode_query`` or ``encode_document`` give them."""
        encode = {"query": self.encoder.encode_query, "document": self.encoder.encode_document}.get(role or "")
        # The report counts them, for a whole task.
        with text_warnings_held_back():
            vectors = (encode or self.encoder.encode)(list(texts), show_progress_bar=False)
        self.report = self.encoder.report
        return {self.name: np.asarray(vectors, np.float32)}


@dataclass
class Spent:
    """What the vectors of one method took: texts, tokens, texts that were cut, seconds; shared passes count whole."""

    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    seconds: float = 0.0

    def add(self, report: EncodeReport, seconds: float) -> None:
        """Count one more pass."""
        self.texts += report.texts
        self.tokens += report.tokens
        self.truncated += report.truncated
        self.seconds += seconds


@dataclass(frozen=True)
class _Pass:
    """What the passes over one set of tokens have given so far.

    Attributes:
        number: part of the names of its files, one for each method: rows of float32 one after the other.
        names: of the methods that it serves.
        rows: which text stands in which row.
    """

    number: int
    names: tuple[str, ...]
    rows: dict[str, int]


class SharedVectors:
    """The vectors of one task at a time: each text computed once, for all methods that share a pass.

    They are kept in a temporary folder (the environment variable TMPDIR says where), so that many methods and large
    corpora need disk and not memory.

    Args:
        source: what computes them.
        unit: scale them to unit length.
        progress: show a bar for each pass, on stderr if that is a terminal, else a line a minute.
    """

    def __init__(self, source: VectorSource, *, unit: bool = True, progress: bool = False) -> None:
        self.source = source
        self._unit = unit
        self._progress = progress
        self._names = list(source.recipes)
        self._numbers = count()
        self._folder = tempfile.TemporaryDirectory(prefix="valuembed-")
        self.start(self._names)

    def __enter__(self) -> SharedVectors:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._folder.cleanup()

    def start(self, names: Iterable[str]) -> None:
        """Begin a task: forget the vectors of the last one.

        Args:
            names: the methods that have this task before them.
        """
        self.spent = {name: Spent() for name in self._names}
        self._waiting = set(names)
        self._passes: dict[tuple[str | None, tuple[str, ...]], _Pass] = {}
        self._apart: set[tuple[str, ...]] = set()
        self._delete("*")

    def done(self, name: str) -> None:
        """Drop the vectors of a method that has this task behind it."""
        self._waiting.discard(name)
        self._passes = {key: made for key, made in self._passes.items() if self._waiting & {*made.names}}
        self._delete(f"*-{self._names.index(name)}")

    def get(self, name: str, texts: Sequence[str], role: str | None = None) -> NDArray[np.float32]:
        """Vectors of texts, computed where they are not there yet.

        Args:
            name: of the method.
            texts: b texts.
            role: ``"query"``, ``"document"`` or None.

        Returns:
            ``[b, width]``.

        Raises:
            InputError: something that is not a text.
            ReadingError: a vector is not finite.
            OutputError: the temporary folder is full.
        """
        role = role if self.source.by_role else None
        group = next(tuple(group) for group in self.source.groups(role) if name in group)
        members = tuple(other for other in group if other in self._waiting)
        if name not in members or group in self._apart:
            group = members = (name,)
        made = self._passes.setdefault((role, group), _Pass(next(self._numbers), group, {}))
        try:
            self._compute([text for text in dict.fromkeys(texts) if text not in made.rows], made, members, role)
        except ReadingError:
            if len(members) == 1:
                raise
            # Some method's numbers are not finite, and the error cannot say whose: from here on each has its own pass.
            self._apart.add(group)
            return self.get(name, texts, role)
        width = self.source.widths()[name]
        if not len(texts):
            return np.zeros((0, width), np.float32)
        kept = np.memmap(self._path(made, name), np.float32, "r", shape=(len(made.rows), width))
        return np.asarray(kept[[made.rows[text] for text in texts]])

    def _compute(self, texts: list[str], made: _Pass, members: Sequence[str], role: str | None) -> None:
        """Add the vectors of new texts, longest first, so that chunks are of one length and memory is short at once."""
        widths = self.source.widths()
        at_once = BYTES_PER_CHUNK // (4 * sum(widths[member] for member in members))
        at_once = max(256, min(TEXTS_PER_CHUNK, at_once))
        texts = sorted(texts, key=len, reverse=True)
        with track(self._progress and bool(texts), total=len(texts), desc="texts", unit=" texts", leave=False) as bar:
            for chunk in _chunks(texts, at_once):
                began = time.perf_counter()
                for member, vectors in self.source.encode(chunk, names=members, role=role).items():
                    self._append(made, member, vectors)
                seconds = time.perf_counter() - began
                for member in members:
                    assert self.source.report is not None
                    self.spent[member].add(self.source.report, seconds)
                made.rows.update(zip(chunk, range(len(made.rows), len(made.rows) + len(chunk)), strict=True))
                bar.update(len(chunk))

    def _append(self, made: _Pass, name: str, vectors: NDArray[np.float32]) -> None:
        """Write rows after those that count; what an interrupted chunk left there is overwritten."""
        path = self._path(made, name)
        if self._unit:
            vectors = normalize(torch.from_numpy(vectors), dim=1).numpy()
        try:
            with path.open("r+b" if path.exists() else "wb") as file:
                file.seek(len(made.rows) * vectors.shape[1] * vectors.itemsize)
                file.write(np.ascontiguousarray(vectors).data)
        except OSError as error:
            where = f"vectors of {counted(len(made.rows) + len(vectors), 'text')} do not fit into {path.parent}"
            reason = f"{where}: {error.strerror or error}; set TMPDIR to a folder with more room"
            raise OutputError(reason) from error

    def _path(self, made: _Pass, name: str) -> Path:
        # By number, for labels are no file names.
        return Path(self._folder.name) / f"{made.number}-{self._names.index(name)}"

    def _delete(self, pattern: str) -> None:
        for path in Path(self._folder.name).glob(pattern):
            path.unlink()


def _chunks(texts: Iterable[str], at_once: int) -> Iterator[list[str]]:
    chunk: list[str] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if len(chunk) == at_once or characters >= CHARACTERS_PER_CHUNK:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


class MethodEncoder:
    """One method as an encoder of mteb (its ``EncoderProtocol``), for ``mteb.evaluate`` and ``mteb.mock_run``.

    Args:
        vectors: where vectors come from; several encoders share it.
        name: of the method there.
        meta: what mteb files results under, see :func:`model_meta`.
    """

    def __init__(self, vectors: SharedVectors, name: str, meta: ModelMeta) -> None:
        self.vectors = vectors
        self.name = name
        self.meta = meta

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Name and revision, which decide where mteb keeps results."""
        return self.meta

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Vectors of what a data loader holds.

        Args:
            inputs: batches with b texts in all.
            task_metadata, hf_split, hf_subset, kwargs: decide nothing here.
            prompt_type: query, document or None: whose templates.

        Returns:
            ``[b, width]``.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        return self.vectors.get(self.name, texts, None if prompt_type is None else str(prompt_type.value))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of each with each, ``[n, m]``."""
        return require("mteb.similarity_functions", "eval").cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of each with its partner, ``[n]``."""
        return require("mteb.similarity_functions", "eval").pairwise_cos_sim(embeddings1, embeddings2)


def model_meta(model: str, revision: str) -> ModelMeta:
    """What mteb wants to know of a model.

    Args:
        model: hub id, ``"bundled"``, or a folder's own name.
        revision: what tells apart all that gives other vectors.

    Raises:
        MissingExtraError: mteb is not installed.
    """
    models = require("mteb.models.model_meta", "eval")
    # mteb files a model under an organisation, which a folder does not have.
    name = model if "/" in model else f"local/{model}"
    cosine = models.ScoringFunction.COSINE
    meta: ModelMeta = models.ModelMeta.create_empty(
        overwrites={"name": name, "revision": revision, "similarity_fn_name": cosine, "framework": ["PyTorch"]}
    )
    return meta

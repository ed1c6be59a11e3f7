"""Passages of documents with their vectors, and what a store of them has to do: it is kept in step with a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from valuembed.vectors.provenance import CHUNK, EMBEDDING, END, FILE, ID, ROW, START, TEXT, VectorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

TITLE, HEADINGS, PAGE, LINE = "title", "headings", "page", "line"
BETWEEN_HEADINGS = " > "
"""Between the headings that a passage stands under, the outermost first."""

_COLUMNS = {
    ID: "string",
    FILE: "string",
    ROW: "int64",
    CHUNK: "int32",
    START: "int32",
    END: "int32",
    TEXT: "string",
    TITLE: "string",
    HEADINGS: "string",
    PAGE: "int32",
    LINE: "int32",
}
"""Columns of passages in front of their vectors, with their Arrow types."""


class PassageLike(Protocol):
    """A part of a document that gets a vector, as :func:`valuembed.data.documents.read_passages` finds it."""

    @property
    def text(self) -> str:
        """The text of the passage."""

    @property
    def title(self) -> str | None:
        """The title of the document."""

    @property
    def headings(self) -> tuple[str, ...]:
        """The headings that the passage stands under, the outermost first."""

    @property
    def page(self) -> int | None:
        """The page that it begins on, from 1."""

    @property
    def line(self) -> int | None:
        """The line of the file that it begins in, from 1."""

    @property
    def chunk(self) -> int:
        """Which passage of the document it is, from 0."""

    @property
    def start(self) -> int:
        """Where it begins in the document's text, in characters."""

    @property
    def end(self) -> int:
        """Where it ends."""


@dataclass(frozen=True)
class DocumentState:
    """What a store knows of a document.

    Attributes:
        name: POSIX path relative to the folder.
        size: in bytes, when it was read.
        modified: when it was last written to, in nanoseconds.
        digest: of its content.
        passages: that the store holds of it.
        reason: why it has none; None where it was read.
        try_again: whether it may be readable another time, though its content is the same.
    """

    name: str
    size: int
    modified: int
    digest: str
    passages: int = 0
    reason: str | None = None
    try_again: bool = False


@dataclass(frozen=True)
class EmbeddedDocument:
    """A document that is done.

    Attributes:
        state: what is to be known of it.
        passages: b passages.
        vectors: ``[b, stored width]``, as :meth:`VectorSpec.pack` gives them.
    """

    state: DocumentState
    passages: Sequence[PassageLike]
    vectors: NDArray[Any]


@dataclass(frozen=True)
class PassageRecord:
    """What decides the content of a store, beside its documents.

    Attributes:
        vector_spec: what makes its vectors, and how they are stored.
        settings: ``chunk`` (tokens of a passage at most), ``dtype`` of the weights and ``max_tokens``.
    """

    vector_spec: VectorSpec
    settings: Mapping[str, Any]


class PassageStore(Protocol):
    """Keeps the passages of the documents of one folder.

    What :meth:`put` and :meth:`remove` have done is there when they return, whatever happens then, and a process that
    is killed in them leaves nothing that the next :meth:`writing` would not put right. Nobody holds a passage twice or
    less than a document's all after that.
    """

    @property
    def address(self) -> str:
        """Where it is."""

    @property
    def rejected_path(self) -> Path | None:
        """Where documents that were set aside are to be listed; None for nowhere."""

    def recorded(self) -> PassageRecord | None:
        """What the store was begun with, or None where there is nothing yet.

        Raises:
            InputError, OutputError: there is something else.
        """

    def is_inside(self, path: Path) -> bool:
        """Whether a path belongs to the store."""

    def writing(self, record: PassageRecord, folder: Path) -> AbstractContextManager[None]:
        """Keep other writers out, begin the store or compare it with a record; all other methods are called inside.

        Args:
            record: of this run.
            folder: of documents.

        Raises:
            OutputError: another process is writing, the store was begun with other settings, or cannot be written.
            InputError: it holds vectors of another make, or documents of another folder.
        """

    def check(self, folder: Path) -> None:
        """Raise what :meth:`writing` would raise before it needs a record."""

    def documents(self) -> dict[str, DocumentState]:
        """What is known of each document, by name."""

    def put(self, documents: Sequence[EmbeddedDocument]) -> None:
        """Hold these, in place of what is held under their names."""

    def note(self, states: Sequence[DocumentState]) -> None:
        """Know of documents, whose passages stay as they are, that they are in these states."""

    def remove(self, names: Iterable[str]) -> None:
        """Hold these documents no longer."""

    def finish(self, tell: Callable[[str], object]) -> None:
        """Bring everything into its final shape; ``tell`` is called with what is done, in a word or two."""

    def count(self) -> int:
        """How many passages there are."""


def passage_schema(vector_spec: VectorSpec) -> Any:
    """The Arrow schema of passages with their vectors."""
    import pyarrow as pa

    fields = [(name, pa.type_for_alias(kind)) for name, kind in _COLUMNS.items()]
    return pa.schema([*fields, (EMBEDDING, vector_spec.vector_type)], metadata=vector_spec.to_metadata())


def passage_rows(documents: Sequence[EmbeddedDocument], vector_spec: VectorSpec) -> Any:
    """Passages with their vectors as an Arrow table."""
    import numpy as np
    import pyarrow as pa

    schema = passage_schema(vector_spec)
    named = [(document.state.name, passage) for document in documents for passage in document.passages]
    if not named:
        return schema.empty_table()
    columns: dict[str, list[Any]] = {
        ID: [f"{name}#{passage.chunk}" for name, passage in named],
        FILE: [name for name, _ in named],
        ROW: [0] * len(named),
        CHUNK: [passage.chunk for _, passage in named],
        START: [passage.start for _, passage in named],
        END: [passage.end for _, passage in named],
        TEXT: [passage.text for _, passage in named],
        TITLE: [passage.title for _, passage in named],
        HEADINGS: [BETWEEN_HEADINGS.join(passage.headings) or None for _, passage in named],
        PAGE: [passage.page for _, passage in named],
        LINE: [passage.line for _, passage in named],
    }
    kind = schema.field(EMBEDDING).type
    vectors = np.concatenate([document.vectors for document in documents if len(document.passages)])
    arrays = [pa.array(values, schema.field(name).type) for name, values in columns.items()]
    arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), kind.value_type), type=kind))
    return pa.Table.from_arrays(arrays, schema=schema)


def setting_differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What sets the settings of two records apart, in words."""
    return [f"{name} {recorded[name]!r} against {now[name]!r}" for name in now if recorded.get(name) != now[name]]

"""What is asked of a job on a corpus beside its model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from valuembed._utils.options import Options, option
from valuembed.errors import InputError
from valuembed.vectors import PRECISIONS

if TYPE_CHECKING:
    from valuembed.corpus.manifest import Settings
    from valuembed.tokenization import Cutter
    from valuembed.vectors import Encoder, VectorSpec

ROWS_PER_SHARD = 16_384
"""What a run that is killed loses at most; and with vectors 1024 wide, a shard of 64 MB."""

CHUNKED_ROWS_PER_SHARD = 1024
"""The same for documents that are cut: each may have many vectors."""

MOST_ROWS_PER_SHARD = 1_000_000


class EmbedKwargs(TypedDict, total=False):
    """Type the fields of :class:`EmbedOptions` as keyword arguments."""

    text_column: str | None
    id_column: str | None
    precision: str
    dim: int | None
    chunk: int | None
    overlap: int
    late: bool
    rows_per_shard: int | None
    keep: Sequence[str] | None


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(Options):
    """Say how a corpus is read, cut and stored, see :func:`embed_corpus`.

    Raises:
        InputError: numbers that mean nothing.
    """

    text_column: str | None = option(
        None, "The column or key that holds the text. By default it is text.", metavar="NAME"
    )
    id_column: str | None = option(
        None, "The column or key that holds the id. By default rows are numbered from 0.", metavar="NAME"
    )
    precision: str = option("float32", f"How vectors are stored: {', '.join(PRECISIONS)}. By default it is float32.")
    dim: int | None = option(
        None,
        "Keep only the first N numbers of each vector, scaled to length 1 again. By default all are kept.",
        min=1,
        metavar="N",
    )
    chunk: int | None = option(
        None,
        "Cut each text into chunks of so many tokens, which get a vector each. By default texts are embedded whole, "
        "and documents in passages of 200.",
        min=1,
        metavar="TOKENS",
    )
    overlap: int = option(
        0,
        "How many tokens a chunk shares with the chunk before it. By default it shares none.",
        min=0,
        metavar="TOKENS",
    )
    late: bool = option(
        False,
        "Run each text as a whole and read its chunks from that pass, so that each has seen what is in front of it; "
        "with --chunk, and methods such as va.",
    )
    rows_per_shard: int | None = option(
        None,
        "How many rows of an input go into one file. The default is 16384, or 1024 with --chunk.",
        min=1,
        metavar="N",
    )
    keep: Sequence[str] | None = option(
        None,
        "Columns of the input to keep beside the vectors, such as --keep label date, or 'none'. By default all of them "
        "are kept.",
        metavar="COLUMN...",
    )

    def __post_init__(self) -> None:
        if self.keep is not None:
            object.__setattr__(self, "keep", tuple(self.keep))
        if not 1 <= self.shard_size <= MOST_ROWS_PER_SHARD:
            raise InputError(f"rows_per_shard={self.rows_per_shard} has to be 1 to {MOST_ROWS_PER_SHARD:,}")
        if self.overlap and self.chunk is None:
            raise InputError(f"overlap={self.overlap} is between chunks; give chunk too")
        if self.late and self.chunk is None:
            raise InputError("late=True reads the chunks of a text from one pass over it; give chunk too")

    @property
    def shard_size(self) -> int:
        """Rows of an input in one file of the output."""
        if self.rows_per_shard is not None:
            return self.rows_per_shard
        return ROWS_PER_SHARD if self.chunk is None else CHUNKED_ROWS_PER_SHARD

    def applied_to(self, model: Encoder) -> tuple[VectorSpec, Settings, Cutter | None]:
        """What they come to with a model.

        Raises:
            InputError, RecipeError: the model cannot do what is asked.
        """
        from valuembed.corpus.manifest import Settings
        from valuembed.vectors import VectorSpec

        cutter = None
        if self.chunk is not None:
            from valuembed.corpus.chunking import cutter_for

            cutter = cutter_for(model, self.chunk, self.overlap, late=self.late)
        settings = Settings.of(
            model,
            text_column=self.text_column,
            id_column=self.id_column,
            chunk=self.chunk,
            overlap=self.overlap,
            late=self.late,
            rows_per_shard=self.shard_size,
        )
        return VectorSpec.of(model, self.precision, self.dim), settings, cutter

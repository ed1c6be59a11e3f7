"""An index over stored embeddings: made from files, brought up to date by the same call, searched by meaning and words.

Every row is known by where it stood, under the name of its source, so that one that comes again replaces the one
before. Beside the rows there is a list of the files that went in: an interrupted run goes on where it was, and what
has not changed is not read again.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valuembed._utils.progress import track
from valuembed.data import as_text
from valuembed.errors import InputError
from valuembed.search.centre import (
    WIDEST,
    Centre,
    Centring,
    check_centre,
    record_centre,
    recorded_centre,
    stored_vectors,
    wanted,
)
from valuembed.search.index_rows import cosines, filter_columns, hit_columns, last_of_each_key, to_hits
from valuembed.search.ingest import ROWS, RepeatedIdWarning, Update
from valuembed.search.ledger import only_writer
from valuembed.search.neighbours import row_of, rows_around, rows_with
from valuembed.search.results import Hit, check_make, check_query, embed_query, fuse, unit
from valuembed.search.vector_store import REFINE, Table, languages
from valuembed.vectors import EMBEDDING, KEY, EmbeddingFiles, Encoder, VectorSpec, is_remote

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Index", "IndexSummary", "RepeatedIdWarning", "build_index"]

APPROXIMATE_FROM = 10_000
"""Fewer rows are compared one by one, in some milliseconds, and exactly."""

CANDIDATES = 100
"""A hybrid search fuses so many rows of each ranking, or four times as many as asked for."""

CENTRED_CANDIDATES = 200
"""A centred search looks at so many rows at least, or ten times as many as asked for."""


@dataclass(frozen=True)
class IndexSummary:
    """What became of a source.

    Attributes:
        name: that its rows are known under.
        files: files of the source.
        unchanged: files that were in the index already, as they are.
        added: rows that are new.
        replaced: rows that took another's place.
        repeated: rows that were left out, since a later one of their file has their id.
        removed: rows that are no longer in the source, and were removed.
        outdated: rows that are no longer in the source, and were kept.
        rows: rows in the index, those of other sources included.
        approximate: whether there is an approximate index of the vectors; otherwise all are compared.
        seconds: time for all of it.
    """

    name: str
    files: int
    unchanged: int
    added: int
    replaced: int
    repeated: int
    removed: int
    outdated: int
    rows: int
    approximate: bool
    seconds: float


def build_index(
    source: str | Path,
    index: str | Path,
    *,
    name: str | None = None,
    prune: bool = False,
    language: str | None = None,
    approximate_from: int = APPROXIMATE_FROM,
    progress: bool = True,
) -> IndexSummary:
    """Bring an index up to date with files of embeddings; make it if there is none.

    Rows that are new are added, and those that come again replace the ones before; nothing is doubled, however often
    this runs, and wherever it was interrupted. Files that have not changed are left out. One process at a time can
    write an index: on a disk this is seen to, in an object store it is for the caller to see to. Whoever searches
    meanwhile finds the rows before or after a change.

    Args:
        source: a file or folder that ``valuembed embed`` wrote; on a disk or in an object store.
        index: a folder, or an address that LanceDB knows: ``s3://``, ``gs://``, ``az://``. Keys for it are taken from
            the environment.
        name: under which the rows are known; None is the name of the file or folder. A source replaces only rows of
            its own name.
        prune: remove the rows of this name that are not in the source.
        language: English name of the texts' language, for a search of words by their stems; None leaves it as it is,
            at first without stems, which suits every language.
        approximate_from: so many rows get an approximate index.
        progress: show a progress bar on stderr if that is a terminal, else a line a minute.

    Raises:
        InputError: the source cannot be read, its vectors are of another make than those of the index, or its name is
            taken by another source.
        OutputError: the index cannot be written, or another process is writing it.
        ReadingError: a vector is zero or not finite.
        MissingExtraError: the extra ``store`` is not installed.
    """
    start = time.perf_counter()
    known = languages()
    if language is not None and language not in known:
        raise InputError(f"language {language!r} is unknown; legal: {', '.join(known)}")
    if name is not None and not name.strip():
        raise InputError(f"name {name!r} is blank")
    files = EmbeddingFiles.open(source)
    with only_writer(index, ROWS):
        update = Update(files, str(index), name)
        total = None if is_remote(source) else sum(file.count() for file in files.files)
        bar = track(progress, total=total, unit=" rows", desc="indexing")
        # The steps are closed as soon as something ends them early, while nobody else can write.
        with bar, closing(update.run()) as steps:
            for done in steps:
                bar.update(done)
            outdated = update.outdated()
            if prune:
                update.remove_outdated()
            bar.set_description("tuning the index")
            approximate = update.rows.tune(approximate_from=approximate_from, language=language, fresh=update.is_new)
            update.parts.table.tidy(fresh=update.is_new)
            changed = bool(update.added or update.replaced or (prune and outdated))
            record_centre(str(index), update.rows, files.vector_spec, changed=changed)
        return IndexSummary(
            name=update.name,
            files=len(files.files),
            unchanged=update.unchanged,
            added=update.added,
            replaced=update.replaced,
            repeated=update.repeated,
            removed=outdated if prune else 0,
            outdated=0 if prune else outdated,
            rows=update.rows.count(),
            approximate=approximate,
            seconds=time.perf_counter() - start,
        )


class Index:
    """An index to search; :meth:`open` finds one.

    Attributes:
        address: where it is.
        called: what messages call it.
        vector_spec: which model and recipe made its vectors.
    """

    def __init__(self, address: str, rows: Table, called: str | None = None) -> None:
        self.address = address
        self.called = called or address
        self._schema = rows.schema
        self.vector_spec = VectorSpec.from_metadata(address, self._schema.metadata)
        self._rows = rows
        self._asked_by: Encoder | None = None

    @cached_property
    def _centre(self) -> Centre | None:
        return recorded_centre(self.address)

    @cached_property
    def _whitening_centre(self) -> Centre | None:
        return recorded_centre(self.address, whiten=True)

    @classmethod
    def is_at(cls, address: str | Path) -> bool:
        """Whether there is an index at an address."""
        return Table.is_at(address, ROWS)

    @classmethod
    def open(cls, address: str | Path, *, called: str | None = None) -> Index:
        """An index that :func:`build_index` made.

        Args:
            address: where it is.
            called: what messages call it; None is its address.

        Raises:
            InputError: there is none, or it is damaged.
            MissingExtraError: the extra ``store`` is not installed.
        """
        if not cls.is_at(address):
            raise InputError(f"{address} holds no index; make one with: valuembed index SOURCE -o {address}")
        return cls(str(address), Table.open(address, ROWS), called)

    def __len__(self) -> int:
        return self._rows.count()

    @property
    def version(self) -> int:
        """A number that grows with every change of its rows."""
        return self._rows.version

    @property
    def is_approximate(self) -> bool:
        """Whether a search looks at a part of the vectors only; otherwise it is exact."""
        return self._rows.is_approximate

    @cached_property
    def is_hybrid(self) -> bool:
        """Whether a search ranks by words too unless it is said otherwise: where vectors are made for search."""
        # Decided by measuring: such vectors find more so (benchmarks/beyond.md).
        return self.vector_spec.recipe.get("method") == "search" and self._rows.has_words

    @property
    def columns(self) -> dict[str, str]:
        """The columns that a filter can use, with their types."""
        return filter_columns(self._schema)

    def check(
        self,
        *,
        where: str | None = None,
        hybrid: bool | None = None,
        probes: int | None = None,
        refine: int | None = None,
        centre: Centring = None,
    ) -> None:
        """Raise what :meth:`search` would raise before it needs a model."""
        check_centre(centre, self.vector_spec, self.called)
        if centre and self._centre is None:
            raise InputError(f"{self.called} holds no mean of its rows; bring it up to date with: valuembed index")
        if centre == "whiten" and (self._whitening_centre is None or self._whitening_centre.spread is None):
            raise InputError(
                f"{self.called} holds no principal directions of its rows, which indexes hold of vectors of at most "
                f"{WIDEST:,} numbers; bring it up to date with: valuembed index"
            )
        for name, value in (("probes", probes), ("refine", refine)):
            if value is not None and value < 1:
                raise InputError(f"{name}={value} has to be at least 1")
        if hybrid:
            self._rows.check_words(self.called)
        if where is not None:
            try:
                self._rows.check_filter(where)
            except InputError as error:
                columns = ", ".join(f"{name} ({kind})" for name, kind in self.columns.items())
                raise InputError(f"{str(error).rstrip('.')}; columns of {self.called}: {columns}") from error

    def vector_of(self, key: str) -> NDArray[np.float32]:
        """The stored vector of a row: given to :meth:`nearest`, it finds texts that are similar to that of the row.

        Args:
            key: of a hit.

        Returns:
            float32 ``[width]``, of length 1.

        Raises:
            UnknownRowError: no row has this key.
        """
        rows = row_of(self._rows, key, [EMBEDDING], self.called)
        found: NDArray[np.float32] = unit(stored_vectors(rows, self.vector_spec), self.called)[0]
        return found

    def around(self, key: str, before: int, after: int) -> list[Hit]:
        """A row with those that stand before and behind it in its text or file, in order; their score is 0.

        Args:
            key: of a hit.
            before: so many pieces of the same text; where it was not cut, so many rows of the same file.
            after: the same, behind it.

        Raises:
            UnknownRowError: no row has this key.
        """
        return rows_around(self._rows, key, before, after, self.called)

    def hits_of(self, keys: list[str]) -> list[Hit | None]:
        """The rows with these keys, in this order, with a score of 1; None for one that is not there."""
        return rows_with(self._rows, keys)

    def search(
        self,
        model: Encoder,
        query: str,
        k: int = 10,
        *,
        where: str | None = None,
        hybrid: bool | None = None,
        probes: int | None = None,
        refine: int | None = None,
        centre: Centring = None,
    ) -> list[Hit]:
        """Find the k texts that are most similar to a query.

        Args:
            model: what :func:`valuembed.load` returns. Whether it is the one that made the vectors is looked at once
                for each model that asks.
            query: encoded with ``encode_query``.
            k: how many to return; fewer when fewer rows are left by the filter.
            where: a condition in SQL on :attr:`columns`, such as ``file LIKE 'news/%' AND length(text) > 80``.
            hybrid: rank by meaning and by words, fused (:func:`valuembed.search.results.fuse`); None is
                :attr:`is_hybrid`.
            probes: of an approximate index, partitions to look into; None is 2.5 times the root of their number, at
                least 20, and four times as many with a filter. If fewer than k rows are found, it looks into all.
            refine: of an approximate index, so many times k rows are compared by their whole vectors; None is 5.
            centre: take the mean of all rows from query and rows, and compare what is left; ``"whiten"`` scales their
                principal directions too; None is for vectors that a last token reads, as AlignedWVA's, from 100 rows
                on. Rows are looked up by their angle alone, ten times k of them and at least 200, so that a row may be
                missed.

        Returns:
            Hits, best first. Their score is the cosine with the stored vector in either case.

        Raises:
            InputError: the query cannot be embedded, another model or recipe made the vectors, or the filter is wrong.
        """
        query = as_text(query)
        check_query(query, k)
        self.check(where=where, hybrid=hybrid, probes=probes, refine=refine, centre=centre)
        if model is not self._asked_by:
            check_make(model, self.vector_spec, self.address)
            self._asked_by = model
        vector = embed_query(model, query, self.vector_spec)
        words = query if (self.is_hybrid if hybrid is None else hybrid) else None
        return self.nearest(vector, k, words=words, where=where, probes=probes, refine=refine, centre=centre)

    def nearest(
        self,
        vector: NDArray[np.float32],
        k: int = 10,
        *,
        words: str | None = None,
        where: str | None = None,
        probes: int | None = None,
        refine: int | None = None,
        centre: Centring = False,
    ) -> list[Hit]:
        """Find the k texts that are closest to a vector, which nobody checks to be of the right make.

        Args:
            vector: float32 ``[width]``, of length 1.
            k: how many to return.
            words: rank by these words too.
            where: see :meth:`search`.
            probes: see :meth:`search`.
            refine: see :meth:`search`.
            centre: see :meth:`search`.
        """
        import numpy as np
        import pyarrow as pa

        columns = hit_columns(self._schema)
        count = k if words is None else max(CANDIDATES, 4 * k)
        taken = wanted(
            centre,
            self.vector_spec,
            rows=lambda: self._centre.rows if self._centre else 0,
            find=lambda: self._whitening_centre if centre == "whiten" else self._centre,
        )
        if taken is not None:
            vector = taken.of_query(vector)
            # Looked up by the angle alone: how far a row lies from the mean counts only afterwards.
            count = max(count, CENTRED_CANDIDATES, 10 * k)
        asked: dict[str, Any] = {"where": where, "probes": probes}
        compared = (refine or REFINE) * k
        if self.vector_spec.precision == "binary":
            # Differing bits say less than the cosine with the signs, so that more are looked at than are returned.
            found = self._rows.nearest(np.packbits(vector > 0), max(count, compared), columns, refine=1, **asked)
            found = found.take(np.argsort(-cosines(found, vector, self.vector_spec), kind="stable")[:count])
        else:
            direction = vector if taken is None else taken.looked_up_by(vector)
            found = self._rows.nearest(direction, count, columns, refine=math.ceil(compared / count), **asked)
            if taken is not None and words is not None:
                nearest = np.argsort(-cosines(found, vector, self.vector_spec, taken), kind="stable")
                found = found.take(nearest[: max(CANDIDATES, 4 * k)])
        fused: dict[str, float] = {}
        if words is not None:
            matching = self._rows.matching(words, count, columns, where=where)
            fused = fuse(found.column(KEY).to_pylist(), matching.column(KEY).to_pylist())
            found = last_of_each_key(pa.concat_tables([found, matching]))
        scores, keys = cosines(found, vector, self.vector_spec, taken).tolist(), found.column(KEY).to_pylist()
        order = sorted(range(len(keys)), key=lambda at: (-fused.get(keys[at], 0.0), -scores[at], keys[at]))[:k]
        return to_hits(
            found.take(np.array(order, np.int64)),
            [scores[at] for at in order],
            [fused[keys[at]] for at in order] if words is not None else None,
        )

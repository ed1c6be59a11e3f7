"""Tables with vectors on a disk or in an object store: the one file that knows LanceDB.

What is asked of it is little: append, replace by key, delete, scan, the nearest vectors, the best matches of words, and
keeping the indexes behind these in shape. Every change is a commit of its own: whoever reads sees all of it or nothing,
and a process that is killed leaves the commits before.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valuembed._utils.optional import require
from valuembed._utils.process_state import environment
from valuembed.errors import IndexUnavailableError, InputError, OutputError, ValuembedError
from valuembed.vectors import EMBEDDING, FILE, KEY, TEXT, is_remote

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS_PER_PARTITION = 8192
BITS = 4
"""How an approximate index is made: vectors lie in partitions of neighbours, rotated and rounded to 4 bits a number
(RaBitQ)."""

PARTITIONS_PER_ROOT = 2.5
LEAST_PROBES = 20
FILTERED = 4
REFINE = 5
"""How it is asked; measured, see benchmarks/search.md. A query looks into the nearest partitions, 2.5 times the root of
their number and four times as many where a filter thins them, and compares 5 times as many rows as asked for by their
whole vectors. If that gives too few, it looks into all."""

SAMPLES_PER_PARTITION = 256
LEAST_SAMPLES = 32
TRAINING_BYTES = 2_000_000_000
"""Partitions are found on a sample of the vectors. It is held in memory, so that it is smaller where there are many."""

KEPT = timedelta(minutes=10)
"""Earlier versions of a table are kept so long, for queries that are under way while it is changed."""


class Table:
    """One table at an address; :meth:`open` and :meth:`create` make one."""

    def __init__(self, address: str, table: Any) -> None:
        self.address = address
        self._table = table

    @classmethod
    def is_at(cls, address: str | Path, name: str) -> bool:
        """Whether there is such a table; without LanceDB only a disk can be looked at."""
        if not is_remote(address):
            return (Path(address) / f"{name}.lance").is_dir()
        with _reading(str(address)):
            return name in _connect(str(address)).list_tables().tables

    @classmethod
    def open(cls, address: str | Path, name: str) -> Table:
        """A table that is there.

        Raises:
            MissingExtraError: LanceDB is not installed.
            IndexUnavailableError: it cannot be read.
        """
        with _reading(str(address)):
            return cls(str(address), _connect(str(address)).open_table(name))

    @classmethod
    def create(cls, address: str | Path, name: str, schema: Any) -> Table:
        """A new table without rows; the schema's metadata stay with it.

        Raises:
            MissingExtraError: LanceDB is not installed.
            OutputError: it cannot be written there.
        """
        with _writing(str(address)):
            return cls(str(address), _connect(str(address)).create_table(name, schema=schema))

    @property
    def schema(self) -> Any:
        """The Arrow schema, with its metadata."""
        with _reading(self.address):
            return self._table.schema

    @property
    def version(self) -> int:
        """A number that grows with every change."""
        with _reading(self.address):
            return int(self._table.version)

    def count(self, where: str | None = None) -> int:
        """How many rows there are, or how many a filter leaves."""
        with _reading(self.address):
            return int(self._table.count_rows(where))

    def scan(self, columns: list[str], where: str | None = None) -> Iterator[Any]:
        """All rows, or those that a filter leaves, as record batches in no order."""
        with _reading(self.address):
            query = self._table.search().select(columns)
            yield from (query.where(where) if where else query).to_batches()

    def append(self, rows: Any) -> None:
        """Add an Arrow table of rows."""
        with _writing(self.address):
            self._table.add(rows)

    def replace(self, rows: Any) -> tuple[int, int]:
        """Add an Arrow table of rows, each in place of the one that has its key if there is one.

        Args:
            rows: no two with one key.

        Returns:
            How many are new, and how many took another's place.
        """
        with _writing(self.address):
            merge = self._table.merge_insert(KEY).when_matched_update_all().when_not_matched_insert_all()
            done = merge.execute(rows)
        return int(done.num_inserted_rows), int(done.num_updated_rows)

    def replace_all(self, rows: Any, wheres: list[str]) -> None:
        """Add an Arrow table of rows in place of those with their keys, and of all that these filters name.

        Args:
            rows: no two with one key, perhaps none.
            wheres: filters. What they name is gone with the commit in which the rows come.
        """
        with _writing(self.address):
            merge = self._table.merge_insert(KEY).when_matched_update_all().when_not_matched_insert_all()
            merge.when_not_matched_by_source_delete(" OR ".join(f"({where})" for where in wheres)).execute(rows)

    def delete(self, where: str) -> None:
        """Remove the rows that a filter names."""
        with _writing(self.address):
            self._table.delete(where)

    def add_columns(self, fields: list[Any]) -> None:
        """Add columns (Arrow fields) that are null in every row."""
        import pyarrow as pa

        with _writing(self.address):
            self._table.add_columns(pa.schema(fields))

    def check_filter(self, where: str) -> None:
        """Raise an :class:`InputError` where a filter means nothing in this table."""
        try:
            self._table.search().where(_whole(where)).limit(1).explain_plan()
        except Exception as error:
            # What the planner cannot do comes as whatever its language has for it, panics included.
            raise InputError(f"the filter {where!r} cannot be applied: {_reason(error)}") from error

    @property
    def has_words(self) -> bool:
        """Whether there is an index of words."""
        with _reading(self.address):
            return self._has_index(TEXT)

    def check_words(self, called: str) -> None:
        """Raise an :class:`InputError` where there is no index of words yet, which calls the index by a name."""
        if not self.has_words:
            raise InputError(f"{called} has no index of words: its making was interrupted; run it again")

    def nearest(
        self,
        vector: NDArray[Any],
        count: int,
        columns: list[str],
        *,
        where: str | None = None,
        probes: int | None = None,
        refine: int = REFINE,
    ) -> Any:
        """The rows with the nearest vectors, nearest first; exactly those where no approximate index was made.

        Args:
            vector: ``[width]`` as it is stored: floats, compared by cosine, or packed signs, by differing bits.
            count: how many.
            columns: what to return of each.
            where: a filter, applied before.
            probes: partitions to look into; None is :data:`PARTITIONS_PER_ROOT` times the root of their number.
            refine: so many times count candidates are compared by their whole vectors.

        Returns:
            An Arrow table.
        """
        with _reading(self.address):
            query = self._table.search(vector, vector_column_name=EMBEDDING).distance_type(self._distance)
            query = query.limit(count).select([*columns, "_distance"]).refine_factor(refine)
            if where:
                query = query.where(_whole(where))
            # LanceDB looks into as many as the maximum allows, not only where the minimum gives too few.
            found = query.nprobes(probes or self._probes * (FILTERED if where else 1)).to_arrow()
            if found.num_rows < count and self.is_approximate:
                found = query.minimum_nprobes(1).maximum_nprobes(0).to_arrow()
            return found.drop_columns(["_distance"])

    def matching(self, words: str, count: int, columns: list[str], *, where: str | None = None) -> Any:
        """The rows whose text matches words best (BM25), best first, as an Arrow table."""
        with _reading(self.address):
            # Not the words as they are, in which LanceDB would look for operators.
            match = _lancedb("lancedb.query").MatchQuery(words, TEXT)
            query = self._table.search(match, query_type="fts").limit(count)
            query = query.select([*columns, "_score"])
            return (query.where(_whole(where)) if where else query).to_arrow().drop_columns(["_score"])

    def tune(self, *, approximate_from: int, language: str | None, fresh: bool) -> bool:
        """Join small files, bring the indexes up to date, make those that are missing, and drop old versions.

        Args:
            approximate_from: so many rows get an approximate index of their vectors, and lookups by key and file.
            language: of the texts, for the stems of words and for words that say nothing; None is any.
            fresh: the table is new, so that nobody can be reading an older version.

        Returns:
            Whether there is an approximate index of the vectors.
        """
        kinds = _lancedb("lancedb.index")
        with _writing(self.address):
            self.tidy(fresh=fresh)
            if not self._has_words(language):
                known = bool(language)
                words = kinds.FTS(
                    base_tokenizer="icu/split", stem=known, remove_stop_words=known, language=language or "English"
                )
                self._table.create_index(TEXT, config=words)
            if self.count() >= approximate_from:
                for column in (KEY, FILE):
                    if not self._has_index(column):
                        self._table.create_index(column, config=kinds.BTree())
                if not self._has_index(EMBEDDING):
                    self._table.create_index(EMBEDDING, config=self._approximate(kinds))
        return self._has_index(EMBEDDING)

    def tidy(self, *, fresh: bool) -> None:
        """Join small files, bring the indexes up to date, and drop old versions; arguments as in :meth:`tune`."""
        with _writing(self.address):
            # A thousandth of a second stands for nothing, of which LanceDB would warn. What killed processes left is
            # removed where it is known that no other process is writing.
            age = timedelta(milliseconds=1) if fresh else KEPT
            self._table.optimize(cleanup_older_than=age, delete_unverified=not is_remote(self.address))

    # These are asked once: in an object store, every look at a table is a request or more.
    @cached_property
    def is_approximate(self) -> bool:
        """Whether there is an approximate index of the vectors, when it is first asked."""
        with _reading(self.address):
            return self._has_index(EMBEDDING)

    @cached_property
    def _distance(self) -> str:
        import pyarrow as pa

        return "hamming" if self._table.schema.field(EMBEDDING).type.value_type == pa.uint8() else "cosine"

    def _partitions(self) -> float:
        return self.count() / ROWS_PER_PARTITION

    @cached_property
    def _probes(self) -> int:
        return max(LEAST_PROBES, math.ceil(PARTITIONS_PER_ROOT * math.sqrt(self._partitions())))

    def _approximate(self, kinds: Any) -> Any:
        """Settings of the index that suits the vectors."""
        width = self._table.schema.field(EMBEDDING).type.list_size
        affordable = int(TRAINING_BYTES / (4 * width * max(1.0, self._partitions())))
        settings = {
            "distance_type": self._distance,
            "target_partition_size": ROWS_PER_PARTITION,
            "sample_rate": min(SAMPLES_PER_PARTITION, max(LEAST_SAMPLES, affordable)),
        }
        if self._distance == "hamming":
            return kinds.IvfFlat(**settings)
        # RaBitQ takes widths in eights; the numbers of others are rounded to 8 bits.
        if width % 8 == 0:
            return kinds.IvfRq(num_bits=BITS, **settings)
        return kinds.IvfSq(**settings)

    def _has_index(self, column: str) -> bool:
        return any(index.columns == [column] for index in self._table.list_indices())

    def _has_words(self, language: str | None) -> bool:
        """Whether there is an index of words, and for this language if one is named."""
        found = [index.index_details for index in self._table.list_indices() if index.columns == [TEXT]]
        return any(language in (None, words["language"] if words["stem"] else "") for words in found)


def in_sql(text: str) -> str:
    """A text as a constant of a filter."""
    return "'" + text.replace("'", "''") + "'"


def languages() -> list[str]:
    """Languages whose stems and empty words are known.

    Raises:
        MissingExtraError: LanceDB is not installed.
    """
    return sorted(_lancedb("lancedb.index").lang_mapping.values())


def _lancedb(module: str = "lancedb") -> Any:
    """LanceDB, or one of its modules."""
    # Read when it is imported: it would tell of its own deprecations on stderr, which is for our users.
    with environment({"LANCE_LOG": os.environ.get("LANCE_LOG", "error")}):
        return require(module, "store")


def _connect(address: str) -> Any:
    # Zero: every query sees the latest version, also through a table that was opened before it was written.
    return _lancedb().connect(address, read_consistency_interval=timedelta(0))


def _whole(where: str) -> str:
    """A filter that is read to its end: LanceDB would take ``a > 1; b`` and ``a > 1) b`` for ``a > 1``."""
    return f"({where}\n)"


@contextmanager
def _reading(address: str) -> Iterator[None]:
    try:
        yield
    except ValuembedError:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        raise IndexUnavailableError(f"cannot read {address}: {_reason(error)}") from error


@contextmanager
def _writing(address: str) -> Iterator[None]:
    try:
        yield
    except ValuembedError:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        raise OutputError(
            f"cannot write {address}: {_reason(error)}; what was finished before is kept, run it again"
        ) from error


def _reason(error: Exception) -> str:
    """What LanceDB has to say, without where in its source it says it, and which columns there are."""
    text = re.sub(r",? ?/\S+\.rs:\d+:\d+", "", str(error)).removeprefix("Invalid input, ")
    text = re.sub(r"lance error: |LanceError\(\w+\): ", "", text)
    text = " ".join(text.split()).partition(" Valid fields are ")[0]
    if "panicked" in text:
        return "conditions of this kind are not known"
    parser = re.search(r"\((sql parser error: .*)\)$", text)
    return parser[1] if parser else text

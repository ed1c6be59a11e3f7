"""One run that brings an index up to date with a source: what is new goes in, what has not changed is left out."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from typing import Any

from valuembed.embedding_files import EmbeddingFile, EmbeddingFiles
from valuembed.errors import InputError
from valuembed.index_parts import Part, Parts
from valuembed.index_rows import (
    PART,
    further_fields,
    has_unique_keys,
    is_binary,
    last_of_each_key,
    row_schema,
    to_rows,
)
from valuembed.keeping import keeping
from valuembed.storage import Make
from valuembed.vector_store import Table

ROWS = "rows"
BYTES_AT_ONCE = 64_000_000
COMMITS_BEFORE_TIDYING = 256
"""Every commit leaves a small file; too many of them slow every further one down."""


class RepeatedIdWarning(UserWarning):
    """Rows of one file had the same id, so that an index could keep only the last of them."""


class Update:
    """One run; its counts are those of :class:`valuembed.index.IndexSummary`.

    Args:
        files: the source.
        address: of the index, which is made if there is none.
        name: of the source; None is that of its file or folder.

    Raises:
        InputError: the index holds vectors of another make, or another source of this name.
    """

    def __init__(self, files: EmbeddingFiles, address: str, name: str | None) -> None:
        self.files = files
        self.name = name or files.name
        self.is_new = not Table.is_at(address, ROWS)
        schema = row_schema(files.files[0].schema(files.make), files.make)
        self.rows = Table.create(address, ROWS, schema) if self.is_new else Table.open(address, ROWS)
        self._check_make()
        self.parts = Parts(address)
        if name is None:
            self._check_name()
        self.unchanged = self.added = self.replaced = self.repeated = 0
        self._held = self.parts.held(self.rows)
        self._current = {(file.name, file.stamp) for file in files.files}
        self._only_new = not self.outdated()
        self._commits = 0

    def run(self) -> Generator[int, None, None]:
        """Bring everything in, and tell after each step how many rows it took."""
        parts = self.parts.note(self.name, self.files, taken=self._held)
        # A note that is lost costs the reading of a file, and nothing more.
        with keeping(self.parts.write) as finished:
            for file, part in zip(self.files.files, parts, strict=True):
                yield from self._take(file, part)
                finished()
        self.parts.write()

    def _take(self, file: EmbeddingFile, part: Part) -> Iterator[int]:
        held = self._held.get(part.number, 0)
        if part.rows == held:
            self.unchanged += 1
            yield held
            return
        schema = file.schema(self.files.make)
        self._check_columns(file, schema)
        if self._only_new and has_unique_keys(schema):
            # Rows are appended in order, so that those of an interrupted run are the first ones.
            yield held
            for rows in self._rows(file, part, skip=held):
                self.rows.append(rows)
                self.added += rows.num_rows
                held += rows.num_rows
                yield self._committed(rows)
        else:
            read = 0
            for rows in self._rows(file, part):
                added, replaced = self.rows.replace(last_of_each_key(rows))
                self.added += added
                self.replaced += replaced
                read += rows.num_rows
                yield self._committed(rows)
            held = self.rows.count(_of([part]))
            self._tell_repeated(file, read - held)
        self.parts.finish(part, held)

    def _committed(self, rows: Any) -> int:
        self._commits += 1
        if self._commits % COMMITS_BEFORE_TIDYING == 0:
            self.rows.tidy(fresh=self.is_new)
        return int(rows.num_rows)

    def _tell_repeated(self, file: EmbeddingFile, count: int) -> None:
        self.repeated += count
        if count:
            warnings.warn(
                f"{file.path}: {count:,} rows have an id that comes again further down; of each id the index holds "
                "the last row",
                RepeatedIdWarning,
                stacklevel=4,
            )

    def _rows(self, file: EmbeddingFile, part: Part, skip: int = 0) -> Iterator[Any]:
        """Rows for the index, as many at a time as memory is to hold."""
        import pyarrow as pa

        schema = self.rows.schema
        named = file.name if self.files.is_folder else ""
        waiting: list[Any] = []
        for batch in file.batches(self.files.make, skip=skip):
            where = f"{file.path}, rows from {batch.first}"
            waiting.append(to_rows(batch, schema, source=self.name, part=part.number, file=named, where=where))
            if sum(rows.nbytes for rows in waiting) >= BYTES_AT_ONCE:
                yield pa.concat_tables(waiting)
                waiting = []
        if waiting:
            yield pa.concat_tables(waiting)

    def outdated(self) -> int:
        """Rows of this name that are not in the source."""
        old = self._old_parts()
        return self.rows.count(_of(old)) if old else 0

    def remove_outdated(self) -> None:
        """Remove them."""
        if old := self._old_parts():
            self.rows.delete(_of(old))
            self.parts.forget(old)

    def _old_parts(self) -> list[Part]:
        """What the index knows of files that the source no longer has, or no longer has as they were."""
        return [part for part in self.parts.of(self.name) if (part.file, part.stamp) not in self._current]

    def _check_make(self) -> None:
        recorded, made = Make.from_metadata(self.rows.address, self.rows.schema.metadata), self.files.make
        if differences := recorded.differences(made):
            raise InputError(
                f"{self.rows.address} holds vectors made by {recorded}, {self.files.address} vectors made by {made}; "
                f"they cannot be compared: {'; '.join(differences)}. Give another index"
            )

    def _check_name(self) -> None:
        places = {part.location for part in self.parts.of(self.name)}
        if places and self.files.location not in places:
            raise InputError(
                f"{self.rows.address} has a source named {self.name!r} from {', '.join(sorted(places))}, and this one "
                f"is {self.files.location}. If it is the same, moved or newer, say so with --name {self.name} "
                f"(name={self.name!r}), and it replaces those rows; otherwise give another name"
            )

    def _check_columns(self, file: EmbeddingFile, schema: Any) -> None:
        """Make room for further columns of a file; raise where they cannot be those of the index."""
        own = self.rows.schema
        if is_binary(own) != is_binary(schema):
            kinds = ["packed signs" if is_binary(each) else "numbers" for each in (own, schema)]
            raise InputError(
                f"{self.rows.address} holds vectors as {kinds[0]}, {file.path} as {kinds[1]}; embed in one precision, "
                "or give another index"
            )
        further = further_fields(schema)
        for field in further:
            if field.name in own.names and own.field(field.name).type != field.type:
                raise InputError(
                    f"{file.path}: column {field.name!r} holds {field.type}, and in {self.rows.address} "
                    f"{own.field(field.name).type}; give one of them another name or type"
                )
        if missing := [field for field in further if field.name not in own.names]:
            self.rows.add_columns(missing)


def _of(parts: list[Part]) -> str:
    return f"{PART} IN ({', '.join(str(part.number) for part in parts)})"

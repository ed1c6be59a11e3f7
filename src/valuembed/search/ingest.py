"""One run that brings an index up to date with a source: what is new goes in, what has not changed is left out."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from typing import Any

from valuembed._utils.autosave import autosave
from valuembed._utils.text import counted
from valuembed.errors import InputError
from valuembed.search.index_rows import further_fields, has_unique_keys, last_of_each_key, row_schema, to_rows
from valuembed.search.ledger import IngestedFile, IngestLedger, of_parts
from valuembed.search.vector_store import Table
from valuembed.vectors import EmbeddingFile, EmbeddingFiles, VectorSpec

ROWS = "rows"
BYTES_AT_ONCE = 64_000_000
COMMITS_BEFORE_TIDYING = 256
"""Every commit leaves a small file; too many of them slow every further one down."""


class RepeatedIdWarning(UserWarning):
    """Rows of one file had the same id, so that an index could keep only the last of them."""


class _Load:
    """Rows that wait to be written, of one file or of several small ones.

    Args:
        append: whether they are known to be new, and need not replace others.
    """

    def __init__(self, append: bool) -> None:
        self.append = append
        self.bytes = 0
        self.ended: list[tuple[EmbeddingFile, IngestedFile, int]] = []
        self._rows: list[Any] = []

    def add(self, rows: Any) -> None:
        """Let an Arrow table of rows wait."""
        self._rows.append(rows)
        self.bytes += rows.nbytes

    def take(self, schema: Any) -> tuple[int, Any, list[tuple[EmbeddingFile, IngestedFile, int]]]:
        """All that waits, as one Arrow table with its length, and the files that end with it, with the rows read."""
        import pyarrow as pa

        # Rows that waited before a further column came have none of it.
        rows = pa.concat_tables([schema.empty_table(), *self._rows], promote_options="default")
        ended, self.ended, self._rows, self.bytes = self.ended, [], [], 0
        return rows.num_rows, rows, ended


class Update:
    """One run; its counts are those of :class:`valuembed.search.IndexSummary`.

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
        schema = row_schema(files.files[0].schema(files.vector_spec), files.vector_spec)
        self.rows = Table.create(address, ROWS, schema) if self.is_new else Table.open(address, ROWS)
        self._schema = self.rows.schema
        self._check_make()
        self.parts = IngestLedger(address)
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
        load = _Load(append=True)
        # A note that is lost costs the reading of a file, and nothing more.
        with autosave(self.parts.write) as finished:
            for file, part in zip(self.files.files, parts, strict=True):
                held = self._held.get(part.number, 0)
                if part.rows == held:
                    self.unchanged += 1
                    yield held
                    continue
                schema = file.schema(self.files.vector_spec)
                self._check_columns(file, schema)
                append = self._only_new and has_unique_keys(schema)
                if append != load.append:
                    yield self._write(load)
                    load = _Load(append)
                # Rows are appended in order, so that those of an interrupted run are the first ones.
                read = held if append else 0
                yield read
                for rows in self._rows(file, part, skip=read):
                    load.add(rows)
                    read += rows.num_rows
                    if load.bytes >= BYTES_AT_ONCE:
                        yield self._write(load)
                        finished()
                load.ended.append((file, part, read))
            yield self._write(load)
        self.parts.write()

    def _rows(self, file: EmbeddingFile, part: IngestedFile, skip: int) -> Iterator[Any]:
        """Rows for the index, some at a time."""
        named = file.name if self.files.is_folder else ""
        for batch in file.batches(self.files.vector_spec, skip=skip):
            where = f"{file.path}, rows from {batch.first}"
            yield to_rows(batch, self._schema, source=self.name, part=part.number, file=named, where=where)

    def _write(self, load: _Load) -> int:
        """Write what waits, in one commit, and note the files that end with it; how many rows it was."""
        count, rows, ended = load.take(self._schema)
        if count and load.append:
            self.rows.append(rows)
            self.added += count
        elif count:
            added, replaced = self.rows.replace(last_of_each_key(rows))
            self.added += added
            self.replaced += replaced
        held = {} if load.append or not ended else self.parts.held(self.rows, [part for _, part, _ in ended])
        for file, part, read in ended:
            self.parts.finish(part, read if load.append else held.get(part.number, 0))
            if not load.append:
                self._tell_repeated(file, read - held.get(part.number, 0))
        self._commits += bool(count)
        if count and self._commits % COMMITS_BEFORE_TIDYING == 0:
            self.rows.tidy(fresh=self.is_new)
        return count

    def _tell_repeated(self, file: EmbeddingFile, count: int) -> None:
        self.repeated += count
        if count:
            warnings.warn(
                f"{file.path}: {counted(count, 'row has', 'rows have')} an id that comes again further down; of each "
                "id the index holds the last row",
                RepeatedIdWarning,
                stacklevel=4,
            )

    def outdated(self) -> int:
        """Rows of this name that are not in the source."""
        old = self._old_parts()
        return self.rows.count(of_parts(old)) if old else 0

    def remove_outdated(self) -> None:
        """Remove them."""
        if old := self._old_parts():
            self.rows.delete(of_parts(old))
            self.parts.forget(old)

    def _old_parts(self) -> list[IngestedFile]:
        """What the index knows of files that the source no longer has, or no longer has as they were."""
        return [part for part in self.parts.of(self.name) if (part.file, part.stamp) not in self._current]

    def _check_make(self) -> None:
        recorded, made = VectorSpec.from_metadata(self.rows.address, self._schema.metadata), self.files.vector_spec
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
        own = self._schema
        further = further_fields(schema)
        for field in further:
            if field.name in own.names and own.field(field.name).type != field.type:
                raise InputError(
                    f"{file.path}: column {field.name!r} holds {field.type}, and in {self.rows.address} "
                    f"{own.field(field.name).type}; give one of them another name or type, or "
                    "embed one without it (--keep)"
                )
        if missing := [field for field in further if field.name not in own.names]:
            self.rows.add_columns(missing)
            self._schema = self.rows.schema

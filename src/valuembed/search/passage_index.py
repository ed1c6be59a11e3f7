"""An index that holds the passages of documents, and is kept in step with them.

The list of files that went into an index has an entry for each document. A new one gets its number there before its
passages come, and its state after them. So whoever goes on knows which passages may be of a document that is not done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from valuembed.errors import InputError, OutputError
from valuembed.search.centre import record_centre
from valuembed.search.index import APPROXIMATE_FROM
from valuembed.search.index_rows import row_schema, to_rows
from valuembed.search.ingest import COMMITS_BEFORE_TIDYING, ROWS
from valuembed.search.ledger import IngestedFile, IngestLedger, of_parts, only_writer
from valuembed.search.vector_store import Table, languages
from valuembed.vectors import (
    EMBEDDING,
    KEY,
    PART,
    DocumentState,
    EmbeddedDocument,
    PassageRecord,
    StoredRows,
    VectorSpec,
    is_remote,
    passage_rows,
    passage_schema,
    setting_differences,
)

FOLDERS = "folders"
"""Table of an index that says which folders of documents went in, and how they were cut."""

REJECTED = "rejected.jsonl"
AT_ONCE = 5000
"""Numbers or names in one condition."""


@dataclass(frozen=True)
class _Folder:
    """A folder of documents that is in an index: the way to it, and its settings."""

    location: str
    settings: dict[str, Any]


class PassageIndex:
    """An index of the passages of documents; a :class:`valuembed.vectors.PassageStore`.

    It is an index as :func:`valuembed.search.build_index` makes them, and can hold other sources too.

    Args:
        index: a folder, or an address that LanceDB knows; it is made if need be.
        name: that the documents are known under as a source; None is the name of their folder.
        language: as in :func:`valuembed.search.build_index`.
        approximate_from: as there.

    Raises:
        InputError: the language is unknown, or the name blank.
        MissingExtraError: the extra ``store`` is not installed.
    """

    def __init__(
        self,
        index: str | os.PathLike[str],
        *,
        name: str | None = None,
        language: str | None = None,
        approximate_from: int = APPROXIMATE_FROM,
    ) -> None:
        if language is not None and language not in (known := languages()):
            raise InputError(f"language {language!r} is unknown; legal: {', '.join(known)}")
        if name is not None and not name.strip():
            raise InputError(f"name {name!r} is blank")
        self._address = os.fspath(index)
        self._named, self._language, self._approximate_from = name, language, approximate_from
        self.name = name or ""
        self._rows: Any = None
        self._ledger: Any = None
        self._parts: dict[str, IngestedFile] = {}
        self._location = ""
        self._number = 0
        self._is_new = self._is_changed = False
        self._commits = 0

    @property
    def address(self) -> str:
        """The folder or address of the index."""
        return self._address

    @property
    def rejected_path(self) -> Path | None:
        """Where documents that were set aside are listed; in an object store nowhere."""
        return None if is_remote(self.address) else Path(self.address) / REJECTED

    def recorded(self) -> PassageRecord | None:
        """See :meth:`valuembed.vectors.PassageStore.recorded`."""
        if not Table.is_at(self.address, ROWS):
            return None
        vector_spec = VectorSpec.from_metadata(self.address, Table.open(self.address, ROWS).schema.metadata)
        folders = _folders(self.address)
        return PassageRecord(vector_spec, next(iter(folders.values())).settings if folders else {})

    def is_inside(self, path: Path) -> bool:
        """See :meth:`valuembed.vectors.PassageStore.is_inside`."""
        here = os.path.realpath(self.address)
        return not is_remote(self.address) and Path(os.path.realpath(path)).is_relative_to(here)

    def check(self, folder: Path) -> None:
        """See :meth:`valuembed.vectors.PassageStore.check`."""
        self._take_name(folder)
        if is_remote(self.address) or Path(self.address).exists():
            with only_writer(self.address, ROWS):
                pass

    @contextmanager
    def writing(self, record: PassageRecord, folder: Path) -> Iterator[None]:
        """See :meth:`valuembed.vectors.PassageStore.writing`."""
        with only_writer(self.address, ROWS):
            if (known := self.recorded()) is not None:
                if found := known.vector_spec.differences(record.vector_spec):
                    raise OutputError(
                        f"index {self.address} holds vectors made by {known.vector_spec}, and these would be made by "
                        f"{record.vector_spec}; they cannot be compared: {'; '.join(found)}. Give the same, or another "
                        "index"
                    )
                if known.settings and (found := setting_differences(known.settings, record.settings)):
                    raise OutputError(
                        f"index {self.address} was begun with other settings (there against here): {'; '.join(found)}; "
                        "give the same, or another index"
                    )
            self._is_new = known is None
            schema = row_schema(passage_schema(record.vector_spec), record.vector_spec)
            self._rows = Table.create(self.address, ROWS, schema) if self._is_new else Table.open(self.address, ROWS)
            self._add_columns(schema)
            self._take_name(folder)
            self._ledger = IngestLedger(self.address)
            self._check_name(folder)
            self._parts = {part.file: part for part in self._ledger.of(self.name)}
            self._vector_spec = record.vector_spec if known is None else known.vector_spec
            _note_folder(self.address, self.name, _Folder(self._location, dict(record.settings)))
            yield

    def documents(self) -> dict[str, DocumentState]:
        """See :meth:`valuembed.vectors.PassageStore.documents`."""
        return {name: _state(part) for name, part in self._parts.items() if part.rows is not None}

    def put(self, documents: Sequence[EmbeddedDocument]) -> None:
        """See :meth:`valuembed.vectors.PassageStore.put`."""
        names = [document.state.name for document in documents]
        known = [self._parts[name] for name in names if name in self._parts]
        self._begin(names)
        rows = self._to_rows(documents)
        if known:
            self._rows.replace_all(rows, [of_parts(known[at : at + AT_ONCE]) for at in range(0, len(known), AT_ONCE)])
        elif rows.num_rows:
            self._rows.append(rows)
        self._is_changed |= bool(known or rows.num_rows)
        for document in documents:
            self._know(document.state)
        self._ledger.write()
        self._commits += 1
        if self._commits % COMMITS_BEFORE_TIDYING == 0:
            self._rows.tidy(fresh=self._is_new)
            self._ledger.table.tidy(fresh=self._is_new)

    def note(self, states: Sequence[DocumentState]) -> None:
        """See :meth:`valuembed.vectors.PassageStore.note`."""
        for state in states:
            self._know(state)
        self._ledger.write()

    def remove(self, names: Iterable[str]) -> None:
        """See :meth:`valuembed.vectors.PassageStore.remove`."""
        parts = [self._parts.pop(name) for name in names if name in self._parts]
        for first in range(0, len(parts), AT_ONCE):
            some = parts[first : first + AT_ONCE]
            self._rows.delete(of_parts(some))
            self._ledger.forget(some)
            self._is_changed = True

    def finish(self, tell: Callable[[str], object]) -> None:
        """See :meth:`valuembed.vectors.PassageStore.finish`."""
        # Left of a run that was killed, of documents that are not there any more.
        self.remove([name for name, part in self._parts.items() if part.rows is None])
        tell("tuning the index")
        self._rows.tune(approximate_from=self._approximate_from, language=self._language, fresh=self._is_new)
        self._ledger.table.tidy(fresh=self._is_new)
        record_centre(self.address, self._rows, self._vector_spec, changed=self._is_changed)

    def count(self) -> int:
        """See :meth:`valuembed.vectors.PassageStore.count`."""
        return sum(part.rows or 0 for part in self._parts.values())

    def _begin(self, names: Sequence[str]) -> None:
        """Give documents their numbers, and mark them as not done."""
        for name in names:
            part = self._parts.get(name)
            if part is None:
                self._number += 1
                part = IngestedFile(self._number, self.name, self._location, name, "")
            self._parts[name] = self._ledger.keep(replace(part, stamp="", rows=None))
        self._ledger.write()

    def _know(self, state: DocumentState) -> None:
        stamp = json.dumps({name: value for name, value in asdict(state).items() if name not in ("name", "passages")})
        part = replace(self._parts[state.name], location=self._location, stamp=stamp, rows=state.passages)
        self._parts[state.name] = self._ledger.keep(part)

    def _to_rows(self, documents: Sequence[EmbeddedDocument]) -> Any:
        """Rows of the index, with the number of the document that each belongs to."""
        import numpy as np
        import pyarrow as pa

        table = passage_rows(documents, self._vector_spec)
        schema = self._rows.schema
        if not table.num_rows:
            return schema.empty_table()
        batch = table.combine_chunks().to_batches()[0]
        stored = batch.column(EMBEDDING).flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, -1)
        rows = to_rows(
            StoredRows(0, batch, self._vector_spec.unpack(stored)),
            schema,
            source=self.name,
            part=0,
            file="",
            where="a passage",
        )
        numbers = np.repeat(
            [self._parts[document.state.name].number for document in documents],
            [len(document.passages) for document in documents],
        )
        return rows.set_column(rows.schema.get_field_index(PART), PART, pa.array(numbers, pa.int32()))

    def _add_columns(self, schema: Any) -> None:
        """Make room for what passages have and the rows of an index may lack."""
        there = self._rows.schema
        if missing := [field for field in schema if field.name not in there.names]:
            self._rows.add_columns(missing)
        for field in schema:
            if field.name in there.names and there.field(field.name).type != field.type:
                raise InputError(
                    f"index {self.address}: column {field.name!r} holds {there.field(field.name).type}, and that of "
                    f"documents {field.type}; give another index"
                )

    def _take_name(self, folder: Path) -> None:
        self.name = self._named or folder.resolve().name or "documents"
        self._location = _way(self.address, folder)

    def _check_name(self, folder: Path) -> None:
        self._number = max([0, *self._ledger.numbers, *self._ledger.held(self._rows)])
        places = {part.location for part in self._ledger.of(self.name)}
        if self._named is None and places and self._location not in places:
            raise InputError(
                f"{self.address} has a source named {self.name!r} from {', '.join(sorted(places))}, and this one is "
                f"{self._location}. If it is the same, moved, say so with --name {self.name} (name={self.name!r}); "
                "otherwise give another name"
            )


def documents_folders(address: str | os.PathLike[str]) -> dict[str, Path]:
    """Find the folders of documents that are in an index, by the name of the source.

    Args:
        address: of the index.

    Returns:
        Where each folder was, or is if the index lies inside it; of a document by itself, its own path.
    """
    given = os.fspath(address)
    return {
        name: Path(os.path.normpath(os.path.join(given, folder.location))) for name, folder in _folders(given).items()
    }


def _folders(address: str) -> dict[str, _Folder]:
    if not Table.is_at(address, FOLDERS):
        return {}
    rows = [
        row for batch in Table.open(address, FOLDERS).scan([KEY, "location", "settings"]) for row in batch.to_pylist()
    ]
    return {row[KEY]: _Folder(row["location"], json.loads(row["settings"])) for row in rows}


def _note_folder(address: str, name: str, folder: _Folder) -> None:
    import pyarrow as pa

    if _folders(address).get(name) == folder:
        return
    schema = pa.schema([(KEY, pa.string()), ("location", pa.string()), ("settings", pa.string())])
    there = Table.is_at(address, FOLDERS)
    table = Table.open(address, FOLDERS) if there else Table.create(address, FOLDERS, schema)
    row = {KEY: name, "location": folder.location, "settings": json.dumps(folder.settings)}
    table.replace(pa.Table.from_pylist([row], schema=schema))


def _way(address: str, folder: Path) -> str:
    """The way to documents as it is recorded: relative where the index lies in their folder, and moves with it."""
    there = os.path.realpath(folder)
    if is_remote(address) or not Path(os.path.realpath(address)).is_relative_to(there):
        return there
    return Path(os.path.relpath(there, os.path.realpath(address))).as_posix()


def _state(part: IngestedFile) -> DocumentState:
    return DocumentState(name=part.file, passages=part.rows or 0, **json.loads(part.stamp))

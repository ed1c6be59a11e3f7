"""The files that went into an index, kept beside its rows, and the lock of whoever writes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from valuembed._utils.locks import Lock
from valuembed.errors import OutputError
from valuembed.search.vector_store import Table
from valuembed.vectors import KEY, PART, EmbeddingFiles, is_remote

PARTS = "files"
LOCK = ".lock"


@dataclass(frozen=True)
class IngestedFile:
    """One file, as it was when it was read.

    Attributes:
        number: that its rows carry.
        source: name of the source that it belongs to.
        location: of that source, in full.
        file: its name.
        stamp: changes when the file does.
        rows: how many the index held of it when all of it was read; None until then.
    """

    number: int
    source: str
    location: str
    file: str
    stamp: str
    rows: int | None = None


class IngestLedger:
    """All files that went into an index.

    Args:
        address: of the index.
    """

    def __init__(self, address: str) -> None:
        import pyarrow as pa

        numbers = {"number": pa.int32(), "rows": pa.int64()}
        names = ("number", "source", "location", "file", "stamp", "rows")
        self.schema = pa.schema([(KEY, pa.string()), *((name, numbers.get(name, pa.string())) for name in names)])
        there = Table.is_at(address, PARTS)
        self.table = Table.open(address, PARTS) if there else Table.create(address, PARTS, self.schema)
        rows = [row for batch in self.table.scan(list(names)) for row in batch.to_pylist()]
        self._parts = {row["number"]: IngestedFile(**row) for row in rows}
        self._unwritten: dict[int, IngestedFile] = {}

    @property
    def numbers(self) -> list[int]:
        """The numbers of all files."""
        return list(self._parts)

    def of(self, source: str) -> list[IngestedFile]:
        """The files of one source."""
        return [part for part in self._parts.values() if part.source == source]

    def note(self, source: str, files: EmbeddingFiles, *, taken: Mapping[int, int]) -> list[IngestedFile]:
        """What is known of the files of a source; those that are new, or changed, are written down first.

        Args:
            source: its name.
            files: its files.
            taken: numbers that rows carry.
        """
        known = {(part.file, part.stamp): part for part in self.of(source)}
        number = max([0, *self._parts, *taken])
        found = []
        for file in files.files:
            part = known.get((file.name, file.stamp))
            if part is None:
                number += 1
                part = self.keep(IngestedFile(number, source, files.location, file.name, file.stamp))
            found.append(part)
        self.write()
        return found

    def finish(self, part: IngestedFile, rows: int) -> None:
        """Remember that all of a file is in, and that the index holds so many rows of it."""
        self.keep(replace(part, rows=rows))

    def write(self) -> None:
        """Write down what was remembered since the last time."""
        import pyarrow as pa

        if self._unwritten:
            rows = [{KEY: str(part.number), **asdict(part)} for part in self._unwritten.values()]
            self.table.replace(pa.Table.from_pylist(rows, schema=self.schema))
            self._unwritten = {}

    def forget(self, parts: list[IngestedFile]) -> None:
        """Drop what is known of some files."""
        self.table.delete(f"number IN ({', '.join(str(part.number) for part in parts)})")
        for part in parts:
            del self._parts[part.number]

    @staticmethod
    def sources(address: str) -> list[str]:
        """Names of the sources of an index, sorted; none where nothing has gone in yet."""
        if not Table.is_at(address, PARTS):
            return []
        batches = Table.open(address, PARTS).scan(["source"])
        return sorted({name for batch in batches for name in batch.column(0).to_pylist()})

    @staticmethod
    def held(rows: Table, parts: list[IngestedFile] | None = None) -> dict[int, int]:
        """How many rows the index holds of each file, or of some of them, by its number."""
        import numpy as np

        counts: dict[int, int] = {}
        for batch in rows.scan([PART], None if parts is None else of_parts(parts)):
            numbers, times = np.unique(batch.column(0).to_numpy(), return_counts=True)
            for number, count in zip(numbers.tolist(), times.tolist(), strict=True):
                counts[number] = counts.get(number, 0) + count
        return counts

    def keep(self, part: IngestedFile) -> IngestedFile:
        """Remember what is known of a file, until :meth:`write` writes it down."""
        self._parts[part.number] = self._unwritten[part.number] = part
        return part


def of_parts(parts: list[IngestedFile]) -> str:
    """A filter for the rows of some files."""
    return f"{PART} IN ({', '.join(str(part.number) for part in parts)})"


@contextmanager
def only_writer(address: str | Path, table: str) -> Iterator[None]:
    """Make the folder of an index if need be, and keep other processes from writing it; the lock dies with its process.

    Args:
        address: of the index. In an object store there is nothing to make, and no lock.
        table: whose presence shows that a folder is an index.

    Raises:
        OutputError: there is something else, another process is writing, or the folder cannot be made.
    """
    if is_remote(address):
        yield
        return
    folder = Path(address)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"index {folder} is a file; name a folder")
    if folder.is_dir() and not Table.is_at(folder, table) and any(path.name != LOCK for path in folder.iterdir()):
        raise OutputError(f"index {folder} is a folder with something else in it; name a new one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    lock = Lock(folder / LOCK)
    if not lock.acquire():
        raise OutputError(f"index {folder} is being written by another process; run it again when that is done")
    try:
        yield
    finally:
        lock.release()

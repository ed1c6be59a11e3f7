"""A folder of Parquet files that holds the passages of documents, and is kept in step with them.

Each file holds the passages of some documents, and says in its metadata which, and in what state. Where two files
speak of a document, the one with the higher number is right: that is how a new version comes in by one renaming, and
what a killed process left is put right by whoever writes next.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

from valuembed._utils.atomic import NewFile, fresh_name, replace_text
from valuembed._utils.locks import Lock
from valuembed._utils.version import __version__, versions
from valuembed.corpus import DOCUMENTS_KIND, MANIFEST, PACKAGES, REJECTED, SAME_MODEL_COSINE, WORK, check_folder
from valuembed.errors import OutputError
from valuembed.vectors import (
    FILE,
    HEADINGS,
    ID,
    TITLE,
    DocumentState,
    EmbeddedDocument,
    PassageRecord,
    VectorSpec,
    passage_rows,
    setting_differences,
)

FORMAT = 1
STATES_KEY = b"valuembed.documents"
ROWS_PER_FILE = 16_384
"""Small files are joined into files of about so many passages."""

SMALL_FILES = 8
"""So many files of less than half of that may be there before they are joined."""

READERS = 8
_NAME = re.compile(r"^passages-(?P<number>\d{8,})\.parquet$")


@dataclass
class _File:
    """One file: its path, what it says of documents, and how many rows it has."""

    path: Path
    states: dict[str, DocumentState]
    rows: int


class PassageFolder:
    """A folder of Parquet files with the passages of documents; a :class:`valuembed.vectors.PassageStore`.

    Args:
        folder: it is made if need be.

    Raises:
        OutputError: it is a file, or holds something else; every method raises it where the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = check_folder(folder)
        self._files: dict[int, _File] = {}
        self._held: dict[str, int] = {}
        self._seen: dict[str, DocumentState] = {}
        self._vector_spec: VectorSpec | None = None

    @property
    def address(self) -> str:
        """The folder."""
        return str(self.folder)

    @property
    def rejected_path(self) -> Path:
        """Where documents that were set aside are listed."""
        return self.folder / REJECTED

    @property
    def documents_folder(self) -> Path | None:
        """The folder that the documents lie in; None where nothing is there yet."""
        record = self._manifest()
        return Path(os.path.normpath(self.folder / record["folder"])) if record else None

    def recorded(self) -> PassageRecord | None:
        """See :meth:`valuembed.vectors.PassageStore.recorded`."""
        record = self._manifest()
        return PassageRecord(VectorSpec.from_record(record["make"]), record["settings"]) if record else None

    def is_inside(self, path: Path) -> bool:
        """See :meth:`valuembed.vectors.PassageStore.is_inside`."""
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.folder))

    def check(self, folder: Path) -> None:
        """See :meth:`valuembed.vectors.PassageStore.check`."""
        record = self._manifest()
        there = self.documents_folder
        if record and there is not None and there.resolve() != folder.resolve():
            raise OutputError(
                f"output {self.folder} holds the documents of {there}, and {folder} is another folder; name another "
                f'output, or, where the documents were moved, set "folder" in {self.folder / MANIFEST}'
            )
        if (self.folder / WORK).is_dir():
            with self._locked():
                pass

    @contextmanager
    def writing(self, record: PassageRecord, folder: Path) -> Iterator[None]:
        """See :meth:`valuembed.vectors.PassageStore.writing`."""
        try:
            (self.folder / WORK).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write into {self.folder}: {error.strerror or error}") from error
        self.check(folder)
        with self._locked():
            if (known := self.recorded()) is None:
                self._write_manifest(record, _from(self.folder, folder), None)
            else:
                found = known.vector_spec.differences(record.vector_spec, SAME_MODEL_COSINE)
                if found := found + setting_differences(known.settings, record.settings):
                    raise OutputError(
                        f"output {self.folder} was begun with other settings (there against here): {'; '.join(found)}; "
                        "give the same, or name another folder"
                    )
            self._vector_spec = (known or record).vector_spec
            self._look()
            self._settle()
            yield

    def documents(self) -> dict[str, DocumentState]:
        """See :meth:`valuembed.vectors.PassageStore.documents`."""
        found = {name: self._files[number].states[name] for name, number in self._held.items()}
        for name, seen in self._seen.items():
            if name in found and found[name].digest == seen.digest:
                found[name] = replace(found[name], size=seen.size, modified=seen.modified)
        return found

    def put(self, documents: Sequence[EmbeddedDocument]) -> None:
        """See :meth:`valuembed.vectors.PassageStore.put`."""
        assert self._vector_spec is not None
        rows = passage_rows(documents, self._vector_spec)
        self._write(rows, {document.state.name: document.state for document in documents})

    def note(self, states: Sequence[DocumentState]) -> None:
        """See :meth:`valuembed.vectors.PassageStore.note`."""
        self._seen |= {state.name: state for state in states}
        content = json.dumps([astuple(state) for state in self._seen.values()], ensure_ascii=False)
        replace_text(self._seen_path, content, fresh_name(self.folder / WORK, self._seen_path.name))

    def remove(self, names: Iterable[str]) -> None:
        """See :meth:`valuembed.vectors.PassageStore.remove`."""
        for name in names:
            self._held.pop(name, None)
        self._settle()

    def finish(self, tell: Callable[[str], object]) -> None:
        """See :meth:`valuembed.vectors.PassageStore.finish`."""
        self._settle()
        small = [number for number, file in sorted(self._files.items()) if file.rows < ROWS_PER_FILE // 2]
        if len(small) > SMALL_FILES:
            tell("joining files")
            self._join(small)
        record = self._manifest()
        assert record is not None
        states = self.documents().values()
        complete = {
            "documents": len(states),
            "rejected": sum(state.reason is not None for state in states),
            "vectors": self.count(),
        }
        if record["complete"] != complete:
            known = PassageRecord(VectorSpec.from_record(record["make"]), record["settings"])
            self._write_manifest(known, record["folder"], complete, record["versions"])

    def count(self) -> int:
        """See :meth:`valuembed.vectors.PassageStore.count`."""
        return sum(file.rows for file in self._files.values())

    @property
    def _seen_path(self) -> Path:
        return self.folder / WORK / "touched.json"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = Lock(self.folder / WORK / "documents.lock")
        if not lock.acquire():
            raise OutputError(
                f"output {self.folder} is being written by another process; run it again when that is done"
            )
        try:
            yield
        finally:
            lock.release()

    def _manifest(self) -> dict[str, Any] | None:
        path = self.folder / MANIFEST
        try:
            record = json.loads(path.read_bytes())
            if record["format"] == FORMAT and record["kind"] == DOCUMENTS_KIND:
                VectorSpec.from_record(record["make"])
                return {name: record[name] for name in ("make", "settings", "versions", "folder", "complete")}
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, KeyError) and error.args == ("kind",):
                raise OutputError(
                    f"output {self.folder} was begun with texts that are rows of files; name another folder for "
                    "documents, or go on with it by --lines"
                ) from error
            raise OutputError(f"{path} is damaged ({error!r}); put it back, or name another folder") from error
        raise OutputError(f"{path} has a form that this version ({__version__}) does not know")

    def _write_manifest(
        self, record: PassageRecord, folder: str, complete: dict[str, int] | None, begun: Any = None
    ) -> None:
        content = {
            "format": FORMAT,
            "kind": DOCUMENTS_KIND,
            "complete": complete,
            "make": record.vector_spec.to_record(),
            "settings": dict(record.settings),
            "versions": begun or versions(*PACKAGES),
            "folder": folder,
        }
        text = json.dumps(content, ensure_ascii=False, indent=1)
        replace_text(self.folder / MANIFEST, f"{text}\n", fresh_name(self.folder / WORK, MANIFEST))

    def _look(self) -> None:
        """Find the files, and what they say of documents."""
        try:
            names = [match for name in sorted(os.listdir(self.folder)) if (match := _NAME.match(name))]
        except OSError as error:
            raise OutputError(f"cannot read {self.folder}: {error.strerror or error}") from error
        with ThreadPoolExecutor(READERS) as pool:
            found = pool.map(_read, [self.folder / match[0] for match in names])
            self._files = {int(match["number"]): file for match, file in zip(names, found, strict=True)}
        self._held = {name: number for number, file in sorted(self._files.items()) for name in file.states}
        try:
            self._seen = {row[0]: DocumentState(*row) for row in json.loads(self._seen_path.read_bytes())}
        except (OSError, ValueError, TypeError):
            # Without it, files that were touched are hashed once more.
            self._seen = {}

    def _settle(self) -> None:
        """Take out of each file what another one, or none, is right about."""
        for number, file in list(self._files.items()):
            right = {name: state for name, state in file.states.items() if self._held.get(name) == number}
            if len(right) == len(file.states):
                continue
            if right:
                self._replace(file, _rows_of(file.path, right), right)
            else:
                self._unlink(number)

    def _join(self, numbers: list[int]) -> None:
        """Join small files."""
        import pyarrow as pa

        waiting: list[int] = []
        rows = 0
        for number in numbers:
            waiting.append(number)
            rows += self._files[number].rows
            if rows < ROWS_PER_FILE and number != numbers[-1]:
                continue
            if len(waiting) > 1:
                files = [self._files[one] for one in waiting]
                table = pa.concat_tables([_rows_of(file.path, file.states) for file in files])
                self._write(table, {name: state for file in files for name, state in file.states.items()})
                for one in waiting:
                    self._unlink(one)
            waiting, rows = [], 0

    def _write(self, rows: Any, states: dict[str, DocumentState]) -> None:
        """A new file, whose documents are from now on held by it."""
        number = max(self._files, default=0) + 1
        file = _File(self.folder / f"passages-{number:08}.parquet", {}, 0)
        self._replace(file, rows, states)
        self._files[number] = file
        self._held |= dict.fromkeys(states, number)

    def _replace(self, file: _File, rows: Any, states: dict[str, DocumentState]) -> None:
        import pyarrow.parquet as pq

        metadata = {**(rows.schema.metadata or {}), STATES_KEY: _packed(states)}
        with NewFile(file.path, fresh_name(self.folder / WORK, file.path.name)) as new:
            try:
                # Texts, ids and vectors gain nothing from dictionaries; a column that repeats itself does.
                pq.write_table(
                    rows.replace_schema_metadata(metadata),
                    new.file,
                    compression="zstd",
                    use_dictionary=[name for name in rows.schema.names if name in (FILE, TITLE, HEADINGS)],
                    write_statistics=[ID, FILE],
                    row_group_size=4096,
                )
            except OSError as error:
                raise new.error(error) from error
            new.seal()
            new.commit()
        file.states, file.rows = states, rows.num_rows

    def _unlink(self, number: int) -> None:
        path = self._files[number].path
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot remove {path}: {error.strerror or error}") from error
        del self._files[number]


def _from(output: Path, folder: Path) -> str:
    """The way to the documents as it is recorded: relative where the output lies in their folder and moves with it."""
    inside = Path(os.path.realpath(output)).is_relative_to(os.path.realpath(folder))
    return Path(os.path.relpath(folder, output)).as_posix() if inside else str(folder.resolve())


def _packed(states: dict[str, DocumentState]) -> bytes:
    content = json.dumps([asdict(state) for state in states.values()], ensure_ascii=False).encode()
    return b64encode(zlib.compress(content))


def _read(path: Path) -> _File:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            packed = file.schema_arrow.metadata[STATES_KEY]
            states = [DocumentState(**one) for one in json.loads(zlib.decompress(b64decode(packed)))]
            return _File(path, {state.name: state for state in states}, file.metadata.num_rows)
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError, zlib.error) as error:
        raise OutputError(f"{path} is damaged ({error}); remove it, and its documents are embedded anew") from error


def _rows_of(path: Path, states: dict[str, DocumentState]) -> Any:
    """The rows of some documents in a file, as an Arrow table."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path, partitioning=None)
    except (pa.ArrowInvalid, OSError) as error:
        raise OutputError(f"{path} is damaged ({error}); remove it, and its documents are embedded anew") from error
    return rows.filter(pc.is_in(rows.column(FILE), value_set=pa.array(list(states), pa.string())))

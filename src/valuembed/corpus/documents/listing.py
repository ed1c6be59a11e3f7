"""Which documents there are in a folder, and whether a folder is one of documents."""

from __future__ import annotations

import os
from pathlib import Path

from valuembed._utils.text import counted
from valuembed.corpus import MANIFEST, WORK
from valuembed.data import COMPRESSIONS, FILE_KINDS
from valuembed.data.documents import DOCUMENT_KINDS, DocumentFile, SetAside, find_documents
from valuembed.errors import InputError
from valuembed.vectors import METADATA_KEY, PassageStore

ROW_KINDS = frozenset(kind for kind in FILE_KINDS if kind != ".txt")
"""Kinds of files that hold a text in each row, and are documents only where they lie beside documents."""


def holds_documents(path: str | os.PathLike[str]) -> bool:
    """Whether a path is embedded as documents unless it is said otherwise.

    A folder is, where a file of it is of a kind that is no file of rows: ``.txt`` counts, ``.jsonl``, ``.csv``,
    ``.tsv``, ``.parquet`` and compressed files do not. A file by itself is, where it is a document of a kind other than
    these and ``.txt``, whose lines are texts.

    Raises:
        InputError: it is a folder that cannot be read.
    """
    given = Path(path)
    if given.is_dir():
        found, _ = find_documents(given)
        return any(_kind(file.path) not in ROW_KINDS for file in _without_outputs(given, found))
    return given.is_file() and _kind(given) in DOCUMENT_KINDS and _kind(given) not in FILE_KINDS


def check_documents(
    folder: str | os.PathLike[str], store: PassageStore | None = None
) -> tuple[list[DocumentFile], list[SetAside]]:
    """Find documents, and raise what :func:`update_documents` would raise before it needs a model.

    Args:
        folder: of documents, or one document.
        store: where they are to go; what lies in it is left out, as is whatever else ``valuembed embed`` and
            ``valuembed index`` wrote.

    Returns:
        The documents, and the files of kinds that nothing reads.

    Raises:
        InputError: there is no such folder, it cannot be read, or holds no document.
        OutputError: another process is writing the store, or it cannot be used.
    """
    given = Path(folder)
    if not given.exists():
        raise InputError(f"{given} does not exist; give a folder of documents")
    if given.is_dir():
        found, aside = find_documents(given)
        found = _without_outputs(given, found, store)
        names = {one.name for one in aside if not _is_output(given, given / one.name, store)}
        aside = [one for one in aside if one.name in names]
    else:
        status = given.stat()
        found, aside = [DocumentFile(given.name, given, status.st_size, status.st_mtime_ns)], []
        if _kind(given) not in DOCUMENT_KINDS:
            raise InputError(f"{given} is of no kind that is read as a document; legal: {', '.join(DOCUMENT_KINDS)}")
    if not found:
        reasons = sorted({one.reason for one in aside})
        others = f"; {counted(len(aside), 'other file')}: {'; '.join(reasons[:3])}" if aside else ""
        held = f"; what {store.address} holds of it is kept" if store and store.recorded() else ""
        raise InputError(f"{given} holds no document{others}{held}; give a folder with files that are read")
    if store is not None:
        store.check(given)
    return found, aside


def _kind(path: Path) -> str:
    """The ending of a file's name in small letters; of a compressed file both."""
    kind = path.suffix.lower()
    return f"{path.with_suffix('').suffix.lower()}{kind}" if kind in COMPRESSIONS else kind


def _without_outputs(folder: Path, files: list[DocumentFile], store: PassageStore | None = None) -> list[DocumentFile]:
    return [file for file in files if not _is_output(folder, file.path, store)]


def _is_output(folder: Path, path: Path, store: PassageStore | None) -> bool:
    """Whether a file is one of those that this program writes."""
    if store is not None and store.is_inside(path):
        return True
    parent = path.parent
    while parent != folder and folder in parent.parents:
        if _is_written(parent):
            return True
        parent = parent.parent
    return path.suffix.lower() == ".parquet" and _has_vectors(path)


def _is_written(folder: Path) -> bool:
    """Whether a folder is an output of ``embed`` or an index."""
    return ((folder / MANIFEST).is_file() and (folder / WORK).is_dir()) or (folder / "rows.lance").is_dir()


def _has_vectors(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return METADATA_KEY in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowInvalid):
        return False


"""Which documents there are in a folder, and whether a folder is one of documents."""

from __future__ import annotations

import os
from pathlib import Path

from valuembed._utils.text import counted
from valuembed.corpus import MANIFEST, WORK
from valuembed.data import FILE_KINDS, extension
from valuembed.data.documents import DocumentFile, SetAside, find_documents, kind_of, why_not_read
from valuembed.errors import InputError
from valuembed.vectors import METADATA_KEY, PassageStore

ROW_KINDS = frozenset(FILE_KINDS) - {".txt"}
"""Endings of files that hold a text in each row. Where nothing else lies in a folder, it is none of documents."""


def holds_documents(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path is embedded as documents unless it is said otherwise.

    A folder is, where it holds a document that is no file of rows: ``.txt`` counts, ``.jsonl``, ``.ndjson``, ``.csv``,
    ``.tsv`` and ``.parquet`` do not, packed or not. A file by itself is, where it is a document of a kind other than
    these and ``.txt``, whose lines are texts.
    """
    given = Path(path)
    if given.is_dir():
        found, _ = _documents_of(given, None)
        return any(extension(file.path) not in ROW_KINDS for file in found)
    return given.is_file() and kind_of(given) is not None and extension(given) not in FILE_KINDS


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
        InputError: there is no such folder, or it holds no document.
        OutputError: another process is writing the store, or it cannot be used.
    """
    given = Path(folder)
    if given.is_dir():
        found, aside = _documents_of(given, store)
    elif given.exists():
        found, aside = [_document(given)], []
    else:
        raise InputError(f"{given} does not exist; give a folder of documents")
    if not found:
        reasons = list(dict.fromkeys(one.reason for one in aside))
        others = f"; {counted(len(aside), 'file is', 'files are')} set aside: {'; '.join(reasons[:3])}" if aside else ""
        held = f"; what {store.address} holds is kept" if store and store.recorded() else ""
        raise InputError(f"{given} holds no document{others}{held}; give a folder with files that are read")
    if store is not None:
        store.check(given)
    return found, aside


def _document(path: Path) -> DocumentFile:
    """One document by itself."""
    status = path.stat()
    if reason := why_not_read(path, status.st_size):
        raise InputError(f"{path} cannot be read as a document: {reason}")
    return DocumentFile(path.name, path, status.st_size, status.st_mtime_ns)


def _documents_of(folder: Path, store: PassageStore | None) -> tuple[list[DocumentFile], list[SetAside]]:
    """What is found in a folder, without what this program wrote there."""
    found, aside = find_documents(folder)
    known: dict[Path, bool] = {}
    kept = [file for file in found if not _is_output(folder, folder / file.name, store, known)]
    return kept, [one for one in aside if not _is_output(folder, folder / one.name, store, known)]


def _is_output(folder: Path, path: Path, store: PassageStore | None, known: dict[Path, bool]) -> bool:
    """Whether a file is one of those that this program writes; ``known``: what was found of folders."""
    if store is not None and store.is_inside(path):
        return True
    for parent in path.parents:
        if parent == folder:
            break
        if parent not in known:
            is_job = (parent / MANIFEST).is_file() and (parent / WORK).is_dir()
            known[parent] = is_job or (parent / "rows.lance").is_dir()
        if known[parent]:
            return True
    return path.suffix.lower() == ".parquet" and has_vectors(path)


def has_vectors(path: Path) -> bool:
    """Tell whether a Parquet file holds vectors that this library wrote."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return METADATA_KEY in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowInvalid):
        return False

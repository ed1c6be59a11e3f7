"""A document's file in, its passages out; what cannot be read is an error with its reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from valuembed._utils.text import counted, printable, shortened
from valuembed.data import extension, open_stream
from valuembed.data.documents.code import read_code
from valuembed.data.documents.decoding import decoded
from valuembed.data.documents.extraction import Extraction
from valuembed.data.documents.folder import DocumentFile
from valuembed.data.documents.html import read_html
from valuembed.data.documents.kinds import Kind, is_packed, kind_of, too_large, why_not_read
from valuembed.data.documents.mail import read_mail
from valuembed.data.documents.manual_page import is_manual_page, read_manual_page
from valuembed.data.documents.markdown import read_markdown
from valuembed.data.documents.pdf import read_pdf
from valuembed.data.documents.plain_text import read_plain, read_rst
from valuembed.data.documents.rows import listed_passages, row_passages
from valuembed.data.documents.splitter import Passage, Splitter
from valuembed.data.documents.word import read_word
from valuembed.errors import DocumentError, InputError, ValuembedError

_TEXTS: dict[str, Callable[[str], Extraction]] = {
    "text": lambda text: read_manual_page(text) if is_manual_page(text) else read_plain(text),
    "Markdown": read_markdown,
    "reStructuredText": read_rst,
    "HTML": read_html,
}
"""What reads a decoded text, by kind."""

_BYTES: dict[str, Callable[[bytes], Extraction]] = {"PDF": read_pdf, "Word": read_word, "mail": read_mail}
"""What reads a file's bytes, by kind."""

_DECLARING = ("HTML", "code")
"""Kinds whose files say in what encoding they are."""

LARGEST_TEXT = 100_000_000
"""Characters that the text of a document has at most."""


def read_passages(file: DocumentFile, splitter: Splitter) -> list[Passage]:
    """Read a document and cut it into passages.

    Files of rows (JSON Lines, CSV, TSV, Parquet with a column ``text``, and JSON that is a list of such objects) give
    the passages of each row, numbered through.

    Args:
        file: one that :func:`find_documents` found.
        splitter: cuts its text.

    Returns:
        At least one passage.

    Raises:
        DocumentError: it cannot be read, holds no text, or is not the file any more that was found; with the reason.
        MissingExtraError: what reads files of its kind is not installed.
    """
    with _watching(file) as kind:
        if kind.name == "rows":
            return row_passages(file.path, splitter)
        if extension(Path(file.name)) == ".json":
            listed = listed_passages(decoded(_content(file.path, kind)), splitter)
            if listed is not None:
                return listed
        passages = splitter.passages(_read(file, kind))
        if not passages:
            raise DocumentError("there is no text in it")
        return passages


def extract(file: DocumentFile) -> Extraction:
    """The whole text of a document, in which its passages have their ``start`` and ``end``; not of files of rows.

    Args:
        file: one that :func:`find_documents` found.

    Raises:
        DocumentError, MissingExtraError: as :func:`read_passages`.
    """
    with _watching(file) as kind:
        if kind.name == "rows":
            raise DocumentError("a file of rows, each a text of its own; valuembed.data.read_rows reads them")
        return _read(file, kind)


def _read(file: DocumentFile, kind: Kind) -> Extraction:
    data = _content(file.path, kind)
    if kind.name in _BYTES:
        found = _BYTES[kind.name](data)
    else:
        text = decoded(data, declares=kind.name in _DECLARING)
        found = read_code(text, extension(Path(file.name))) if kind.name == "code" else _TEXTS[kind.name](text)
    if len(found.text) > LARGEST_TEXT:
        raise DocumentError(
            f"its text has {counted(len(found.text), 'character')}, more than {LARGEST_TEXT:,}; split it"
        )
    return found


@contextmanager
def _watching(file: DocumentFile) -> Iterator[Kind]:
    """Say in one line why a file cannot be read; that it changes while it is read comes before all else."""
    kind = kind_of(Path(file.name))
    if kind is None:
        raise DocumentError(why_not_read(Path(file.name), file.size) or "nothing reads it")
    _check_unchanged(file)
    try:
        yield kind
    except Exception as error:
        if isinstance(error, ValuembedError) and not isinstance(error, InputError):
            raise
        _check_unchanged(file)
        if isinstance(error, DocumentError):
            raise
        raise DocumentError(_reason(error, file.path, kind)) from error
    _check_unchanged(file)


def _reason(error: Exception, path: Path, kind: Kind) -> str:
    """What an exception of a library says, in one line."""
    if isinstance(error, InputError):
        reason = str(error)
        for start in (f"input {path}: ", f"input {path} ", f"cannot read {path}: "):
            reason = reason.removeprefix(start)
        return reason
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    if isinstance(error, MemoryError):
        return "it takes more memory to read than there is; split it"
    if isinstance(error, RecursionError):
        return "it is nested too deep to be read"
    said = shortened(printable(" ".join(str(error).split())), 200)
    return f"its {kind.name} is damaged or of an unknown sort: {type(error).__name__}{f': {said}' if said else ''}"


def _check_unchanged(file: DocumentFile) -> None:
    try:
        state = os.stat(file.path)
    except OSError as error:
        raise DocumentError(f"gone since it was found: {error.strerror or error}") from error
    if (state.st_size, state.st_mtime_ns) != (file.size, file.modified):
        raise DocumentError("it changed since it was found; run the command again")


def _content(path: Path, kind: Kind) -> bytes:
    """The bytes of a file, unpacked."""
    if not is_packed(path):
        data = path.read_bytes()
    else:
        with open_stream(path) as stream:
            data = stream.file.read(kind.largest + 1)
    if reason := too_large(kind, len(data)):
        raise DocumentError(f"unpacked more than {reason}" if is_packed(path) else reason)
    return data

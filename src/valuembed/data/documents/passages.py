"""A document's file in, its passages out; what cannot be read is an error with its reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from valuembed.data.compression import compression, open_stream
from valuembed.data.documents.decoding import decoded
from valuembed.data.documents.extraction import Extraction
from valuembed.data.documents.folder import DocumentFile
from valuembed.data.documents.kinds import Kind, kind_of, too_large, why_not_read
from valuembed.data.documents.markdown import read_markdown
from valuembed.data.documents.plain_text import read_plain, read_rst
from valuembed.data.documents.splitter import Passage, Splitter
from valuembed.errors import DocumentError, InputError, ValuembedError

_TEXTS: dict[str, Callable[[str], Extraction]] = {
    "text": read_plain,
    "code": read_plain,
    "Markdown": read_markdown,
    "reStructuredText": read_rst,
}
"""What reads a decoded text, by kind."""

_DECLARING = ("HTML", "code")


def read_passages(file: DocumentFile, splitter: Splitter) -> list[Passage]:
    """Read a document and cut it into passages.

    Args:
        file: one that :func:`find_documents` found.
        splitter: cuts its text.

    Returns:
        At least one passage.

    Raises:
        DocumentError: it cannot be read, holds no text, or is not the file any more that was found; with the reason.
        MissingExtraError: what reads files of its kind is not installed.
    """
    passages = splitter.passages(extract(file))
    if not passages:
        raise DocumentError("no text in it")
    return passages


def extract(file: DocumentFile) -> Extraction:
    """The whole text of a document, in which its passages have their ``start`` and ``end``; of files of rows, none.

    Args:
        file: one that :func:`find_documents` found.

    Raises:
        DocumentError, MissingExtraError: as :func:`read_passages`.
    """
    with _watching(file) as kind:
        return _TEXTS[kind.name](decoded(_content(file.path, kind), declares=kind.name in _DECLARING))


@contextmanager
def _watching(file: DocumentFile) -> Iterator[Kind]:
    """Say in one line why a file cannot be read; what happens while it is read counts too."""
    kind = kind_of(Path(file.name))
    if kind is None:
        raise DocumentError(why_not_read(Path(file.name), file.size) or "nothing reads it")
    _check_unchanged(file)
    try:
        yield kind
    except OSError as error:
        if isinstance(error, ValuembedError):
            raise
        _check_unchanged(file)
        raise DocumentError(f"cannot be read: {error.strerror or error}") from error
    except DocumentError:
        _check_unchanged(file)
        raise
    except InputError as error:
        _check_unchanged(file)
        raise DocumentError(_without_path(str(error), file.path)) from error
    _check_unchanged(file)


def _check_unchanged(file: DocumentFile) -> None:
    try:
        state = os.stat(file.path)
    except OSError as error:
        raise DocumentError(f"gone since it was found: {error.strerror or error}") from error
    if (state.st_size, state.st_mtime_ns) != (file.size, file.modified):
        raise DocumentError("it changed while it was read; run the command again")


def _without_path(reason: str, path: Path) -> str:
    for start in (f"input {path}: ", f"input {path} ", f"cannot read {path}: "):
        if reason.startswith(start):
            return reason[len(start) :]
    return reason


def _content(path: Path, kind: Kind) -> bytes:
    """The bytes of a file, unpacked."""
    if compression(path) is None:
        return path.read_bytes()
    with open_stream(path) as stream:
        data = stream.file.read(kind.largest + 1)
    if reason := too_large(kind, len(data)):
        raise DocumentError(f"unpacked more than {reason}")
    return data

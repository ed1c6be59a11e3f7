"""Read files of rows: each row that has a text is a document of its own, whose title it may name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from valuembed.data import BLANK, DEFAULT_TEXT_COLUMN, InBatch, Rejected, Row, RowReader, nothing_usable
from valuembed.data.documents.extraction import Extraction, TextBuilder, cleaned
from valuembed.data.documents.splitter import Passage, Splitter
from valuembed.errors import DocumentError

_TITLE = "title"
_LARGEST_TEXT = 50_000_000


def row_passages(path: Path, splitter: Splitter) -> list[Passage]:
    """The passages of a file's rows; rows without a usable text are left out.

    Args:
        path: of JSON Lines, CSV, TSV or Parquet, with a column ``text``.
        splitter: cuts texts that are longer than its budget.

    Raises:
        InputError: it has no such column, no row has a usable text, or it is damaged.
    """
    found: list[Passage] = []
    first = None
    with RowReader(path, keep=(_TITLE,), max_bytes=_LARGEST_TEXT) as reader:
        for _, line, row in reader.take():
            if isinstance(row, Row):
                found += splitter.passages(_document(row.text, _title(row.kept), line), len(found))
            elif first is None and row.reason not in BLANK:
                first = Rejected(line, row.reason)
        reader.check_columns()
        if not found:
            raise nothing_usable(path, reader.read, first)
    return found


def listed_passages(text: str, splitter: Splitter) -> list[Passage] | None:
    """The passages of a JSON list of objects with texts; None for any other JSON.

    Args:
        text: of the file.
        splitter: as above.
    """
    if not text.lstrip("\ufeff \t\r\n").startswith("["):
        return None
    try:
        rows = json.loads(text.lstrip("\ufeff"))
    except ValueError:
        return None
    except RecursionError:
        raise DocumentError("its JSON is nested too deep") from None
    if not any(isinstance(row, dict) and isinstance(row.get(DEFAULT_TEXT_COLUMN), str) for row in rows):
        return None
    found: list[Passage] = []
    for row in rows:
        if isinstance(row, dict) and isinstance(row.get(DEFAULT_TEXT_COLUMN), str):
            title = row.get(_TITLE)
            document = _document(row[DEFAULT_TEXT_COLUMN], title if isinstance(title, str) else None, None)
            found += splitter.passages(document, len(found))
    return found


def _document(text: str, title: str | None, line: int | None) -> Extraction:
    builder = TextBuilder(title)
    builder.block(cleaned(text))
    done = builder.done()
    return Extraction(done.text, done.title, (), () if line is None else ((0, line),))


def _title(kept: Any) -> str | None:
    """The row's value of the column ``title``, where there is one that is a string."""
    if isinstance(kept, InBatch):
        value = None if kept.batch is None else kept.batch.column(_TITLE)[kept.at].as_py()
    else:
        value = next(iter(kept), None)
    return value if isinstance(value, str) else None

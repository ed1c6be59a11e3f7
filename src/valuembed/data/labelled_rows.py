"""The rows of a JSON Lines file of evaluation data: one split of them, each with the checks that its fields pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from valuembed.data.column_types import EXACT
from valuembed.data.file_hints import head_of, hint, json_hint
from valuembed.data.records import BLANK, FILE_KINDS, RecordReader
from valuembed.data.validation import check_text
from valuembed.errors import InputError


class TaskRow(NamedTuple):
    """One object of the file, with the checks that its fields have to pass."""

    path: Path
    line: int
    fields: dict[str, Any]
    unit: str = "line"
    """What the number counts: "row" where a file has no lines."""

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.line}"

    def need(self, *names: str, otherwise: str = "") -> None:
        """The row has these fields."""
        if missing := [name for name in names if name not in self.fields]:
            expected = ", ".join(names) + (f" (or {otherwise})" if otherwise else "")
            found = ", ".join(map(repr, list(self.fields)[:20])) or "none"
            raise InputError(f"{self}: no field {missing[0]!r}; its fields are {found}; expected {expected}")

    def error(self, name: str, expected: str) -> InputError:
        """The error that says what stands in a field."""
        return InputError(f"{self}: {name!r} is {shown(self.fields[name])}; expected {expected}")

    def text(self, name: str) -> str:
        """A field that holds a text."""
        value = self.fields[name]
        if reason := check_text(value):
            raise InputError(f"{self}: {name!r} is {reason}; expected a text")
        return str(value)

    def titled(self, name: str) -> str:
        """A text behind the row's title, if it has one."""
        text = self.text(name)
        title = self.text("title").strip() if self.fields.get("title") is not None else ""
        # Collections whose texts open with the title exist beside those that keep it apart; it counts once.
        return text if text.lstrip().startswith(title) else f"{title} {text}".rstrip()

    def number(self, name: str) -> float:
        """A finite number."""
        value = self.fields[name]
        # A whole number beyond any float would overflow in the conversion.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e300 < value < 1e300:
            raise self.error(name, "a finite number")
        return float(value)

    def binary(self, name: str) -> int:
        """The number 0 or 1."""
        value = self.fields[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value not in (0, 1):
            raise self.error(name, "the number 0 or 1")
        return int(value)

    def grade(self, name: str) -> int:
        """A whole number, 0 or more."""
        number = self.number(name)
        if number < 0 or number != int(number):
            raise self.error(name, "a whole number, 0 or more")
        return int(number)

    def label(self, name: str, expected: str = "the class as a string or a whole number") -> str | int:
        """A string or a whole number."""
        value = self.fields[name]
        if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT:
            # Tables with gaps store whole numbers so.
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise self.error(name, expected)
        return self.text(name) if isinstance(value, str) else value

    def identity(self, name: str) -> str:
        """An id, whole numbers as strings."""
        return str(self.label(name, "an id: a string or a whole number"))


class TaskFile(NamedTuple):
    """The rows of the split that counts."""

    path: Path
    digest: str
    splits: list[str]
    split: str | None
    rows: list[TaskRow]

    def __str__(self) -> str:
        return f"{self.path}, split {self.split!r}" if len(self.splits) > 1 and self.split else str(self.path)

    @property
    def origin(self) -> tuple[tuple[Path, ...], str, str | None]:
        """The first attributes of data that come from this file alone: paths, digest, split."""
        return (self.path,), self.digest, self.split

    def need(self, *names: str, otherwise: str = "") -> None:
        """Every row has these fields."""
        for row in self.rows:
            row.need(*names, otherwise=otherwise)

    def texts(self, name: str) -> list[str]:
        """A field of every row that holds a text."""
        return [row.text(name) for row in self.rows]

    def by_id(self, text: Callable[[TaskRow, str], str]) -> dict[str, str]:
        """The texts by their rows' ids, none of which may stand twice."""
        found: dict[str, str] = {}
        for row in self.rows:
            if (identity := row.identity("id")) in found:
                raise row.error("id", "an id that no earlier line has")
            found[identity] = text(row, "text")
        return found


def file_and_split(name: str | Path) -> tuple[Path, str | None]:
    """The file that a user named, and the split if one is named behind it, as in ``pairs.jsonl@dev``."""
    path = Path(name).expanduser()
    file, _, split = path.name.rpartition("@")
    if not (file and split) or path.exists():
        return path, None
    return path.with_name(file), split


def read_task_file(path: str | Path, split: str | None = None, default: str | None = None) -> TaskFile:
    """Read the rows of one split, every one of them an object.

    Args:
        path: JSON Lines, also packed (``.gz``, ``.zst``), with the split behind it if need be: ``FILE@SPLIT``.
        split: the split, whatever ``path`` says.
        default: the split that counts in a file that mixes several, where none is named; None takes all rows.

    Raises:
        InputError: the file cannot be read; it has no such split; or it mixes splits without the default one, so that
            all its rows would be read together where one part is meant for training and another for testing.
    """
    path, named = file_and_split(path)
    split = split or named
    digest = file_digest(path, "a JSON Lines file")
    with FILE_KINDS[".jsonl"](path) as file:
        rows = task_rows(file)
    if not rows:
        raise InputError(f"{path} is empty; expected {file.expected}")
    return rows_of_split(path, digest, rows, split, default)


def rows_of_split(path: Path, digest: str, rows: list[TaskRow], split: str | None, default: str | None) -> TaskFile:
    """The rows of one split, as :func:`read_task_file` describes it, of a file whose rows have been read.

    Args:
        path: the file's name.
        digest: of its bytes, see :func:`file_digest`.
        rows: all its rows, at least one.
        split: the split that was asked for.
        default: the split that counts in a file that mixes several, where none is asked for.

    Raises:
        InputError: there is no such split, or the file mixes splits without the default one.
    """
    splits_of_rows = [row.fields.get("split") for row in rows]
    for row, name in zip(rows, splits_of_rows, strict=True):
        if name is not None and not isinstance(name, str):
            raise row.error("split", "the name of a split, a string")
    splits = [name for name in dict.fromkeys(splits_of_rows) if name is not None]
    legal = ", ".join(map(repr, splits)) or "none, for no row has the field 'split'"
    if split is not None and split not in splits:
        raise InputError(f"{path} has no rows of the split {split!r}; its splits are {legal}")
    mixed = len(set(splits_of_rows)) > 1
    if split is None and mixed and default is not None and default not in splits:
        besides = ", besides rows without one" if None in splits_of_rows else ""
        raise InputError(
            f"{path} mixes splits and has no {default!r}: its splits are {legal}{besides}; name the one that counts "
            f"behind the file, as in {path.name}@{splits[0]}"
        )
    chosen = split or (default if mixed else None)
    if chosen is not None:
        rows = [row for row, name in zip(rows, splits_of_rows, strict=True) if name == chosen]
    if mixed and split not in (None, default):
        # The file's digest alone stands for what is read of it when nothing is asked for.
        digest = digest_of(digest, str(split))
    return TaskFile(path, digest, splits, chosen or (None if mixed else splits_of_rows[0]), rows)


def digest_of(*parts: str) -> str:
    """One SHA-256 for data that several parts make up, from their digests in a fixed order."""
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def file_digest(path: Path, expected: str) -> str:
    """SHA-256 of a file, packed or not, as it is stored.

    Args:
        path: its name.
        expected: what should be there.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; expected {expected}") from error


def task_rows(file: RecordReader) -> list[TaskRow]:
    """All rows of a file but those that are blank.

    Raises:
        InputError: the file or a row cannot be read, with what to do where that is known.
    """
    rows = []
    for line, record in file.take():
        if not isinstance(record, str):
            rows.append(TaskRow(file.path, line, record, file.unit))
        elif record not in BLANK:
            head = head_of(file.path)
            advice = (json_hint(file.path, head) if "JSON" in record else None) or hint(file.path, head, record)
            raise InputError(
                f"{file.path}, {file.unit} {line}: {record}; expected {file.expected}{f'; {advice}' if advice else ''}"
            )
    return rows


def shown(value: object) -> str:
    """A value as it stands in the file, cut if it is long."""
    # Parquet holds values that JSON has no words for.
    text = json.dumps(value, ensure_ascii=False, default=str).encode(errors="backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:57]}..."

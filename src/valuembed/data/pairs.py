"""Read what contrastive training learns from: pairs of texts that belong together, and hard negatives beside them.

As with the data of an evaluation, the first unusable row ends the reading: a model trained on what happened to be
readable is not the model that was asked for. What is usable and teaches nothing is left out, and counted.
A file that mixes splits is read as in :mod:`valuembed.data.labelled`, with "train" as the split that counts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valuembed._utils.text import counted
from valuembed.data.compression import extension
from valuembed.data.labelled_rows import TaskRow, file_and_split, file_digest, rows_of_split, shown, task_rows
from valuembed.data.records import FILE_KINDS, Columns
from valuembed.data.tables import UNREADABLE
from valuembed.data.text_rows import is_readable_kind
from valuembed.data.validation import check_file_name
from valuembed.errors import InputError

LAYOUTS = (
    ("anchor", "positive"),
    ("sentence1", "sentence2"),
    ("query", "document"),
    ("query", "positive"),
    ("question", "answer"),
    ("text1", "text2"),
)
"""The columns that are looked for where none are named, in this order: the anchor's, and the positive's."""

IDENTICAL = "the same text on both sides"
DUPLICATE = "the same row as an earlier one"
OTHER_SPLIT = "another split"

# A third sentence is no negative: what it is, its name does not say.
_NEGATIVE = re.compile(r"negative(?:_(\d{1,6}))?")
# Files of scored or labelled pairs have the same columns of texts as files of pairs that all belong together.
_GRADES = ("label", "score")


@dataclass(frozen=True)
class TrainingPairs:
    """Pairs of texts that belong together, each with the same number of hard negatives: none, or some.

    Attributes:
        path: the file.
        digest: SHA-256 of the file, 64 hexadecimal digits; of another split than its default, see
            :func:`valuembed.data.digest_of`.
        split: the split that was read; None when the file names none.
        columns: the file's names of the columns: the anchor's, the positive's, those of hard negatives.
        texts: by the trainer's names of the columns ("anchor", "positive", "negative_1", ...), in this order, as many
            texts as there are pairs.
        dropped: by reason, how many rows were left out; empty when none was.
    """

    path: Path
    digest: str
    split: str | None
    columns: tuple[str, ...]
    texts: Mapping[str, list[str]]
    dropped: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.texts["anchor"])


def read_training_pairs(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> TrainingPairs:
    """Read pairs to train on, every row checked.

    Args:
        path: ``.jsonl``, ``.csv`` or ``.tsv`` (with a header line), each of them also packed (``.gz``, ``.zst``), or
            ``.parquet``; with the split behind it if need be: ``FILE@SPLIT``. Blank lines count as none.
        columns: names of at least two columns: the anchor's, the positive's, then those of hard negatives. None takes
            the first of ``LAYOUTS`` that the file has, with all its columns "negative", "negative_1", "negative_2"...

    Raises:
        InputError: it is no file, cannot be read, is empty, or has other columns; a row is not as expected: broken,
            with a side that is blank or no text, with a negative that is the positive, or, where no columns are named,
            with a label or score other than 1; all pairs are identical on both sides; or it mixes splits without
            "train".
    """
    if columns is not None:
        _check_names(columns)
    check_file_name(path, 'write pairs in memory to a .jsonl file, a line each: {"anchor": ..., "positive": ...}')
    path, split = file_and_split(os.fspath(path))
    # A file that is not there is said to be missing, whatever it would be.
    if path.is_file() and not (is_readable_kind(path) and extension(path) != ".txt"):
        raise InputError(f"{path} has the unknown extension {path.suffix!r}; expected {_LEGAL}")
    digest = file_digest(path, _LEGAL)
    rows = _rows(path, columns)
    file = rows_of_split(path, digest, rows, split, "train")
    first = file.rows[0]
    names = tuple(columns or _default_columns(str(first), list(first.fields)))

    texts: dict[str, list[str]] = {name: [] for name in ("anchor", "positive")}
    texts |= {f"negative_{number}": [] for number in range(1, len(names) - 1)}
    dropped = dict.fromkeys((IDENTICAL, DUPLICATE, OTHER_SPLIT), 0)
    dropped[OTHER_SPLIT] = len(rows) - len(file.rows)
    seen = set()
    for row in file.rows:
        row.need(*names)
        if columns is None:
            _check_default(row, names, first)
        sides = tuple(_side(row, name, negative=at > 1) for at, name in enumerate(names))
        anchor, positive, *negatives = map(fold, sides)
        if positive in negatives:
            name = names[2 + negatives.index(positive)]
            raise row.error(name, f"another text than {names[1]!r}: one to tell apart from it")
        if anchor == positive:
            dropped[IDENTICAL] += 1
        elif sides in seen:
            dropped[DUPLICATE] += 1
        else:
            seen.add(sides)
            for column, text in zip(texts.values(), sides, strict=True):
                column.append(text)
    if not seen:
        raise InputError(
            f"{file}: all {len(file.rows)} pairs have {IDENTICAL}, which teaches nothing; expected pairs of different "
            f"texts in {names[0]!r} and {names[1]!r}"
        )
    counted = {reason: count for reason, count in dropped.items() if count}
    return TrainingPairs(path, file.digest, file.split, names, texts, counted)


def overlap(pairs: TrainingPairs, texts: Iterable[str]) -> list[str]:
    """Which of the texts of an evaluation are trained on, white space and case aside.

    Returns:
        Those of ``texts`` that stand on any side of the pairs, each once, in their order.
    """
    trained = {fold(text).casefold() for side in pairs.texts.values() for text in side}
    return [text for text in dict.fromkeys(texts) if fold(text).casefold() in trained]


def check_batch(pairs: TrainingPairs, batch_size: int) -> None:
    """Raise if the pairs do not fill a batch, or a batch holds nothing to tell a positive apart from.

    Raises:
        InputError: with both numbers, and what to do.
    """
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}: expected a whole number of pairs, 1 or more")
    if len(pairs) < batch_size:
        gone = "".join(f"; left out as {reason}: {count}" for reason, count in pairs.dropped.items())
        raise InputError(
            f"{pairs.path} has {counted(len(pairs), 'pair')}, fewer than one batch of {batch_size:,}; take a batch "
            f"size of at most {len(pairs):,}, or give more pairs{gone}"
        )
    if batch_size == 1 and len(pairs.texts) == 2:
        raise InputError(
            f"{pairs.path} has no hard negatives, so a batch of 1 pair holds nothing to tell its positive apart from; "
            "take a batch size of at least 2"
        )


def fold(text: str) -> str:
    """A text with all its white space as single spaces."""
    return " ".join(text.split())


def _check_names(columns: Sequence[str]) -> None:
    """At least two names, all different."""
    # A string is a sequence of strings, but "ab" does not mean the columns "a" and "b".
    legal = not isinstance(columns, str) and len(columns) >= 2 and all(isinstance(name, str) for name in columns)
    if not legal or len(set(columns)) < len(columns):
        raise InputError(
            f"columns {columns!r}: expected at least two different names: the anchor's, the positive's, then those of "
            "hard negatives"
        )


def _default_columns(where: str, found: Sequence[str]) -> list[str]:
    """The columns to read where none are named."""
    for pair in LAYOUTS:
        if set(pair) <= set(found):
            return [*pair, *_negatives(found)]
    listed = ", ".join(map(repr, found[:20])) + (", ..." if len(found) > 20 else "")
    legal = "; ".join(map(", ".join, LAYOUTS))
    raise InputError(
        f"{where}: the columns are {listed or 'none'}; expected one of: {legal}; each also with negative, or "
        "negative_1, negative_2, ...; or name the columns that hold the pairs"
    )


def _negatives(found: Collection[str]) -> list[str]:
    """The columns of hard negatives, by number."""
    matches = {name: match for name in found if (match := _NEGATIVE.fullmatch(name))}
    return sorted(matches, key=lambda name: (int(matches[name][1] or 0), name))


def _check_default(row: TaskRow, names: Sequence[str], first: TaskRow) -> None:
    """What a row has besides its pair, where no columns were named, agrees with the first row and with a pair."""
    if more := [name for name in _negatives(row.fields) if name not in names]:
        raise row.error(more[0], f"no such field, as in {first.unit} {first.line}: all rows have a negative, or none")
    if names[1] == "positive":
        return
    for grade in _GRADES:
        if grade in row.fields and not _is_one(row.fields[grade]):
            raise row.error(
                grade,
                "1, for each pair is taken for texts that belong together; leave the others out, or, if they all "
                f"belong together, name the columns: {', '.join(names)}",
            )


def _is_one(value: Any) -> bool:
    try:
        return float(value) == 1
    except (TypeError, ValueError, OverflowError):
        return False


def _side(row: TaskRow, name: str, *, negative: bool) -> str:
    """A text that is not blank."""
    value = row.fields[name]
    if value is UNREADABLE:
        raise InputError(f"{row}: {name!r} is not valid UTF-8; expected a text")
    if value is None or (isinstance(value, str) and not value.strip()):
        if negative:
            raise row.error(name, "a text: all rows have all negatives, or none has any")
        raise InputError(f"{row}: {name!r} is {shown(value)}: a one-sided pair; expected a text on both sides")
    if negative and isinstance(value, list):
        raise row.error(name, "one text; several negatives stand in columns negative_1, negative_2, ...")
    return row.text(name)


def _rows(path: Path, columns: Sequence[str] | None) -> list[TaskRow]:
    """All rows of a file: of a table the columns of the pairs, and those that say something about them."""
    kind, is_csv = FILE_KINDS[extension(path)], extension(path) in (".csv", ".tsv")

    def choose(names: list[str]) -> Columns:
        if is_csv and not names:
            raise InputError(f"{path} has a blank first line; expected {_HEADER}")
        sides = columns or _default_columns(f"{path}, line 1" if is_csv else str(path), names)
        remarks = (name for name in ("split", *_GRADES) if name in names and name not in sides)
        return Columns(tuple(sides), rest=tuple(remarks))

    with kind(path, choose, [columns] if columns else LAYOUTS) as file:
        rows = task_rows(file)
    if not rows:
        if file.names is None:
            raise InputError(f"{path} is empty; expected {_HEADER if is_csv else file.expected}")
        below = " below its header" if is_csv else ""
        raise InputError(f"{path} is empty{below}; expected a {file.unit} for each pair")
    return rows


_HEADER = "a header line, then a line for each pair"
_LEGAL = ".jsonl, .csv, .tsv, .parquet, or one of the first three packed as .gz or .zst"

"""Shards: a range of rows of one input as one Parquet file, there whole, rows set aside included, or not at all.

The shard of an input that begins at row ``s`` holds the rows ``s`` to ``s + rows_per_shard``, so which shards there are
is known without reading. The last of an input holds fewer rows, perhaps none, and says so in its name: from the names
in a folder one can tell what is done. A shard is written by whoever holds its lock, under another name, and renamed.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valuembed._utils.atomic import NewFile, fresh_name
from valuembed._utils.locks import Lock
from valuembed.corpus.batches import (
    NOT_STORED,
    CorpusText,
    EncodeBatch,
    batched,
    encode_isolating_failures,
    encode_late,
)
from valuembed.corpus.manifest import Job
from valuembed.data import RowReader, Source, check_unchanged
from valuembed.errors import OutputError
from valuembed.vectors import CHUNK, END, FILE, ID, ROW, START, TEXT, Encoder, VectorWriter

if TYPE_CHECKING:
    from valuembed.tokenization import Cutter

NOTES_KEY = b"valuembed.shard"
REJECTED = "rejected.jsonl"
TEXTS_PER_CALL = 8192
"""Texts given to the model at a time: as many as it sorts by length at a time, so that padding stays small."""

READERS = 8
"""Files whose ends are read at once: on a shared file system most of the time is spent waiting."""

_NAME = re.compile(r"^(?P<key>.+-[0-9a-f]{12})-(?P<start>\d{10,})(?P<last>-last)?\.parquet$")


@dataclass(frozen=True)
class SetAside:
    """A row without a vector.

    Attributes:
        row: its position in the file, from 0, as in the column ``row``.
        line: as a person counts: the line number from 1, for Parquet the row number from 1.
        reason: what is wrong with it.
    """

    row: int
    line: int
    reason: str


@dataclass
class Notes:
    """What a shard says of itself.

    Attributes:
        file: name of the input.
        start: its first row.
        rows: of the input, ``embedded + rejected``.
        embedded: rows that have their vectors.
        rejected: rows set aside.
        vectors: rows of the shard; more than ``embedded`` where texts are cut into chunks.
        truncated: texts of which only the beginning was read.
        tokens: that were computed.
        aside: the rows set aside.
    """

    file: str
    start: int
    rows: int = 0
    embedded: int = 0
    rejected: int = 0
    vectors: int = 0
    truncated: int = 0
    tokens: int = 0
    aside: list[SetAside] = field(default_factory=list)

    def to_metadata(self) -> dict[bytes, bytes]:
        """For the metadata of the shard's file."""
        record = asdict(self)
        # Reasons repeat themselves, and the metadata of a file may not be large.
        aside = json.dumps([list(asdict(row).values()) for row in self.aside]).encode()
        record["aside"] = b64encode(zlib.compress(aside)).decode()
        return {NOTES_KEY: json.dumps(record, ensure_ascii=False).encode()}

    @classmethod
    def read(cls, path: Path) -> Notes:
        """The notes of a finished shard, from its end.

        Raises:
            OutputError: it cannot be read, or holds none.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            record = json.loads(pq.read_metadata(path).metadata[NOTES_KEY])
            aside = json.loads(zlib.decompress(b64decode(record.pop("aside"))))
            return cls(**record, aside=[SetAside(*row) for row in aside])
        except (pa.ArrowInvalid, OSError, KeyError, ValueError, TypeError, zlib.error) as error:
            raise OutputError(f"shard {path} is damaged ({error}); remove it and run the same again") from error


@dataclass(frozen=True)
class Shard:
    """The rows of an input from one on.

    Attributes:
        folder: the job's.
        work: the job's folder for what is not finished.
        source: the input.
        start: its first row.
    """

    folder: Path
    work: Path
    source: Source
    start: int

    @property
    def name(self) -> str:
        """Of its files, without an ending."""
        return f"{self.source.key}-{self.start:010d}"

    def path(self, *, last: bool) -> Path:
        """The finished file, which is called otherwise where it ends its input."""
        return self.folder / f"{self.name}{'-last' if last else ''}.parquet"

    def is_finished(self) -> bool:
        """Whether it is there."""
        return self.path(last=False).exists() or self.path(last=True).exists()

    @contextmanager
    def claimed(self) -> Iterator[bool]:
        """Hold the shard's lock; yields whether it is ours to write: neither finished nor in another's hands."""
        if self.is_finished():
            yield False
            return
        lock = Lock(self.work / f"{self.name}.lock")
        if not lock.acquire():
            yield False
            return
        try:
            # Its last holder may have finished it in between.
            yield not self.is_finished()
        finally:
            lock.release(remove=self.is_finished())


@dataclass
class ShardStatus:
    """Which shards of an input are finished.

    Attributes:
        paths: by their first row.
        last: first row of the one that ends the input; None while it is not there.
    """

    paths: dict[int, Path] = field(default_factory=dict)
    last: int | None = None

    def missing(self, rows_per_shard: int) -> list[int]:
        """First rows of shards that are known to be missing: gaps, and what comes next if the end is not there."""
        end = self.last if self.last is not None else max(self.paths, default=-rows_per_shard) + rows_per_shard
        return [start for start in range(0, end + 1, rows_per_shard) if start not in self.paths]

    def is_complete(self, rows_per_shard: int) -> bool:
        """Whether every shard is there, the last one included."""
        return self.last is not None and not self.missing(rows_per_shard)


def standings(folder: Path) -> dict[str, ShardStatus]:
    """What is finished in a job's folder, by the keys of its inputs; from the names of files alone."""
    found: dict[str, ShardStatus] = {}
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise OutputError(f"cannot read {folder}: {error.strerror or error}") from error
    for name in names:
        if match := _NAME.match(name):
            standing = found.setdefault(match["key"], ShardStatus())
            standing.paths[int(match["start"])] = folder / name
            if match["last"]:
                standing.last = int(match["start"])
    return found


def read_notes(paths: list[Path]) -> Iterator[Notes]:
    """The notes of finished shards, in order; a few are read ahead."""
    with ThreadPoolExecutor(READERS) as pool:
        for first in range(0, len(paths), 8 * READERS):
            yield from pool.map(Notes.read, paths[first : first + 8 * READERS])


def write_shard(
    job: Job,
    model: Encoder,
    shard: Shard,
    reader: RowReader,
    cutter: Cutter | None = None,
    step: Callable[[Notes], object] = lambda notes: None,
) -> Notes:
    """Embed the next rows of an input into the file of their shard, whose lock is held.

    Args:
        job: the job.
        model: what embeds.
        shard: what is written.
        reader: stands at the shard's first row.
        cutter: cuts texts into chunks.
        step: called with the notes so far after each call of the model.

    Returns:
        What the finished shard says of itself. It is the last one of its input if it holds fewer rows than fit.

    Raises:
        OutputError: it cannot be written. Here as with every error, nothing is left of it.
        InputError: the input is damaged, or changes while it is read.
        ReadingError: the model does not give what it should.
    """
    settings = job.settings
    assert reader.read == shard.start
    notes = Notes(shard.source.name, shard.start)
    columns = {ID: "string" if settings.id_column else "int64", FILE: "string", ROW: "int64"}
    kept = job.kept.schema
    if cutter is not None:
        columns |= dict.fromkeys((CHUNK, START, END), "int32")
    with NewFile(shard.path(last=False), fresh_name(shard.work, shard.name)) as new:
        with VectorWriter(new, job.vector_spec, columns | {TEXT: "string"}, kept) as writer:
            for call in batched(reader.take(settings.rows_per_shard), TEXTS_PER_CALL, cutter):
                _embed(job, model, call, writer, notes)
                step(notes)
            writer.note(notes.to_metadata())
        # What was read of a file that changed meanwhile may be of neither state.
        check_unchanged(shard.source, job.states[shard.source.name])
        new.seal()
        new.target = shard.path(last=notes.rows < settings.rows_per_shard)
        new.commit()
    return notes


def _embed(job: Job, model: Encoder, call: EncodeBatch, writer: VectorWriter, notes: Notes) -> None:
    """One call of the model, its vectors written and its rows counted."""
    aside = {row: SetAside(row, rejected.row, rejected.reason) for row, rejected in call.aside.items()}
    if call.texts:
        width = len(job.vector_spec.probe)
        if job.settings.late:
            encoded = encode_late(model, call.texts, width)
        else:
            encoded = encode_isolating_failures(model, [text.text for text in call.texts], width)
        not_stored = (~job.vector_spec.fits(encoded.vectors)).nonzero()[0].tolist()
        faults = dict.fromkeys(not_stored, f"its embedding {NOT_STORED}") | encoded.faults
        for at, reason in faults.items():
            text = call.texts[at]
            aside[text.row] = SetAside(text.row, text.line, reason)
        # A row is embedded whole or not at all.
        whole = [at for at, text in enumerate(call.texts) if text.row not in aside]
        if whole:
            texts = [call.texts[at] for at in whole]
            kept = job.kept.arrays([text.kept for text in texts], notes.file)
            writer.write(
                _columns(texts, notes.file, job.settings.chunk is not None),
                job.vector_spec.pack(encoded.vectors[whole]),
                kept,
            )
        notes.vectors += len(whole)
        notes.tokens += encoded.tokens
        notes.truncated += encoded.truncated
    notes.aside += [aside[row] for row in sorted(aside)]
    notes.rows += call.rows
    notes.rejected += len(aside)
    notes.embedded += call.rows - len(aside)


def _columns(texts: list[CorpusText], file: str, in_chunks: bool) -> dict[str, list[Any]]:
    chunks = {
        CHUNK: [text.chunk for text in texts],
        START: [text.start for text in texts],
        END: [text.end for text in texts],
    }
    return {
        ID: [text.id for text in texts],
        FILE: [file] * len(texts),
        ROW: [text.row for text in texts],
        **(chunks if in_chunks else {}),
        TEXT: [text.text for text in texts],
    }

"""Embed a corpus: files of any number and size into a folder of shards, which can be killed at any moment and goes on.

Any number of processes, on any machines that see the folder, may run the same job at once. Each takes inputs that
nobody is at; when none is left, it helps where shards are in nobody's hands; and in the end it waits for those that
others have, and takes over what is left behind by one that died.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from valuembed.calls import warn_of_truncation
from valuembed.errors import InputError, OutputError
from valuembed.inputs import MAX_TEXT_BYTES
from valuembed.locks import Lock
from valuembed.manifest import Job, Settings, check_folder, note_complete, open_job, read_manifest, recorded_sources
from valuembed.new_file import NewFile, fresh_name
from valuembed.one_file import EmbedSummary, check_files, embed_file, rejected_path
from valuembed.progress import Progress, Watch
from valuembed.rows import Rejected, Row, RowReader, check_columns, read_rows
from valuembed.shards import REJECTED, Notes, Shard, Standing, read_notes, standings, write_shard
from valuembed.sources import Source, find_sources
from valuembed.storage import Encoder, Make

if TYPE_CHECKING:
    from valuembed.chunks import Cutter

__all__ = [
    "CorpusSummary",
    "EmbedSummary",
    "Rejected",
    "Row",
    "check_corpus",
    "check_files",
    "embed_corpus",
    "embed_file",
    "embed_source",
    "read_rows",
    "rejected_path",
]

ROWS_PER_SHARD = 16_384
"""What a run that is killed loses at most; and with vectors 1024 wide, a shard of 64 MB."""

CHUNKED_ROWS_PER_SHARD = 1024
"""The same for documents that are cut: each may have many vectors."""

MOST_ROWS_PER_SHARD = 1_000_000
MAX_DOCUMENT_BYTES = 16_000_000
"""A text that is cut into chunks has to be shorter than this in UTF-8."""

POLL_SECONDS = 2.0
"""Between two looks at whether other processes have finished, or died with work in hand."""


@dataclass(frozen=True)
class CorpusSummary:
    """What a folder of shards holds when a run has ended.

    Attributes:
        inputs: files, those of earlier runs included.
        shards: finished.
        rows: of the inputs; ``rows == embedded + rejected``.
        embedded: rows that have their vectors.
        rejected: rows set aside, listed in ``rejected.jsonl`` when there are any.
        vectors: more than ``embedded`` where texts were cut into chunks.
        truncated: texts of which only the beginning was read.
        tokens: that were computed.
        width: of a vector, in numbers of it.
        precision: in which they are stored.
        unfinished: inputs of earlier runs, not given to this one, of which shards are missing.
        run: this run's own share, and its pace.
    """

    inputs: int
    shards: int
    rows: int
    embedded: int
    rejected: int
    vectors: int
    truncated: int
    tokens: int
    width: int
    precision: str
    unfinished: tuple[str, ...]
    run: Progress


def embed_corpus(
    model: Encoder,
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    text_column: str | None = None,
    id_column: str | None = None,
    precision: str = "float32",
    dim: int | None = None,
    chunk: int | None = None,
    overlap: int = 0,
    rows_per_shard: int | None = None,
    progress: bool | Callable[[Progress], object] = True,
) -> CorpusSummary:
    """Embed every text of files and folders as documents, into a folder of Parquet files; go on where it was left.

    The same call does what is missing, whenever it is made: after a crash, beside other processes with the same
    output, or with inputs added. It returns when every shard of its inputs is there, also those that others write.
    What ends it early, Ctrl-C included, costs no more than the shard at hand.

    The folder holds ``*.parquet``, each complete by itself, with the columns ``id`` (string, or int64 row number
    without an id column), ``file``, ``row``, for texts in chunks ``chunk``, ``start`` and ``end``, then ``text`` and
    ``embedding``; ``manifest.json``; and ``rejected.jsonl``, if rows were set aside.

    Args:
        model: what :func:`valuembed.load` returns.
        inputs: one or several files, folders and patterns, see :func:`valuembed.sources.find_sources` and
            :func:`read_rows`.
        output: the folder; it is made if need be.
        text_column, id_column: see :func:`read_rows`; the same for all inputs.
        precision: how numbers are stored, see :data:`valuembed.precision.PRECISIONS`.
        dim: keep so many numbers of each vector, which is scaled to length 1 again; None is all.
        chunk: cut texts into chunks of at most so many tokens, each with its own vector; None embeds them whole.
        overlap: tokens that a chunk shares with the one before.
        rows_per_shard: rows of an input in one file of the output; None is 16,384, or 1,024 with ``chunk``.
        progress: True shows where it stands on stderr, as a bar on a terminal, else as a line a minute; or what is
            called with a :class:`valuembed.progress.Progress` after each step.

    Raises:
        InputError: an input cannot be read or lacks a column, changed since shards were made of it, or changes now.
            What is found out about one in the middle of the work is told when the others are done.
        OutputError: the folder was begun with other settings, cannot be written, or the disk is full.
        ReadingError: the model does not give what it should.
    """
    if rows_per_shard is None:
        rows_per_shard = ROWS_PER_SHARD if chunk is None else CHUNKED_ROWS_PER_SHARD
    if not 1 <= rows_per_shard <= MOST_ROWS_PER_SHARD:
        raise InputError(f"rows_per_shard={rows_per_shard} has to be 1 to {MOST_ROWS_PER_SHARD:,}")
    sources, passed_over = _check(inputs, output, text_column, id_column)
    if passed_over:
        named = ", ".join(passed_over[:5]) + (", ..." if len(passed_over) > 5 else "")
        warnings.warn(f"{len(passed_over)} files are of no kind that is read: {named}", UserWarning, stacklevel=2)
    cutter = _cutter(model, chunk, overlap)
    settings = Settings.of(
        model,
        text_column=text_column,
        id_column=id_column,
        chunk=chunk,
        overlap=overlap,
        rows_per_shard=rows_per_shard,
    )
    job = open_job(Path(output), Make.of(model, precision, dim), settings, sources)
    watch = Watch({name: state.size for name, state in job.states.items()}, progress)
    try:
        with closing(watch):
            _embed_all(job, model, cutter, watch)
        summary = _account(job, watch.now())
    except OutputError as error:
        raise OutputError(f"{error}; finished shards are kept, the same command goes on from there") from error
    warn_of_truncation(watch.truncated, watch.embedded)
    return summary


def check_corpus(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    text_column: str | None = None,
    id_column: str | None = None,
) -> list[Source]:
    """Raise what :func:`embed_corpus` would raise before it embeds a row: worth calling before a model is loaded.

    Returns:
        The files that the inputs mean.

    Raises:
        InputError: see :func:`embed_corpus`.
        OutputError: see :func:`embed_corpus`.
    """
    return _check(inputs, output, text_column, id_column)[0]


def _check(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    text_column: str | None,
    id_column: str | None,
) -> tuple[list[Source], list[str]]:
    """Files that are read, and names of those that are not."""
    given = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
    folder = check_folder(output)
    read_manifest(folder)
    sources, passed_over = find_sources(given, folder, text_column, id_column)
    for source in sources:
        check_columns(source.path, text_column, id_column)
    return sources, passed_over


def embed_source(
    job: Job,
    model: Encoder,
    source: Source,
    cutter: Cutter | None = None,
    watch: Watch | None = None,
    standing: Standing | None = None,
) -> None:
    """Go through one input of a job and write those of its shards that are neither finished nor in another's hands.

    The input is read once; rows of other shards are passed over. Any number of processes may do the same at once.

    Args:
        job: the job.
        model: what embeds.
        source: one of the job's.
        cutter: as the job's settings ask for.
        watch: told of every step.
        standing: what was finished of the input when somebody last looked; it spares reading what is behind the last
            shard that is missing.

    Raises:
        InputError, OutputError, ReadingError: as :func:`embed_corpus`.
    """
    settings = job.settings
    watch = watch or Watch({source.name: job.states[source.name].size}, False)
    size = settings.rows_per_shard
    # Which shard is the last that is missing is known only where the input's end is.
    final = max(standing.missing(size), default=-1) if standing and standing.last is not None else None
    max_bytes = MAX_TEXT_BYTES if cutter is None else MAX_DOCUMENT_BYTES
    with RowReader(source.path, settings.text_column, settings.id_column, max_bytes=max_bytes) as reader:
        for start in count(0, size):
            if final is not None and start > final:
                break
            shard = Shard(job.folder, job.work, source, start)
            with shard.claimed() as mine:
                if mine:
                    notes = write_shard(job, model, shard, reader, cutter, _steps(watch, source, reader))
                    rows = notes.rows
            if not mine:
                rows = reader.skip(size)
                watch.passed(source.name, reader.share)
            if rows < size:
                break
    watch.passed(source.name, 1.0)


def _steps(watch: Watch, source: Source, reader: RowReader) -> Callable[[Notes], None]:
    """Tell a watch what each call of the model added to a shard's notes."""
    told = {"embedded": 0, "rejected": 0, "truncated": 0, "tokens": 0}

    def step(notes: Notes) -> None:
        now = {name: getattr(notes, name) for name in told}
        watch.done(source.name, reader.share, **{name: now[name] - told[name] for name in told})
        told.update(now)

    return step


def _cutter(model: Encoder, chunk: int | None, overlap: int) -> Cutter | None:
    if chunk is None:
        if overlap:
            raise InputError(f"overlap={overlap} is between chunks; give chunk too")
        return None
    from valuembed.chunks import Cutter

    return Cutter.of(model, chunk, overlap)


def _embed_all(job: Job, model: Encoder, cutter: Cutter | None, watch: Watch) -> None:
    """Every input of a run, until nothing is missing."""
    broken: dict[str, InputError] = {}

    def left() -> list[tuple[Source, Standing]]:
        return [(source, standing) for source, standing in _unfinished(job, watch) if source.name not in broken]

    def attempt(source: Source, standing: Standing) -> None:
        try:
            embed_source(job, model, source, cutter, watch, standing)
        except InputError as error:
            broken[source.name] = error

    # First those that nobody is at.
    for source, standing in left():
        with _alone_at(job, source, standing) as alone:
            if alone:
                attempt(source, standing)
    # Then together with whoever is.
    for source, standing in left():
        attempt(source, standing)
    while waiting := left():
        watch.wait()
        time.sleep(POLL_SECONDS)
        for source, standing in waiting:
            if _has_free_shard(job, source, standing):
                attempt(source, standing)
    if broken:
        others = len(job.sources) - len(broken)
        raise InputError(
            f"{len(broken)} of {len(job.sources)} inputs could not be read to their end, the other {others} are done: "
            f"{'; '.join(map(str, broken.values()))}; shards finished before are kept"
        )


def _unfinished(job: Job, watch: Watch) -> list[tuple[Source, Standing]]:
    """Inputs of which shards are missing, and what is finished of them."""
    found = standings(job.folder)
    left = []
    for source in job.sources:
        standing = found.get(source.key, Standing())
        if standing.is_complete(job.settings.rows_per_shard):
            watch.passed(source.name, 1.0)
        else:
            left.append((source, standing))
    return left


@contextmanager
def _alone_at(job: Job, source: Source, standing: Standing) -> Iterator[bool]:
    """Keep others from beginning with an input; yields whether nobody else is at it, nor was since somebody looked."""
    lock = Lock(job.work / f"{source.key}.lock")
    if not lock.acquire():
        yield False
        return
    try:
        first = standing.missing(job.settings.rows_per_shard)[0]
        yield not Shard(job.folder, job.work, source, first).is_finished()
    finally:
        lock.release(remove=True)


def _has_free_shard(job: Job, source: Source, standing: Standing) -> bool:
    """Whether a shard of an input is missing and in nobody's hands."""
    for start in standing.missing(job.settings.rows_per_shard):
        with Shard(job.folder, job.work, source, start).claimed() as free:
            if free:
                return True
    return False


def _account(job: Job, run: Progress) -> CorpusSummary:
    """Add up what all shards of the job say of themselves, and list the rows that they set aside."""
    counts = dict.fromkeys(("rows", "embedded", "rejected", "vectors", "truncated", "tokens"), 0)
    # One at a time, so that the list of whoever looked last is the one that stays.
    with Lock(job.work / "account.lock"), NewFile(job.folder / REJECTED, fresh_name(job.work, REJECTED)) as rejects:
        record = read_manifest(job.folder)
        sources = recorded_sources(record) if record else []
        found = standings(job.folder)
        standing = {source.name: found.get(source.key, Standing()) for source in sources}
        paths = [path for of_source in standing.values() for path in of_source.paths.values()]
        for notes in read_notes(paths):
            for name in counts:
                counts[name] += getattr(notes, name)
            for row in notes.aside:
                rejects.write(json.dumps({"file": notes.file, **asdict(row)}, ensure_ascii=False).encode() + b"\n")
        rejects.seal()
        if counts["rejected"]:
            rejects.commit()
        else:
            (job.folder / REJECTED).unlink(missing_ok=True)
        size = job.settings.rows_per_shard
        unfinished = tuple(name for name, of_source in standing.items() if not of_source.is_complete(size))
        if not unfinished:
            note_complete(job, counts)
    return CorpusSummary(
        inputs=len(sources),
        shards=len(paths),
        **counts,
        width=job.make.width,
        precision=job.make.precision,
        unfinished=unfinished,
        run=run,
    )

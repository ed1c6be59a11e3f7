"""How processes share a job on a corpus: which shards each of them takes, so that all are written and none twice.

A process first takes inputs that nobody is at, and then helps where shards are in nobody's hands. What keeps them apart
is a lock on each shard, which goes when its process dies: what that leaves behind is free again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from valuembed._utils.locks import Lock
from valuembed._utils.progress import ProgressTracker
from valuembed.corpus.manifest import Job
from valuembed.corpus.shards import Notes, Shard, ShardStatus, standings, write_shard
from valuembed.data import MAX_TEXT_BYTES, RowReader, Source
from valuembed.errors import InputError
from valuembed.vectors import Encoder

if TYPE_CHECKING:
    from valuembed.tokenization import Cutter

MAX_DOCUMENT_BYTES = 16_000_000
"""A text that is cut into chunks has to be shorter than this in UTF-8."""


@dataclass(frozen=True)
class Finished:
    """A shard that was written.

    Attributes:
        name: of its input.
        share: of the input that is behind, from 0 to 1.
        counts: ``embedded``, ``rejected``, ``truncated`` and ``tokens``.
    """

    name: str
    share: float
    counts: dict[str, int]


def embed_source(
    job: Job,
    model: Encoder,
    source: Source,
    cutter: Cutter | None = None,
    watch: ProgressTracker | None = None,
    standing: ShardStatus | None = None,
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
        InputError, OutputError, ReadingError: see :func:`valuembed.corpus.embed_corpus`.
    """
    watch = watch or ProgressTracker({source.name: job.states[source.name].size}, False)
    for _ in _embed_source(job, model, source, cutter, watch, standing or ShardStatus()):
        pass


def _embed_source(
    job: Job, model: Encoder, source: Source, cutter: Cutter | None, watch: ProgressTracker, standing: ShardStatus
) -> Iterator[Finished]:
    settings = job.settings
    size = settings.rows_per_shard
    # Which shard is the last that is missing is known only where the input's end is.
    final = max(standing.missing(size), default=-1) if standing.last is not None else None
    max_bytes = MAX_TEXT_BYTES if cutter is None else MAX_DOCUMENT_BYTES
    with RowReader(
        source.path, settings.text_column, settings.id_column, keep=job.kept.names, max_bytes=max_bytes
    ) as reader:
        for start in count(0, size):
            if final is not None and start > final:
                break
            shard = Shard(job.folder, job.work, source, start)
            with shard.claimed() as mine:
                if mine:
                    notes = write_shard(job, model, shard, reader, cutter, _steps(watch, source, reader))
                    rows = notes.rows
            if mine:
                yield Finished(source.name, reader.share, _counts(notes))
            else:
                rows = reader.skip(size)
                watch.passed(source.name, reader.share)
            if rows < size:
                break
    watch.passed(source.name, 1.0)


def _counts(notes: Notes) -> dict[str, int]:
    return {name: getattr(notes, name) for name in ("embedded", "rejected", "truncated", "tokens")}


def _steps(watch: ProgressTracker, source: Source, reader: RowReader) -> Callable[[Notes], None]:
    """Tell a watch what each call of the model added to a shard's notes."""
    told = {"embedded": 0, "rejected": 0, "truncated": 0, "tokens": 0}

    def step(notes: Notes) -> None:
        now = _counts(notes)
        watch.done(source.name, reader.share, **{name: now[name] - told[name] for name in told})
        told.update(now)

    return step


def embed_free(
    job: Job, model: Encoder, cutter: Cutter | None, watch: ProgressTracker, broken: dict[str, InputError]
) -> Iterator[Finished]:
    """Write every shard of a run's inputs that is missing and in nobody's hands.

    Any number of processes may do the same at once. When this has ended, what is missing is in the hands of others, or
    of an input that is broken.

    Args:
        job: the job.
        model: what embeds.
        cutter: as the job's settings ask for.
        watch: told of every step.
        broken: inputs that cannot be read to their end, which are left alone; those that turn out so are entered.

    Yields:
        Each shard that was written.

    Raises:
        OutputError, ReadingError: see :func:`valuembed.corpus.embed_corpus`.
    """

    def left() -> list[tuple[Source, ShardStatus]]:
        return [(source, standing) for source, standing in unfinished(job, watch) if source.name not in broken]

    def attempt(source: Source, standing: ShardStatus) -> Iterator[Finished]:
        try:
            yield from _embed_source(job, model, source, cutter, watch, standing)
        except InputError as error:
            broken[source.name] = error

    # First those that nobody is at.
    for source, standing in left():
        with _alone_at(job, source, standing) as alone:
            if alone:
                yield from attempt(source, standing)
    # Then together with whoever is.
    for source, standing in left():
        yield from attempt(source, standing)


def unfinished(job: Job, watch: ProgressTracker) -> list[tuple[Source, ShardStatus]]:
    """Inputs of which shards are missing, and what is finished of them."""
    found = standings(job.folder)
    left = []
    for source in job.sources:
        standing = found.get(source.key, ShardStatus())
        if standing.is_complete(job.settings.rows_per_shard):
            watch.passed(source.name, 1.0)
        else:
            left.append((source, standing))
    return left


@contextmanager
def _alone_at(job: Job, source: Source, standing: ShardStatus) -> Iterator[bool]:
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


def has_free_shard(job: Job, source: Source, standing: ShardStatus) -> bool:
    """Whether a shard of an input is missing and in nobody's hands."""
    for start in standing.missing(job.settings.rows_per_shard):
        with Shard(job.folder, job.work, source, start).claimed() as free:
            if free:
                return True
    return False

"""What came of a job on a corpus: what its shards say of themselves, added up."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from valuembed._utils.atomic import NewFile, fresh_name
from valuembed._utils.locks import Lock
from valuembed._utils.progress import Progress
from valuembed.corpus.manifest import Job, note_complete, read_manifest, recorded_sources
from valuembed.corpus.shards import REJECTED, ShardStatus, read_notes, standings
from valuembed.data import BLANK


@dataclass(frozen=True)
class FirstRejected:
    """A row of an input that was set aside.

    Attributes:
        file: name of the input.
        line: number of the row as a person counts.
        reason: what is wrong with it.
    """

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"the first, {self.file}, row {self.line}: {self.reason}"


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
        first_rejected: the first of the rows set aside, with its file; None where there is none.
        barren: inputs that have rows, and none that could be embedded; blank rows do not count.
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
    first_rejected: FirstRejected | None
    barren: tuple[str, ...]
    unfinished: tuple[str, ...]
    run: Progress


def summarize(job: Job, run: Progress) -> CorpusSummary:
    """Add up what all shards of a job say of themselves, and list the rows that they set aside.

    Raises:
        OutputError: a shard is damaged, or the list cannot be written.
    """
    counts = dict.fromkeys(("rows", "embedded", "rejected", "vectors", "truncated", "tokens"), 0)
    first: FirstRejected | None = None
    with_vectors: set[str] = set()
    with_faults: dict[str, None] = {}
    # One at a time, so that the list of whoever looked last is the one that stays.
    with Lock(job.work / "account.lock"), NewFile(job.folder / REJECTED, fresh_name(job.work, REJECTED)) as rejects:
        record = read_manifest(job.folder)
        sources = recorded_sources(record) if record else []
        found = standings(job.folder)
        standing = {source.name: found.get(source.key, ShardStatus()) for source in sources}
        paths = [path for of_source in standing.values() for path in of_source.paths.values()]
        for notes in read_notes(paths):
            for name in counts:
                counts[name] += getattr(notes, name)
            if notes.embedded:
                with_vectors.add(notes.file)
            for row in notes.aside:
                first = first or FirstRejected(notes.file, row.line, row.reason)
                if row.reason not in BLANK:
                    with_faults[notes.file] = None
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
        width=job.vector_spec.width,
        precision=job.vector_spec.precision,
        first_rejected=first,
        barren=tuple(name for name in with_faults if name not in with_vectors),
        unfinished=unfinished,
        run=run,
    )

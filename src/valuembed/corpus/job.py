"""Embed a corpus: files of any number and size into a folder of shards, which can be killed at any moment and goes on.

Any number of processes, on any machines that see the folder, may run the same job at once. Each takes inputs that
nobody is at; when none is left, it helps where shards are in nobody's hands; and in the end it waits for those that
others have, and takes over what is left behind by one that died.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from valuembed._utils.progress import Progress, ProgressTracker
from valuembed._utils.text import counted, inflected
from valuembed.corpus.batches import warn_of_truncation
from valuembed.corpus.claims import MAX_DOCUMENT_BYTES, Finished, embed_free, embed_source, has_free_shard, unfinished
from valuembed.corpus.embed_options import EmbedKwargs, EmbedOptions
from valuembed.corpus.manifest import Job, check_folder, open_job, read_manifest
from valuembed.corpus.single_file import EmbedSummary, check_files, embed_file, rejected_path
from valuembed.corpus.summary import CorpusSummary, summarize
from valuembed.data import Rejected, Row, Source, find_sources, look_for_text, nothing_usable, read_rows
from valuembed.errors import InputError, OutputError
from valuembed.vectors import Encoder

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from valuembed.tokenization import Cutter

__all__ = [
    "CorpusSummary",
    "EmbedSummary",
    "Progress",
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

ROWS_LOOKED_AT = 1000
"""Rows of each input in which a usable one is looked for before any work is done."""

KEPT = "finished shards are kept, the same command goes on from there"
POLL_SECONDS = 2.0
"""Between two looks at whether other processes have finished, or died with work in hand."""


def embed_corpus(
    model: Encoder,
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    progress: bool | Callable[[Progress], object] = True,
    **options: Unpack[EmbedKwargs],
) -> CorpusSummary:
    """Embed every text of files and folders as documents, into a folder of Parquet files; go on where it was left.

    The same call does what is missing, whenever it is made: after a crash, beside other processes with the same
    output, or with inputs added. It returns when every shard of its inputs is there, also those that others write.
    What ends it early, Ctrl-C included, costs no more than the shard at hand.

    The folder holds ``*.parquet``, each complete by itself, with the columns ``id`` (string, or int64 row number
    without an id column), ``file``, ``row``, for texts in chunks ``chunk``, ``start`` and ``end``, then ``text``, the
    columns that are kept, and ``embedding``; ``manifest.json``; and ``rejected.jsonl``, if rows were set aside.

    Args:
        model: what :func:`valuembed.load` returns.
        inputs: one or several files, folders and patterns, see :func:`valuembed.data.find_sources` and
            :func:`read_rows`.
        output: the folder; it is made if need be.
        text_column, id_column: see :func:`read_rows`; the same for all inputs.
        precision: how numbers are stored, see :data:`valuembed.vectors.PRECISIONS`.
        dim: keep so many numbers of each vector, which is scaled to length 1 again; None is all.
        chunk: cut texts into chunks of at most so many tokens, each with its own vector; None embeds them whole.
        overlap: tokens that a chunk shares with the one before.
        late: run each text as a whole, and read its chunks from that pass; for methods that are means over tokens.
        rows_per_shard: rows of an input in one file of the output; None is 16,384, or 1,024 with ``chunk``.
        keep: columns of the inputs to keep, see :mod:`valuembed.vectors.kept_columns`; None is all that the inputs have
            when the job begins, and an empty list none. What a job keeps is settled when it begins.
        progress: True shows where it stands on stderr, as a bar on a terminal, else as a line a minute; or what is
            called with a :class:`valuembed.corpus.Progress` after each step.

    Raises:
        InputError: an input cannot be read, has rows and none that can be used, lacks a column, changed since shards
            were made of it, or changes now; or all inputs are empty. What is found out about one in the middle of the
            work is told when the others are done.
        OutputError: the folder was begun with other settings, cannot be written, or the disk is full.
        ReadingError: the model does not give what it should.
    """
    choices = EmbedOptions.of(options, embed_corpus)
    sources = find_inputs(inputs, output, choices)
    *_, done = run_job(model, sources, Path(output), choices, progress)
    assert isinstance(done, CorpusSummary)
    check_done(Path(output), done)
    warn_of_truncation(done.run.truncated, done.run.embedded)
    return done


def find_inputs(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    choices: EmbedOptions,
) -> list[Source]:
    """The files that the inputs of a job mean, checked; whoever called the caller is warned of those not read.

    Raises:
        InputError, OutputError: see :func:`embed_corpus`.
    """
    sources, passed_over = _check(inputs, output, choices.text_column, choices.id_column)
    if passed_over:
        named = ", ".join(passed_over[:5]) + (", ..." if len(passed_over) > 5 else "")
        warnings.warn(
            f"{counted(len(passed_over), 'file is', 'files are')} of no kind that is read: {named}",
            UserWarning,
            stacklevel=3,
        )
    return sources


def run_job(
    model: Encoder,
    sources: Sequence[Source],
    folder: Path,
    choices: EmbedOptions,
    progress: bool | Callable[[Progress], object] = False,
) -> Iterator[Finished | CorpusSummary]:
    """Join a job, or begin it, and work on it until every shard of these inputs is there; see :func:`embed_corpus`.

    Yields:
        Each shard that was written here; in the end what came of the job.

    Raises:
        InputError, OutputError, ReadingError: see :func:`embed_corpus`.
    """
    vector_spec, settings, cutter = choices.applied_to(model)
    job = open_job(folder, vector_spec, settings, sources, choices.keep)
    watch = ProgressTracker({name: state.size for name, state in job.states.items()}, progress)
    try:
        with closing(watch):
            yield from _embed_all(job, model, cutter, watch)
        yield summarize(job, watch.now())
    except OutputError as error:
        raise OutputError(f"{error}; {KEPT}") from error


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
    record = read_manifest(folder)
    sources, passed_over = find_sources(given, folder, text_column, id_column)
    empty = []
    for source in sources:
        look = look_for_text(
            source.path, text_column, id_column, most_rows=ROWS_LOOKED_AT, max_bytes=MAX_DOCUMENT_BYTES
        )
        look.check()
        empty += [look] if look.is_empty else []
    # One that is empty is fine among others, of this run or of those before.
    if len(empty) == len(sources) and not (
        record and {entry["name"] for entry in record["inputs"]} - {s.name for s in sources}
    ):
        error = nothing_usable(empty[0].path, empty[0].rows, None)
        raise (
            error
            if len(empty) == 1
            else InputError(f"none of the {len(empty)} inputs holds a text; the first: {error}")
        )
    return sources, passed_over


def check_done(folder: Path, done: CorpusSummary) -> None:
    """Raise where a job that ended well gave nothing; warn whoever called the caller of inputs that gave nothing.

    Raises:
        InputError: no row of its inputs could be embedded.
    """
    if not done.embedded and done.rows:
        raise InputError(
            f"none of {counted(done.rows, 'row')} of {counted(done.inputs, 'input')} could be embedded; "
            f"{done.first_rejected}; remove {folder} and give other inputs"
        )
    if done.barren:
        named = ", ".join(done.barren[:5]) + (", ..." if len(done.barren) > 5 else "")
        warnings.warn(
            f"none of the rows of {counted(len(done.barren), 'input')} could be embedded: {named}",
            UserWarning,
            stacklevel=3,
        )


def _embed_all(job: Job, model: Encoder, cutter: Cutter | None, watch: ProgressTracker) -> Iterator[Finished]:
    """Every input of a run, until nothing is missing."""
    broken: dict[str, InputError] = {}
    yield from embed_free(job, model, cutter, watch, broken)
    while waiting := [(source, standing) for source, standing in unfinished(job, watch) if source.name not in broken]:
        watch.wait()
        time.sleep(POLL_SECONDS)
        free = tuple(source for source, standing in waiting if has_free_shard(job, source, standing))
        if free:
            yield from embed_free(replace(job, sources=free), model, cutter, watch, broken)
    if broken:
        others = len(job.sources) - len(broken)
        done = f", {inflected(others, 'the other is', f'the other {others} are')} done" if others else ""
        raise InputError(
            f"{len(broken)} of {counted(len(job.sources), 'input')} could not be read to "
            f"{inflected(len(broken), 'its', 'their')} end{done}: {'; '.join(map(str, broken.values()))}; shards "
            "finished before are kept"
        )

"""Bring a store of passages in step with a folder of documents: what is new or has changed is embedded, all else not.

Passages of many documents are embedded together, in calls that are as large as some seconds of work, and documents that
are done go into the store after each call. Whatever ends a run costs that call alone.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from valuembed._utils.progress import Progress, ProgressTracker
from valuembed._utils.text import counted
from valuembed.corpus import NOT_STORED, encode_isolating_failures, token_counter, warn_of_truncation
from valuembed.corpus.documents.listing import check_documents
from valuembed.corpus.documents.summary import DocumentsSummary, list_rejected
from valuembed.data import check_text
from valuembed.data.documents import DocumentFile, Passage, SetAside, Splitter, read_passages
from valuembed.errors import DocumentError, InputError, MissingExtraError, OutputError
from valuembed.vectors import (
    BETWEEN_HEADINGS,
    DocumentState,
    EmbeddedDocument,
    Encoder,
    PassageRecord,
    PassageStore,
    VectorSpec,
)

PASSAGE_TOKENS = 200
"""Tokens that a passage has at most, unless it is said otherwise."""

HEADINGS_SHARE = 4
"""Title and headings in front of a passage may have a fourth of its tokens on top."""

FIRST_CALL, LARGEST_CALL = 64, 1024
SECONDS_PER_CALL = 20.0
"""Passages of a call of the model: as many as take so long, at the pace of the call before."""

DOCUMENTS_PER_CALL = 4096
"""As many documents at most: there may be many without a passage."""

UNFOUNDED = "the folder cannot be read"
KEPT = "documents that are finished are kept, the same command goes on from there"


@dataclass
class _Waiting:
    """Documents that are read and wait to be embedded."""

    documents: list[tuple[DocumentState, list[Passage]]] = field(default_factory=list)
    passages: int = 0

    def add(self, state: DocumentState, passages: list[Passage]) -> None:
        self.documents.append((state, passages))
        self.passages += len(passages)


@dataclass
class _Counts:
    """What a run did."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    embedded: int = 0
    truncated: int = 0
    tokens: int = 0
    unsettled: dict[str, str] = field(default_factory=dict)
    touched: list[DocumentState] = field(default_factory=list)


def update_documents(
    model: Encoder,
    folder: str | os.PathLike[str],
    store: PassageStore,
    *,
    chunk: int | None = None,
    precision: str | None = None,
    dim: int | None = None,
    progress: bool | Callable[[Progress], object] = True,
) -> DocumentsSummary:
    """Embed the documents of a folder, passage by passage, or bring up to date what was embedded of them.

    The same call does what is missing: documents that are new, or whose content has changed, are read, cut and
    embedded; passages of those that are gone are removed; all others stay as they are, also where a file was merely
    touched. A document that cannot be read is set aside with its reason, and looked at again once it changes. A call
    that is killed leaves what it had finished, and the next one goes on there.

    A passage is embedded with the document's title and the headings that it stands under in front of it.

    Args:
        model: what :func:`valuembed.load` returns.
        folder: of documents, see :func:`valuembed.data.documents.find_documents`; or one document.
        store: :class:`valuembed.corpus.documents.PassageFolder` or :class:`valuembed.search.PassageIndex`.
        chunk: tokens of a passage at most. Here as below, None is what the store was begun with, at first 200.
        precision: how numbers are stored, see :data:`valuembed.vectors.PRECISIONS`; at first ``float32``.
        dim: keep so many numbers of each vector, which is scaled to length 1 again; at first all.
        progress: see :func:`valuembed.embed_corpus`.

    Raises:
        InputError: there is no such folder, it holds no document, none of them can be read, or it vanishes.
        OutputError: the store was begun with another model or other settings, another process is writing it, or the
            disk is full.
        ReadingError: the model does not give what it should.
    """
    begun = time.perf_counter()
    given = Path(folder)
    found, aside = check_documents(given, store)
    known = store.recorded()
    chunk = chunk if chunk is not None else known.settings.get("chunk", PASSAGE_TOKENS) if known else PASSAGE_TOKENS
    precision = precision or (known.vector_spec.precision if known else "float32")
    dim = dim or (known.vector_spec.dim if known else None)
    room = chunk // HEADINGS_SHARE
    count_tokens = token_counter(model, chunk, room)
    settings = {"chunk": chunk, "dtype": model.compute_dtype, "max_tokens": model.max_seq_length}
    record = PassageRecord(VectorSpec.of(model, precision, dim), settings)
    counts = _Counts()
    try:
        with store.writing(record, given):
            held = store.documents()
            changed = [file for file in found if not _is_as_it_was(file, held.get(file.name))]
            counts.unchanged = len(found) - len(changed)
            watch = ProgressTracker({file.name: file.size for file in changed}, progress, unit="passage")
            with closing(watch):
                worker = _Worker(model, record.vector_spec, store, watch, counts, room, count_tokens)
                worker.run(_read_all(given, changed, held, Splitter(chunk, count_tokens), watch, counts))
            if counts.touched:
                store.note(counts.touched)
            gone = _gone(held, found, aside)
            if gone:
                store.remove(gone)
                counts.removed = len(gone)
            store.finish(lambda what: None)
            states = store.documents()
            unread = {name: state.reason for name, state in states.items() if state.reason is not None}
            # Documents first: that a file is of a kind that nothing reads is no news.
            rejected = {**counts.unsettled, **unread}
            rejected |= {one.name: one.reason for one in aside if one.name not in rejected}
            list_rejected(store.rejected_path, rejected)
            passages = store.count()
    except OutputError as error:
        raise OutputError(f"{error}; {KEPT}") if counts.embedded else error from error
    first = next((f"{name}: {reason}" for name, reason in rejected.items()), None)
    documents = sum(state.passages > 0 for state in states.values())
    if not documents:
        raise InputError(
            f"none of {counted(len(found), 'document')} of {given} could be embedded; the first: {first}; all are "
            f"listed in {store.rejected_path}"
        )
    warn_of_truncation(counts.truncated, counts.embedded)
    return DocumentsSummary(
        documents=documents,
        passages=passages,
        added=counts.added,
        changed=counts.changed,
        removed=counts.removed,
        unchanged=counts.unchanged,
        rejected=len(rejected),
        embedded=counts.embedded,
        truncated=counts.truncated,
        tokens=counts.tokens,
        seconds=time.perf_counter() - begun,
        width=record.vector_spec.width,
        precision=record.vector_spec.precision,
        first_rejected=first,
    )


def _is_as_it_was(file: DocumentFile, known: DocumentState | None) -> bool:
    return known is not None and (known.size, known.modified, known.try_again) == (file.size, file.modified, False)


def _gone(held: Mapping[str, DocumentState], found: Sequence[DocumentFile], aside: Sequence[SetAside]) -> list[str]:
    """Documents that are held and are no longer there; one whose folder cannot be read may be."""
    there = {file.name for file in found}
    closed = tuple(f"{one.name}/" for one in aside if one.reason.startswith(UNFOUNDED))
    return [name for name in held if name not in there and not name.startswith(closed)]


def _read_all(
    folder: Path,
    files: Sequence[DocumentFile],
    held: Mapping[str, DocumentState],
    splitter: Splitter,
    watch: ProgressTracker,
    counts: _Counts,
) -> Iterator[tuple[DocumentState, list[Passage]]]:
    """The documents that are new or have changed, cut into passages, or with the reason why they are not."""
    for file in files:
        known = held.get(file.name)
        done = _read(folder, file, known, splitter)
        if isinstance(done, str):
            counts.unsettled[file.name] = done
            watch.passed(file.name, 1)
            continue
        state, passages = done
        if passages is None:
            counts.touched.append(state)
            counts.unchanged += 1
            watch.passed(file.name, 1)
            continue
        counts.changed += known is not None
        counts.added += known is None
        yield state, passages


def _read(
    folder: Path, file: DocumentFile, known: DocumentState | None, splitter: Splitter
) -> tuple[DocumentState, list[Passage] | None] | str:
    """The state of a document, with its passages, or None for those that are held already.

    Of one that changes while it is read, what is the matter.

    Raises:
        InputError: the folder is gone.
    """
    for _ in range(2):
        try:
            digest = _digest(file.path)
            if known is not None and known.digest == digest and not known.try_again:
                return replace(known, size=file.size, modified=file.modified), None
            state = DocumentState(file.name, file.size, file.modified, digest)
            result = _passages(file, state, splitter)
            now = file.path.stat()
        except OSError as error:
            if not folder.exists():
                raise InputError(f"{folder} is gone since this run began; {KEPT}") from error
            if isinstance(error, PermissionError):
                reason = f"cannot be read: {error.strerror}"
                return DocumentState(file.name, file.size, file.modified, "", 0, reason, try_again=True), []
            return f"gone since it was found: {error.strerror or error}; run the same command again"
        if (now.st_size, now.st_mtime_ns) == (file.size, file.modified):
            return result
        file = replace(file, size=now.st_size, modified=now.st_mtime_ns)
    return "it changed while it was read; run the same command again"


def _passages(file: DocumentFile, state: DocumentState, splitter: Splitter) -> tuple[DocumentState, list[Passage]]:
    try:
        passages = read_passages(file, splitter)
    except MissingExtraError as error:
        return replace(state, reason=str(error), try_again=True), []
    except DocumentError as error:
        return replace(state, reason=str(error)), []
    return replace(state, passages=len(passages)), passages


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def embedded_text(passage: Passage, room: int, count_tokens: Callable[[str], int]) -> str:
    """What is given to the model for a passage: title and headings, then its text.

    Args:
        passage: the passage.
        room: tokens that title and headings may have; of longer ones the last headings are taken that fit.
        count_tokens: counts them.
    """
    trail = list(passage.headings)
    if passage.title and passage.title not in trail[:1]:
        trail.insert(0, passage.title)
    while trail and count_tokens(shown := BETWEEN_HEADINGS.join(trail)) > room:
        trail.pop(0)
    return f"{shown}\n\n{passage.text}" if trail else passage.text


class _Worker:
    """Embeds documents and puts them into a store, some at a time."""

    def __init__(
        self,
        model: Encoder,
        vector_spec: VectorSpec,
        store: PassageStore,
        watch: ProgressTracker,
        counts: _Counts,
        room: int,
        count_tokens: Callable[[str], int],
    ) -> None:
        self.model, self.vector_spec, self.store = model, vector_spec, store
        self.watch, self.counts = watch, counts
        self.room, self.count_tokens = room, count_tokens
        self.size = FIRST_CALL

    def run(self, documents: Iterator[tuple[DocumentState, list[Passage]]]) -> None:
        """Embed all of them."""
        waiting = _Waiting()
        for state, passages in documents:
            waiting.add(state, passages)
            if waiting.passages >= self.size or len(waiting.documents) >= DOCUMENTS_PER_CALL:
                self._put(waiting)
                waiting = _Waiting()
        if waiting.documents:
            self._put(waiting)

    def _put(self, waiting: _Waiting) -> None:
        """Embed what waits, and put it into the store."""
        passages = [passage for _, some in waiting.documents for passage in some]
        vectors, faults, tokens, truncated = self._encode(passages)
        done, at = [], 0
        for state, some in waiting.documents:
            wrong = {n: faults[at + n] for n in range(len(some)) if at + n in faults}
            fine = [n for n in range(len(some)) if n not in wrong]
            if wrong:
                reason = f"{counted(len(wrong), 'passage')} of {len(some):,} left out: {next(iter(wrong.values()))}"
                state = replace(state, passages=len(fine), reason=reason)
            kept = vectors[[at + n for n in fine]] if len(passages) else vectors
            done.append(EmbeddedDocument(state, [some[n] for n in fine], self.vector_spec.pack(kept)))
            at += len(some)
        self.store.put(done)
        self.counts.embedded += len(passages) - len(faults)
        self.counts.truncated += truncated
        self.counts.tokens += tokens
        self.watch.all_done(
            {document.state.name: 1.0 for document in done},
            embedded=len(passages) - len(faults),
            rejected=len(faults),
            truncated=truncated,
            tokens=tokens,
        )

    def _encode(self, passages: Sequence[Passage]) -> tuple[Any, dict[int, str], int, int]:
        """Vectors float32 ``[b, m]`` of passages, why some have none, and the counts of tokens and of cut texts."""
        import numpy as np

        width = len(self.vector_spec.probe)
        vectors = np.zeros((len(passages), width), np.float32)
        texts = [embedded_text(passage, self.room, self.count_tokens) for passage in passages]
        faults = {at: reason for at, text in enumerate(texts) if (reason := check_text(text))}
        fine = [at for at in range(len(texts)) if at not in faults]
        tokens = truncated = 0
        for first in range(0, len(fine), LARGEST_CALL):
            some = fine[first : first + LARGEST_CALL]
            begun = time.perf_counter()
            encoded = encode_isolating_failures(self.model, [texts[at] for at in some], width)
            pace = len(some) / max(time.perf_counter() - begun, 1e-3)
            self.size = int(min(max(FIRST_CALL, pace * SECONDS_PER_CALL), LARGEST_CALL))
            vectors[some] = encoded.vectors
            faults |= {some[at]: reason for at, reason in encoded.faults.items()}
            tokens += encoded.tokens
            truncated += encoded.truncated
        unfit = [at for at in fine if at not in faults]
        if unfit:
            fits = self.vector_spec.fits(vectors[unfit])
            faults |= {at: f"its embedding {NOT_STORED}" for at, fit in zip(unfit, fits, strict=True) if not fit}
        return vectors, faults, tokens, truncated

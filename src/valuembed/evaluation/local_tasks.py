"""Tasks to evaluate on: local files as real mteb task classes, and mteb's own tasks by name.

A local task differs from a published one in where its data comes from and in nothing else: metrics, seeds and settings
are mteb's, so are the fields of its results. The files are read and checked when the task is made, before any model is
loaded.

**Cache key.** The task's revision is the SHA-256 of its files. mteb's result cache does not look at it once a result is
complete, so the name carries the first digits of it too: a changed file is another task.
"""

from __future__ import annotations

import difflib
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from valuembed._utils.optional import require
from valuembed.data import (
    LabelledFile,
    TaskData,
    digest_of,
    read_labelled,
    read_pairs,
    read_reranking,
    read_retrieval,
    read_scored,
    splits_of,
)
from valuembed.errors import InputError

if TYPE_CHECKING:
    from mteb import AbsTask

ALL_ROWS = "all"
"""Name of the split of a file that names none, or whose splits are read together."""


def parse_task(spec: str) -> AbsTask:
    """The task that a user named.

    Args:
        spec: a local form of :data:`FORMS`, if need be with a split (``sts:pairs.jsonl@dev``), or a task of mteb.

    Raises:
        InputError: the form is unknown or has another number of files, a file is not as expected, mteb knows no task of
            this name, or the task is not about texts.
        MissingExtraError: mteb is not installed.
    """
    name, colon, rest = spec.partition(":")
    if not colon:
        return _published(spec)
    if name not in _LOCAL:
        raise InputError(
            f"task {spec!r}: unknown kind {name!r}; legal: {', '.join(FORMS)}, or the name of an mteb task"
        )
    local = _LOCAL[name]
    # A single file may have a comma in its name.
    files = [file.strip() for file in ([rest] if local.counts == (1,) else rest.split(","))]
    if len(files) not in local.counts or not all(files):
        given = [file for file in files if file]
        raise InputError(f"task {spec!r}: expected {local.form}; file names given: {len(given)}")
    return local.vector_spec(*files)


def kind(task: AbsTask) -> str:
    """The kind of a task, local or published, for tables: a key of the local forms, else "other"."""
    return _KINDS.get(task.metadata.type, "other")


def title(task: AbsTask) -> str:
    """The task's name as a person would say it: without the kind and the digits that tell files apart."""
    return str(getattr(task, "title", task.metadata.name))


def sts_task(path: str | Path) -> AbsTask:
    """Similarity of sentences, scored by the Spearman correlation of the cosines (cosine_spearman).

    Raises:
        InputError: see :func:`valuembed.data.read_scored`.
        MissingExtraError: mteb is not installed.
    """
    data = read_scored(path)
    return _task(
        "sts",
        data,
        f"{len(data.scores)} pairs of sentences with a similarity",
        lambda split: {split: _table(sentence1=data.sentences1, sentence2=data.sentences2, score=data.scores)},
        min_score=min(data.scores),
        max_score=max(data.scores),
    )


def classification_task(train: str | Path, test: str | Path | None = None) -> AbsTask:
    """Classes of texts, by logistic regression on 8 training texts a class, drawn 10 times (accuracy).

    Args:
        train: the training texts; of a file that mixes splits, its split "train".
        test: the texts to score; of a file that mixes splits, its split "test". Without it, both come from the one
            file: its splits "train" and "test", or, of a file of one split, five-fold cross-validation.

    Raises:
        InputError: see :func:`valuembed.data.read_labelled`; training rows are of the split "test" or test rows
            of "train"; both are the same; a test label has no training text; or a file is too small to cross-validate.
        MissingExtraError: mteb is not installed.
    """
    if test is None and (missing := [name for name in ("test", "train") if name not in splits_of(train)]):
        return _cross_validated(read_labelled(train, default=missing[0]))
    fitted, scored = read_labelled(train, default="train"), read_labelled(train if test is None else test)
    for given, part, wrong in ((fitted, "TRAIN", "test"), (scored, "TEST", "train")):
        if given.split == wrong:
            raise InputError(f"{given.paths[0]} is given as {part}, and its rows are of the split {wrong!r}")
    if (fitted.texts, fitted.labels) == (scored.texts, scored.labels):
        raise InputError(f"{scored.paths[0]} holds the training texts {fitted.paths[0]} again; expected other texts")
    known = set(fitted.labels)
    for line, label in zip(scored.lines, scored.labels, strict=True):
        if label not in known:
            raise InputError(
                f"{scored.paths[0]}, line {line}: no text of {fitted.paths[0]} has the label {label!r}; "
                f"expected one of {_some(sorted(known))}"
            )
    digest = fitted.digest if fitted.digest == scored.digest else digest_of(fitted.digest, scored.digest)
    data = TaskData(tuple(dict.fromkeys((*fitted.paths, *scored.paths))), digest, scored.split)
    return _task(
        "classification",
        data,
        f"{len(scored.texts)} texts of {len(set(scored.labels))} classes, {len(fitted.texts)} to train on",
        lambda split: {"train": _numbered(fitted, known), split: _numbered(scored, known)},
        train_split="train",
    )


def clustering_task(path: str | Path) -> AbsTask:
    """Groups of texts found by k-means, compared with their labels (v_measure), over 10 samples of the texts.

    mteb's current clustering class, with every text embedded. Its forerunner clusters once; the mean over samples tells
    methods apart that a single draw of starting points would not.

    Raises:
        InputError: see :func:`valuembed.data.read_labelled`.
        MissingExtraError: mteb is not installed.
    """
    data = read_labelled(path)
    return _task(
        "clustering",
        data,
        f"{len(data.texts)} texts of {len(set(data.labels))} classes",
        lambda split: {split: _numbered(data, set(data.labels))},
        max_fraction_of_documents_to_embed=None,
        input_column_name="text",
        label_column_name="label",
    )


def retrieval_task(docs: str | Path, queries: str | Path, qrels: str | Path) -> AbsTask:
    """Documents found for queries by cosine (ndcg_at_10).

    Raises:
        InputError: see :func:`valuembed.data.read_retrieval`.
        MissingExtraError: mteb is not installed.
    """
    data = read_retrieval(docs, queries, qrels)
    about = f"queries: {len(data.queries)}; documents: {len(data.documents)}"
    about += f", of them blank: {data.blank_documents}" if data.blank_documents else ""
    about += f"; queries left out, without a relevant document: {data.dropped_queries}" if data.dropped_queries else ""
    return _task(
        "retrieval",
        data,
        about,
        lambda split: _searched(split, data.documents, data.queries, data.relevance, None),
    )


def reranking_task(path: str | Path) -> AbsTask:
    """Each question's own candidates put in order by cosine (map_at_1000).

    Raises:
        InputError: see :func:`valuembed.data.read_reranking`.
        MissingExtraError: mteb is not installed.
    """
    data = read_reranking(path)
    documents: dict[str, str] = {}
    relevance: dict[str, dict[str, int]] = {}
    for question, answers in data.answers.items():
        # Equal scores are ordered by id. Right answers often stand first in a file, so an id begins with a hash.
        ids = [f"{digest_of(text)[:12]}-{len(documents) + place}" for place, (text, _) in enumerate(answers)]
        documents.update(zip(ids, (text for text, _ in answers), strict=True))
        relevance[question] = dict(zip(ids, (label for _, label in answers), strict=True))
    about = f"questions: {len(relevance)}; answers: {len(documents)}"
    about += f"; {data.skipped} questions with only right or only wrong answers left out" if data.skipped else ""
    candidates = {question: list(found) for question, found in relevance.items()}
    return _task(
        "reranking",
        data,
        about,
        lambda split: _searched(split, documents, data.questions, relevance, candidates),
    )


def pairs_task(path: str | Path) -> AbsTask:
    """Pairs that belong together told from pairs that do not, by cosine (cosine_ap, average precision).

    Raises:
        InputError: see :func:`valuembed.data.read_pairs`.
        MissingExtraError: mteb is not installed.
    """
    data = read_pairs(path)
    return _task(
        "pairs",
        data,
        f"{len(data.labels)} pairs of texts, {sum(data.labels)} of them belonging together",
        lambda split: {split: _table(sentence1=data.sentences1, sentence2=data.sentences2, labels=data.labels)},
    )


class _Local(NamedTuple):
    """A kind of local task: how it is named and made, and what it is in mteb."""

    vector_spec: Callable[..., AbsTask]
    form: str
    counts: tuple[int, ...]
    parent: str
    type: str
    category: str
    main_score: str


_LOCAL: Mapping[str, _Local] = {
    "sts": _Local(sts_task, "sts:FILE", (1,), "AbsTaskSTS", "STS", "t2t", "cosine_spearman"),
    "classification": _Local(
        *(classification_task, "classification:TRAIN,TEST", (1, 2)),
        *("AbsTaskClassification", "Classification", "t2c", "accuracy"),
    ),
    "clustering": _Local(
        clustering_task, "clustering:FILE", (1,), "AbsTaskClustering", "Clustering", "t2c", "v_measure"
    ),
    "retrieval": _Local(
        *(retrieval_task, "retrieval:DOCS,QUERIES,QRELS", (3,)),
        *("AbsTaskRetrieval", "Retrieval", "t2t", "ndcg_at_10"),
    ),
    # mteb's class for reranking is retrieval with candidates given; its old class of that name is deprecated.
    "reranking": _Local(reranking_task, "reranking:FILE", (1,), "AbsTaskRetrieval", "Reranking", "t2t", "map_at_1000"),
    "pairs": _Local(
        pairs_task, "pairs:FILE", (1,), "AbsTaskPairClassification", "PairClassification", "t2t", "cosine_ap"
    ),
}
FORMS: tuple[str, ...] = tuple(local.form for local in _LOCAL.values())
"""Every way to name a task of local files."""

_KINDS = {local.type: name for name, local in _LOCAL.items()} | {
    "InstructionRetrieval": "retrieval",
    "InstructionReranking": "reranking",
}


def _published(name: str) -> AbsTask:
    mteb = require("mteb", "eval")
    try:
        task: AbsTask = mteb.get_task(name)
    except KeyError:
        names = {task.metadata.name for task in mteb.get_tasks(exclude_superseded=False, modalities=["text"])}
        # Compared without case, where "sts12" is one step from "STS12" instead of four.
        folded = {known.casefold(): known for known in sorted(names)}
        close = [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, n=3)]
        closest = f"; close: {', '.join(close)}" if close else ""
        raise InputError(
            f"unknown task {name!r}; legal: {', '.join(FORMS)}, or the name of an mteb task{closest}"
        ) from None
    if task.modalities != ["text"]:
        raise InputError(f"task {name!r} is about {', '.join(task.modalities)}; only tasks about text can be evaluated")
    return task


def _cross_validated(data: LabelledFile) -> AbsTask:
    fold = -(-len(data.labels) // 5)
    enough = [label for label, count in Counter(data.labels).items() if count > fold]
    if len(enough) < 2:
        raise InputError(
            f"{data.paths[0]}: {len(data.labels)} texts cannot be cross-validated in five parts of {fold}: fewer than "
            f"two classes have more texts than a part; expected classification:TRAIN,TEST, or more texts"
        )
    return _task(
        "classification",
        data,
        f"{len(data.texts)} texts of {len(set(data.labels))} classes, five-fold cross-validation",
        lambda split: {split: _numbered(data, set(data.labels))},
        train_split=_split(data),
        is_cross_validation=True,
    )


def _table(**columns: list[Any]) -> Any:
    return require("datasets", "eval").Dataset.from_dict(columns)


class _Columns:
    """A table whose columns come out as lists."""

    def __init__(self, table: Any) -> None:
        self.select = table.select
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, name: str) -> list[Any]:
        return list(self._table[name][:])


def _numbered(data: LabelledFile, known: set[Any]) -> Any:
    """Classes as numbers, in the order of their names: some of mteb's metrics take no strings."""
    number = {label: place for place, label in enumerate(sorted(known))}
    return _table(text=data.texts, label=[number[label] for label in data.labels])


def _searched(
    split: str,
    documents: dict[str, str],
    queries: dict[str, str],
    relevance: dict[str, dict[str, int]],
    candidates: dict[str, list[str]] | None,
) -> dict[str, Any]:
    """Data of a search as mteb keeps it."""
    corpus, asked = (_table(id=list(part), text=list(part.values())) for part in (documents, queries))
    found = {"corpus": corpus, "queries": asked, "relevant_docs": relevance, "top_ranked": candidates}
    return {"default": {split: found}}


def _task(name: str, data: TaskData, about: str, dataset: Callable[[str], dict[str, Any]], **settings: Any) -> AbsTask:
    """A class of its own for the data, which is what mteb expects, and one task of it with its data loaded."""
    mteb = require("mteb", "eval")
    local = _LOCAL[name]
    parent = getattr(mteb.abstasks, local.parent)
    split = _split(data)
    files = ", ".join(path.name for path in data.paths)
    shown = _title(data.paths)
    # It becomes the name of a file: letters, digits and a few signs, and not too long.
    unique = f"{re.sub('[^a-zA-Z0-9_.+-]+', '_', shown)[:80]}-{name}-{data.digest[:8]}"
    metadata = mteb.TaskMetadata(
        name=unique,
        description=f"{about}; from {files}, split {split}",
        dataset={"path": files, "revision": data.digest},
        type=local.type,
        category=local.category,
        eval_splits=[split],
        eval_langs=["und-Zyyy"],  # undetermined: a file does not say
        main_score=local.main_score,
        license="not specified",
        is_public=False,
    )

    def load_data(task: Any, num_proc: int | None = None, **kwargs: Any) -> None:
        if not task.data_loaded:
            task.dataset, task.data_loaded = dataset(split), True

    def evaluate(task: Any, *args: Any, **kwargs: Any) -> Any:
        # A task draws from one generator for its whole life: without this, the second model gets other samples.
        task.rng_state = random.Random(task.seed)
        return parent.evaluate(task, *args, **kwargs)

    # What follows changes no figure. mteb asks for labels one by one, over and over, and its tables answer that slowly:
    # 10,000 labels took most of a minute.
    def _undersample_data(task: Any, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return parent._undersample_data(task, _Columns(dataset), *args, **kwargs)

    def _calculate_scores(task: Any, truth: Any, *args: Any, **kwargs: Any) -> Any:
        return parent._calculate_scores(task, truth[:], *args, **kwargs)

    members = {"metadata": metadata, "title": shown, "load_data": load_data, "evaluate": evaluate, **settings}
    if name == "classification":
        members |= {"_undersample_data": _undersample_data, "_calculate_scores": _calculate_scores}
    task: AbsTask = type(f"Local{local.type}", (parent,), members)()
    task.load_data()
    return task


def _split(data: TaskData) -> str:
    # In mteb's tables of data, "default" names something else: the one subset of a dataset that has no others.
    return ALL_ROWS if data.split in (None, "default") else str(data.split)


def _title(paths: Sequence[Path]) -> str:
    """What the files are called: the words that all names begin with, else their folder's name, else all names."""
    stems = list(dict.fromkeys(path.stem for path in paths))
    if len(stems) == 1:
        return stems[0]
    words = zip(*(re.split("([._ -])", stem) for stem in stems), strict=False)
    shared = "".join(word[0] for word in takewhile(lambda word: len(set(word)) == 1, words)).rstrip("._ -")
    if shared:
        return shared
    folders = {path.resolve().parent.name for path in paths}
    return folders.pop() if len(folders) == 1 else "+".join(stems)


def _some(labels: list[Any]) -> str:
    return ", ".join(map(repr, labels[:10])) + (", ..." if len(labels) > 10 else "")

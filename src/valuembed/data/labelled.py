"""Read the data of an evaluation from JSON Lines files, checked row by row.

Unlike a file of texts to embed, where an unusable row is set aside, here the first one ends the reading: a score over
what happened to be readable is no score. Each error names the file, the line, what stands there and what was expected.
A row whose field ``split`` names another split than the one that counts is not looked at any further. A reader takes
the split it is asked for, as its argument or behind the file's name (``pairs.jsonl@dev``), else "test" of a file that
mixes splits. A file that mixes others is refused: read as one, it would train or choose on what it tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from valuembed._utils.text import counted
from valuembed.data.labelled_rows import TaskRow, digest_of, file_and_split, read_task_file, shown
from valuembed.errors import InputError

LEAST_SCORED = 3
"""Scored pairs: of two, any order is a correlation of 1 or -1."""


@dataclass(frozen=True)
class TaskData:
    """What all kinds of data have in common.

    Attributes:
        paths: the files, in the order in which their reader takes them.
        digest: SHA-256 of the file, 64 hexadecimal digits; of several files, or a file and another split than its
            default, see :func:`valuembed.data.digest_of`.
        split: the split that was read; None when the file names none.
    """

    paths: tuple[Path, ...]
    digest: str
    split: str | None


@dataclass(frozen=True)
class StsFile(TaskData):
    """Pairs of sentences with the similarity that people gave them, on whatever scale the file has."""

    sentences1: list[str]
    sentences2: list[str]
    scores: list[float]


@dataclass(frozen=True)
class LabelledFile(TaskData):
    """Texts with their classes, for classification and clustering.

    Attributes:
        labels: class of each text: strings throughout, or whole numbers throughout.
        lines: line of the file, from 1, that each text stands in.
    """

    texts: list[str]
    labels: list[str] | list[int]
    lines: list[int]


@dataclass(frozen=True)
class PairsFile(TaskData):
    """Pairs of texts that belong together (label 1) or do not (label 0)."""

    sentences1: list[str]
    sentences2: list[str]
    labels: list[int]


@dataclass(frozen=True)
class RetrievalFiles(TaskData):
    """Documents, queries, and which documents are relevant to which query; the split is that of the judgements.

    Attributes:
        documents: text by id, its title in front unless the text begins with it already.
        queries: text by id, only of queries that have a relevant document: others cannot be scored.
        relevance: by query and document the grade, 0 or more; what is not listed counts as 0.
        blank_documents: how many documents hold no text. They stay, for a search has to cope with them.
        dropped_queries: how many queries were left out because no document is relevant to them.
    """

    documents: dict[str, str]
    queries: dict[str, str]
    relevance: dict[str, dict[str, int]]
    blank_documents: int
    dropped_queries: int


@dataclass(frozen=True)
class RerankingFile(TaskData):
    """Questions, each with candidate answers that are right or wrong.

    Attributes:
        questions: text by question id, in the file's order.
        answers: by question id its candidates, each with 1 for right and 0 for wrong.
        skipped: how many questions were left out because all their candidates are right, or all are wrong: any order
            of those is as good as any other.
    """

    questions: dict[str, str]
    answers: dict[str, list[tuple[str, int]]]
    skipped: int


def read_sts(path: str | Path, split: str | None = None) -> StsFile:
    """Read pairs of sentences with scores.

    Args:
        path: JSON Lines with ``sentence1``, ``sentence2``, ``score``, and optionally ``split``.
        split: the split to read instead of the default.

    Raises:
        InputError: the file cannot be read, a row is not as expected, or all scores are equal.
    """
    file = read_task_file(path, split, "test")
    file.need("sentence1", "sentence2", "score")
    scores = [row.number("score") for row in file.rows]
    if len(set(scores)) < 2:
        found = f"all {len(scores)} scores are {scores[0]:g}" if len(scores) > 1 else "there is a single row"
        raise InputError(f"{file}: {found}; a correlation needs at least two different scores")
    return StsFile(*file.origin, file.texts("sentence1"), file.texts("sentence2"), scores)


def read_scored(path: str | Path, split: str | None = None) -> StsFile:
    """Read pairs of sentences with scores, enough of them for a correlation to say something.

    Args:
        path, split: as in :func:`read_sts`.

    Raises:
        InputError: as :func:`read_sts`, or there are fewer than :data:`LEAST_SCORED`.
    """
    file = read_sts(path, split)
    if len(file.scores) < LEAST_SCORED:
        raise InputError(
            f"{file.paths[0]}: {counted(len(file.scores), 'pair')}; a correlation says nothing below {LEAST_SCORED}, "
            "give more pairs"
        )
    return file


def read_labelled(path: str | Path, split: str | None = None, *, default: str = "test") -> LabelledFile:
    """Read texts with labels.

    Args:
        path: JSON Lines with ``text``, ``label`` (all strings, or all whole numbers), and optionally ``split``.
        split: the split to read instead of the default.
        default: what stands in for "test" in the default.

    Raises:
        InputError: the file cannot be read, a row is not as expected, or all rows have the same label.
    """
    file = read_task_file(path, split, default)
    file.need("text", "label")
    texts, labels = file.texts("text"), [row.label("label") for row in file.rows]
    first = labels[0]
    for row, label in zip(file.rows, labels, strict=True):
        if isinstance(label, str) != isinstance(first, str):
            kind = "a string" if isinstance(first, str) else "a whole number"
            raise row.error("label", f"{kind}, as the label {shown(first)} in line {file.rows[0].line}")
    if len(set(labels)) < 2:
        raise InputError(f"{file}: the only label is {shown(first)}; at least two classes are needed")
    alike = cast("list[str] | list[int]", labels)
    return LabelledFile(*file.origin, texts, alike, [row.line for row in file.rows])


def read_pairs(path: str | Path, split: str | None = None) -> PairsFile:
    """Read pairs of texts that belong together or not.

    Args:
        path: JSON Lines with ``sentence1``, ``sentence2``, ``label`` (1 or 0), or ``question``, ``answer``, ``label``,
            and optionally ``split``.
        split: the split to read instead of the default.

    Raises:
        InputError: the file cannot be read, a row is not as expected, or all pairs have the same label.
    """
    file = read_task_file(path, split, "test")
    names = ("question", "answer") if "question" in file.rows[0].fields else ("sentence1", "sentence2")
    file.need(*names, "label", otherwise="question, answer, label" if names[0] == "sentence1" else "")
    labels = [row.binary("label") for row in file.rows]
    if len(set(labels)) < 2:
        raise InputError(f"{file}: all {len(labels)} labels are {labels[0]}; pairs of both kinds, 1 and 0, are needed")
    return PairsFile(*file.origin, file.texts(names[0]), file.texts(names[1]), labels)


def read_retrieval(
    docs: str | Path, queries: str | Path, qrels: str | Path, split: str | None = None
) -> RetrievalFiles:
    """Read documents, queries and judgements.

    Args:
        docs: JSON Lines with ``id``, ``text``, and optionally ``title``.
        queries: JSON Lines with ``id``, ``text``.
        qrels: JSON Lines with ``query_id``, ``doc_id``, and ``score`` (a grade: a whole number, 0 or more) or
            ``relevant`` (1 or 0), of which ``score`` counts when both are there; optionally ``split``.
        split: the split of the judgements to read instead of the default.

    Raises:
        InputError: a file cannot be read, a row is not as expected, an id stands twice, a judgement names an unknown
            query or document or contradicts another, or nothing is relevant to anything.
    """
    corpus, asked, judged = read_task_file(docs), read_task_file(queries), read_task_file(qrels, split, "test")
    corpus.need("id", "text")
    asked.need("id", "text")
    grade = "score" if "score" in judged.rows[0].fields else "relevant"
    judged.need("query_id", "doc_id", grade, otherwise="query_id, doc_id, score" if grade == "relevant" else "")

    documents, texts = corpus.by_id(TaskRow.titled), asked.by_id(TaskRow.text)
    relevance: dict[str, dict[str, int]] = {}
    for row in judged.rows:
        query, document = row.identity("query_id"), row.identity("doc_id")
        if query not in texts:
            raise row.error(
                "query_id", f"the id of one of the {counted(len(texts), 'query', 'queries')} in {asked.path}"
            )
        if document not in documents:
            raise row.error("doc_id", f"the id of one of the {counted(len(documents), 'document')} in {corpus.path}")
        value = row.grade(grade) if grade == "score" else row.binary(grade)
        if relevance.setdefault(query, {}).setdefault(document, value) != value:
            before = relevance[query][document]
            raise row.error(grade, f"{before}, as an earlier line says for query {query!r} and document {document!r}")
    kept = {query: text for query, text in texts.items() if any(relevance.get(query, {}).values())}
    if not kept:
        raise InputError(f"{judged}: no document is relevant to any query; at least one {grade} above 0 is needed")
    digest = digest_of(corpus.digest, asked.digest, judged.digest)
    grades = {query: relevance[query] for query in kept}
    blank = sum(not text.strip() for text in documents.values())
    paths = (corpus.path, asked.path, judged.path)
    return RetrievalFiles(paths, digest, judged.split, documents, kept, grades, blank, len(texts) - len(kept))


def read_reranking(path: str | Path, split: str | None = None) -> RerankingFile:
    """Read questions with right and wrong answers.

    Args:
        path: JSON Lines with ``question``, ``answer``, ``label`` (1 right, 0 wrong), and optionally ``qid``, by which
            the rows are grouped (without it: by the question's text), and ``split``.
        split: the split to read instead of the default.

    Raises:
        InputError: the file cannot be read, a row is not as expected, a ``qid`` has two questions, or no question has
            both right and wrong answers.
    """
    file = read_task_file(path, split, "test")
    key = "qid" if "qid" in file.rows[0].fields else "question"
    file.need("question", "answer", "label", *([key] if key == "qid" else []))
    questions: dict[str, str] = {}
    answers: dict[str, list[tuple[str, int]]] = {}
    for row in file.rows:
        question, answer = row.text("question"), row.text("answer")
        group = row.identity("qid") if key == "qid" else question
        if questions.setdefault(group, question) != question:
            raise row.error("question", f"{shown(questions[group])}, as in the lines before with qid {group!r}")
        answers.setdefault(group, []).append((answer, row.binary("label")))
    kept = {group: found for group, found in answers.items() if len({label for _, label in found}) == 2}
    if not kept:
        raise InputError(
            f"{file}: none of the {counted(len(answers), 'question')} has both a right answer (1) and a wrong one (0)"
        )
    return RerankingFile(*file.origin, {group: questions[group] for group in kept}, kept, len(answers) - len(kept))


def splits_of(path: str | Path) -> list[str]:
    """The splits that the rows of a JSON Lines file name, in the order of their first rows; of ``FILE@SPLIT`` the one.

    Raises:
        InputError: the file cannot be read.
    """
    _, named = file_and_split(path)
    return [named] if named else read_task_file(path).splits

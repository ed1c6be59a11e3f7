"""Questions that look for passages, for beyond.py: TREC-QA, whose development set is for choosing, and Cranfield."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from real_data import read_rows, shuffled

from valuembed.recipes import Recipe, resolve_recipe
from valuembed.search.results import fuse
from valuembed.search.vector_store import Table
from valuembed.vectors import EMBEDDING, KEY, TEXT

Matrix = NDArray[np.float32]
DEV_SEARCH = "TREC-QA dev"
SPLITS = {DEV_SEARCH: "TREC-QA.dev.jsonl", "TREC-QA test": "TREC-QA.test.jsonl"}
CRANFIELD = "Cranfield"
WORDS = 100
"""Of a passage, the first so many are read; most of Cranfield's abstracts are longer."""
FIRST = 10
"""Places of a ranking that count."""

TOPIC_OF_QUESTION = 'The topic of the question "{text}" in one word:"'
TOPIC_OF_PASSAGE = 'The topic of the passage "{text}" in one word:"'
ANSWER = 'The answer to the question "{text}" in one word:"'

FURTHER: dict[str, Recipe] = {
    "aligned_va": resolve_recipe("aligned_va", "third"),
    "topic of a question": resolve_recipe("aligned_wva", "third", TOPIC_OF_QUESTION),
    "topic of a passage": resolve_recipe("aligned_wva", "third", TOPIC_OF_PASSAGE),
    "answer": resolve_recipe("aligned_wva", "third", ANSWER),
}
"""Readouts that questions or passages are read by, beside those of beyond.py."""
ONE_SIDED = {"topic of a question": "questions", "topic of a passage": "passages", "answer": "questions"}
"""Those that only one side is read by."""

_AFTER = {"va, echo, last": 0.5, "va, echo, last-2": 0.5}
TWO_SIDED: dict[str, tuple[Mapping[str, float], Mapping[str, float]]] = {
    "aligned_va": ({"aligned_va": 1.0}, {"aligned_va": 1.0}),
    "aligned_wva for aligned_va": ({"aligned_wva": 1.0}, {"aligned_va": 1.0}),
    "aligned_wva, topics": ({"topic of a question": 1.0}, {"topic of a passage": 1.0}),
    "aligned_wva, answers": ({"answer": 1.0}, {"aligned_wva": 1.0}),
    "joined, topics": (
        {"topic of a question": 1.0, **_AFTER},
        {"topic of a passage": 1.0, **_AFTER},
    ),
}
"""Rows whose questions and passages are read differently: parts and weights of either side."""

SHRINKAGES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Collection:
    """Questions and the passages of all of them.

    Attributes:
        questions: q of them.
        passages: a of them.
        right: ``[q, a]``, whether a passage answers a question.
        own: ``[q, a]``, the candidates of each question; None where all passages are.
    """

    questions: list[str]
    passages: list[str]
    right: NDArray[np.bool_]
    own: NDArray[np.bool_] | None

    def scores(self, ranked: Sequence[NDArray[np.int64]]) -> dict[str, float]:
        """What rankings of all passages are worth, in percent.

        Where questions have candidates of their own, MAP among these and MRR@10 among all passages; else nDCG@10.
        """
        if self.own is None:
            return {"nDCG@10": 100 * float(np.mean([_ndcg(self.right[at][rank]) for at, rank in enumerate(ranked)]))}
        precisions, reciprocals = [], []
        for at, rank in enumerate(ranked):
            hits = self.right[at][rank[self.own[at][rank]]]
            precisions.append((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())
            found = self.right[at][rank[:FIRST]]
            reciprocals.append(1 / (1 + found.argmax()) if found.any() else 0.0)
        return {"MAP": 100 * float(np.mean(precisions)), "MRR@10": 100 * float(np.mean(reciprocals))}


def _ndcg(hits: NDArray[np.bool_]) -> float:
    """The nDCG@10 of a ranking of all passages, each right or wrong."""
    weights = 1 / np.log2(np.arange(FIRST) + 2)
    best = weights[: int(hits.sum())].sum()
    return float((hits[:FIRST] * weights[: len(hits[:FIRST])]).sum() / best) if best else 0.0


def collections(data: Path, questions: int, documents: int) -> dict[str, Collection]:
    """The sets whose files are there: so many questions of TREC-QA's, half as many of Cranfield, by a fixed seed."""
    found = {name: _trec(data / file, questions) for name, file in SPLITS.items() if (data / file).is_file()}
    if (data / "Cranfield.docs.jsonl").is_file():
        found[CRANFIELD] = _cranfield(data, -(-questions // 2), documents)
    return found


def _trec(path: Path, count: int) -> Collection:
    """Of the questions with right and wrong answers."""
    rows = read_rows(path)
    labels: dict[str, set[int]] = {}
    for row in rows:
        labels.setdefault(row["qid"], set()).add(row["label"])
    chosen = [name for name in shuffled(labels) if len(labels[name]) > 1][:count]  # type: ignore[arg-type]
    number = {name: at for at, name in enumerate(chosen)}
    kept = [row for row in rows if row["qid"] in number]
    texts = {number[row["qid"]]: row["question"] for row in kept}
    asked = np.array([number[row["qid"]] for row in kept])
    own = asked[None] == np.arange(len(chosen))[:, None]
    right = own & np.array([bool(row["label"]) for row in kept])[None]
    return Collection([texts[at] for at in range(len(chosen))], [row["answer"] for row in kept], right, own)


def _cranfield(data: Path, count: int, documents: int) -> Collection:
    queries = shuffled(read_rows(data / "Cranfield.queries.jsonl"))[:count]
    number = {row["id"]: at for at, row in enumerate(queries)}
    judged = [row for row in read_rows(data / "Cranfield.qrels.jsonl") if row["query_id"] in number and row["relevant"]]
    needed = {row["doc_id"] for row in judged}
    rows = shuffled(read_rows(data / "Cranfield.docs.jsonl"))
    kept = [row for row in rows if row["id"] in needed]
    kept += [row for row in rows if row["id"] not in needed][: max(0, documents - len(kept))]
    place = {row["id"]: at for at, row in enumerate(kept)}
    right = np.zeros((len(queries), len(kept)), bool)
    for row in judged:
        right[number[row["query_id"]], place[row["doc_id"]]] = True
    passages = [" ".join(row["text"].split()[:WORDS]) for row in kept]
    return Collection([row["text"] for row in queries], passages, right, None)


def search(
    collection: Collection,
    rows: Mapping[str, tuple[Matrix, Matrix]],
) -> dict[str, Any]:
    """How well questions find their passages by each row's vectors, in each way, alone and fused with words.

    Args:
        collection: what is searched.
        rows: for each, vectors ``[q, width]`` and ``[a, width]`` of length 1.
    """
    by_words = words_ranked(collection)
    places = [{int(passage): place for place, passage in enumerate(ranking)} for ranking in by_words]
    last = len(collection.passages)
    complete = [
        np.array(sorted(range(last), key=lambda passage: (of_question.get(passage, last), passage)))
        for of_question in places
    ]
    found: dict[str, Any] = {"BM25": {"raw": collection.scores(complete)}}
    for row, (questions, passages) in rows.items():
        found[row] = {}
        for way, change in ways(passages).items():
            cosines = change(questions) @ change(passages).T
            ranked = [np.argsort(-of_question, kind="stable") for of_question in cosines]
            found[row][way] = collection.scores(ranked)
            fused = [_fused(one, other) for one, other in zip(ranked, by_words, strict=True)]
            found[row][f"{way}, words"] = collection.scores(fused)
    return {
        "questions": len(collection.questions),
        "passages": len(collection.passages),
        "scores": found,
    }


def ways(passages: Matrix) -> dict[str, Callable[[Matrix], Matrix]]:
    """What both sides go through, as a search does it: what is searched gives the mean and the covariance."""
    mean = passages.mean(axis=0)
    made: dict[str, Callable[[Matrix], Matrix]] = {"raw": lambda x: x, "centred": lambda x: _unit(x - mean)}
    centred = (passages - mean).astype(np.float64)
    variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    for shrinkage in SHRINKAGES:
        shrunk = (1 - shrinkage) * variances.clip(min=0) + shrinkage * variances.sum() / len(variances)
        matrix = (directions / np.sqrt(shrunk)).astype(np.float32)
        made[f"whitened {shrinkage}"] = lambda x, m=matrix: _unit((x - mean) @ m)
    return made


def words_ranked(collection: Collection) -> list[list[int]]:
    """For each question the passages that share words with it, best first, as an index ranks them (BM25)."""
    schema = pa.schema([(KEY, pa.string()), (TEXT, pa.string()), (EMBEDDING, pa.list_(pa.float32(), 8))])
    rows = [{KEY: str(at), TEXT: text, EMBEDDING: [1.0] * 8} for at, text in enumerate(collection.passages)]
    with tempfile.TemporaryDirectory() as folder:
        table = Table.create(folder, "rows", schema)
        table.append(pa.Table.from_pylist(rows, schema=schema))
        table.tune(approximate_from=len(rows) + 1, language=None, fresh=True)
        found = [table.matching(question, len(rows), [KEY]) for question in collection.questions]
    return [[int(key) for key in of_question.column(KEY).to_pylist()] for of_question in found]


def _fused(ranked: NDArray[np.int64], by_words: list[int]) -> NDArray[np.int64]:
    """All passages by reciprocal rank fusion, as hybrid search fuses; the best 100 of either ranking."""
    scores = fuse([str(at) for at in ranked[:100]], [str(at) for at in by_words[:100]])
    return np.array(sorted(ranked, key=lambda at: -scores.get(str(at), 0.0)))


def _unit(vectors: Matrix) -> Matrix:
    made: Matrix = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return made

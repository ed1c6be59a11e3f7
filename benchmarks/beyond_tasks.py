"""Texts to cluster and to classify, for beyond.py: BBC news and banking77, scored as mteb scores such sets."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from real_data import SEED, read_rows, shuffled
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, v_measure_score

Matrix = NDArray[np.float32]
WORDS = 100
"""Of an article, the first so many are read."""
A_CLASS = 4
"""Texts of each class to train on."""
CLUSTERINGS = 10
"""Clusterings from other starts; the mean counts."""
STEPS = 100
"""Of a logistic regression, as mteb takes them."""


@dataclass(frozen=True)
class Labelled:
    """Texts with labels.

    Attributes:
        metric: what is measured.
        texts: all of them.
        labels: of each.
        training: how many of them, from the first, a classifier is trained on; 0 where texts are clustered.
    """

    metric: str
    texts: list[str]
    labels: NDArray[np.int64]
    training: int

    def score(self, vectors: Matrix) -> float:
        """The accuracy, or the mean V-measure, in percent."""
        if not self.training:
            return 100 * float(np.mean([self._clustered(vectors, seed) for seed in range(CLUSTERINGS)]))
        classifier = LogisticRegression(max_iter=STEPS, random_state=SEED)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(vectors[: self.training], self.labels[: self.training])
        return 100 * float(accuracy_score(self.labels[self.training :], classifier.predict(vectors[self.training :])))

    def _clustered(self, vectors: Matrix, seed: int) -> float:
        count = len(set(self.labels.tolist()))
        clusters = MiniBatchKMeans(n_clusters=count, random_state=seed, batch_size=512, n_init="auto")
        return float(v_measure_score(self.labels, clusters.fit_predict(vectors)))


def tasks(data: Path, texts: int) -> dict[str, Labelled]:
    """The sets whose files are there: so many articles to cluster, so many texts to classify."""
    made: dict[str, Callable[[], Labelled]] = {
        "BBC-news.jsonl": lambda: _bbc(data, texts),
        "banking77.train.jsonl": lambda: _banking(data, texts),
    }
    return {file.partition(".")[0]: make() for file, make in made.items() if (data / file).is_file()}


def _bbc(data: Path, count: int) -> Labelled:
    rows = shuffled(read_rows(data / "BBC-news.jsonl"))[:count]
    texts = [" ".join(row["text"].split()[:WORDS]) for row in rows]
    return Labelled("V-measure", texts, _numbers([row["label"] for row in rows]), 0)


def _banking(data: Path, count: int) -> Labelled:
    kept: list[dict[str, Any]] = []
    of_class: dict[Any, int] = {}
    for row in shuffled(read_rows(data / "banking77.train.jsonl")):
        of_class[row["label"]] = of_class.get(row["label"], 0) + 1
        if of_class[row["label"]] <= A_CLASS:
            kept.append(row)
    rows = [*kept, *shuffled(read_rows(data / "banking77.test.jsonl"))[:count]]
    return Labelled("accuracy", [row["text"] for row in rows], _numbers([row["label"] for row in rows]), len(kept))


def _numbers(labels: Sequence[Any]) -> NDArray[np.int64]:
    known = {label: number for number, label in enumerate(sorted(set(labels), key=str))}
    return np.array([known[label] for label in labels])


def score_tasks(
    made: Mapping[str, Labelled], rows: Mapping[str, Mapping[str, Callable[[str], Matrix]]]
) -> dict[str, Any]:
    """Each row's scores in each way.

    Args:
        made: the sets.
        rows: for each row and way, what gives the vectors ``[b, width]`` of a set by its name.
    """
    return {
        name: {
            "metric": of_set.metric,
            "texts": len(of_set.texts) - of_set.training,
            "scores": {row: {way: of_set.score(vectors(name)) for way, vectors in of_row.items()}
                       for row, of_row in rows.items()},
        }
        for name, of_set in made.items()
    }  # fmt: skip

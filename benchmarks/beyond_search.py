"""Questions and the sentences that answer them, for beyond.py: TREC-QA, its development set for choosing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from real_data import read_rows, shuffled

Matrix = NDArray[np.float32]
SPLITS = {"TREC-QA dev": "TREC-QA.dev.jsonl", "TREC-QA test": "TREC-QA.test.jsonl"}
FIRST = 10
"""Places of a ranking of all answers that count."""


@dataclass(frozen=True)
class Questions:
    """Questions and the sentences that may answer them.

    Attributes:
        questions: q of them.
        answers: a of them, those of all questions.
        asked: ``[a]``, the question that each belongs to.
        right: ``[a]``, whether it answers that.
    """

    questions: list[str]
    answers: list[str]
    asked: NDArray[np.int64]
    right: NDArray[np.bool_]

    @classmethod
    def read(cls, path: Path, count: int) -> Questions:
        """Read some questions of a file, drawn with a fixed seed, of those with right and wrong answers."""
        rows = read_rows(path)
        labels: dict[str, set[int]] = {}
        for row in rows:
            labels.setdefault(row["qid"], set()).add(row["label"])
        chosen = [name for name in shuffled(labels) if len(labels[name]) > 1][:count]  # type: ignore[arg-type]
        number = {name: at for at, name in enumerate(chosen)}
        kept = [row for row in rows if row["qid"] in number]
        texts = {number[row["qid"]]: row["question"] for row in kept}
        return cls(
            [texts[at] for at in range(len(chosen))],
            [row["answer"] for row in kept],
            np.array([number[row["qid"]] for row in kept]),
            np.array([bool(row["label"]) for row in kept]),
        )

    def scores(self, questions: Matrix, answers: Matrix) -> dict[str, float]:
        """MAP of each question's own answers, and MRR@10 among the answers of all questions, in percent."""
        cosines = questions @ answers.T
        precisions, reciprocals = [], []
        for number, of_all in enumerate(cosines):
            own = self.asked == number
            hits = self.right[own][np.argsort(-of_all[own], kind="stable")]
            precisions.append((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())
            found = (self.right & own)[np.argsort(-of_all, kind="stable")[:FIRST]]
            reciprocals.append(1 / (1 + found.argmax()) if found.any() else 0.0)
        return {"MAP": 100 * float(np.mean(precisions)), "MRR@10": 100 * float(np.mean(reciprocals))}


def found_in(data: Path) -> Mapping[str, Path]:
    """The files of the set that are there."""
    return {name: data / file for name, file in SPLITS.items() if (data / file).is_file()}

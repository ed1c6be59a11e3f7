"""The benchmark of joined readouts, on a tiny random decoder: what it joins by itself is what the method gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from valuembed.evaluation import evaluate
from valuembed.testing import tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]
PAIRS = 20

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import beyond
        import beyond_layers
        import beyond_search
        import real_data

        yield beyond, beyond_layers, beyond_search, real_data


def test_a_run_is_as_evaluate_says_and_goes_on(scripts, tmp_path, monkeypatch):
    beyond, _, _, real_data = scripts
    monkeypatch.setattr(beyond, "HERE", tmp_path)
    few = beyond.general_sentences()[:16]
    monkeypatch.setattr(beyond, "general_sentences", lambda: few)
    tiny_checkpoint(tmp_path / "models" / "gemma3", "gemma3_text", tokenizer="metaspace_bos")
    data = tmp_path / "data"
    data.mkdir()
    for file in real_data.STS.values():
        shutil.copy(ROOT / "examples" / "graded.jsonl", data / file)
    rows = [json.loads(line) for line in (data / "STS12.jsonl").read_text(encoding="utf-8").splitlines()]
    (data / "STS12.jsonl").write_text("".join(json.dumps({**row, "split": "train"}) + "\n" for row in rows), "utf-8")
    asked = [
        {"qid": str(at // 2), "question": f"What is {at // 2}?", "answer": f"It is {at}.", "label": at % 2}
        for at in range(8)
    ]
    (data / "TREC-QA.dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), "utf-8")
    given = ["--models", tmp_path / "models", "--data", data, "--work", tmp_path / "work", "--decoders", "gemma3"]
    for count, file in ((0, "BBC-news"), (4, "banking77.train"), (2, "banking77.test")):
        labelled = [
            {"text": f"{kind} number {at}", "label": kind} for kind in ("sport", "money") for at in range(count or 5)
        ]
        (data / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled), "utf-8")
    given = [*map(str, given), "--pairs", str(PAIRS)]
    beyond.main(given)
    found = json.loads((tmp_path / "work" / "gemma3" / "scores.json").read_text(encoding="utf-8"))

    pairs = real_data.sts(data, "STS13", PAIRS, tmp_path / "again")
    made = evaluate(tmp_path / "models" / "gemma3", ["joined", "va"], f"sts:{pairs.paths[0]}", dtype="float32")
    for score in made.scores:
        assert found["scores"][score.method]["raw"]["STS13"] == pytest.approx(score.score, abs=1e-6), score.method
    assert set(found["scores"]["joined"]) == set(beyond.WAYS)

    page = (tmp_path / "beyond.md").read_text(encoding="utf-8")
    options = f"--decoders gemma3 --pairs {PAIRS} --questions 30 --documents 120 --texts 100"
    assert " ".join(page.split()).count(f"- `{options}`: pairs drawn with a fixed seed") == 1
    assert "| agreement with AlignedWVA |" in page
    assert "| segment matching: halves of a text |" in page
    assert "TREC-QA dev: 4 questions, 8 passages." in page
    assert "BBC-news: 10 texts; banking77: 4 texts." in page
    # A question shares "is" with every answer and its number with none or one.
    scores = found["search"]["TREC-QA dev"]["scores"]
    assert set(scores["joined"]) >= {"raw", "centred", "whitened 0.5", "raw, words", "centred, words"}
    assert scores["aligned_wva, topics"]["raw"] != scores["aligned_wva"]["raw"]
    assert set(found["shrinkage"]["va"]["own"]) == {"0.01", "0.1", "0.3", "0.5", "0.7", "0.9"}
    assert (tmp_path / "beyond.png").stat().st_size > 1000

    # What lies there is taken as it is.
    monkeypatch.setattr(beyond.MultiReadout, "encode", None)
    beyond.main(given)
    assert json.loads((tmp_path / "work" / "gemma3" / "scores.json").read_text(encoding="utf-8")) == found


def test_criteria_by_hand(scripts):
    _, layers, _, _ = scripts
    # Four directions of equal variance have the effective rank 4, two of them 2.
    four = np.vstack([np.eye(4), -np.eye(4)]).astype(np.float32)
    two = np.vstack([np.eye(4)[:2], -np.eye(4)[:2]] * 2).astype(np.float32)
    noise = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    same, other = {0: four, 1: two}, {0: four[::-1], 1: two}
    found = layers.criteria(same, four + 0.01 * noise, same, other, same)
    # Each of eight directions finds itself; turned around, its own is first only where it is not told from another.
    assert found["stability under dropped words"] == {0: pytest.approx(1), 1: pytest.approx(1)}
    assert found["segment matching: halves of a text"][0] < 1
    assert found["effective rank of the covariance"] == {0: pytest.approx(4), 1: pytest.approx(2)}
    # Of the 28 pairs, 4 are opposite and the others at a right angle.
    assert found["isotropy: low mean cosine"][0] == pytest.approx(4 / 28)
    assert found["agreement with AlignedWVA"][0] > found["agreement with AlignedWVA"][1]
    assert found["last layer"] == {0: 0.0, 1: 1.0}


def test_answers_are_scored_by_hand(scripts, tmp_path):
    _, _, search, _ = scripts
    rows = [("a", "right", 1), ("a", "wrong", 0), ("b", "wrong too", 0), ("b", "right too", 1), ("c", "no other", 1)]
    lines = [json.dumps({"qid": q, "question": f"{q}?", "answer": text, "label": label}) for q, text, label in rows]
    (tmp_path / "qa.jsonl").write_text("\n".join(lines), "utf-8")
    (tmp_path / "qa.jsonl").rename(tmp_path / "TREC-QA.dev.jsonl")
    asked = search.collections(tmp_path, 9, 0)["TREC-QA dev"]
    # A question with right answers alone says nothing.
    assert sorted(asked.questions) == ["a?", "b?"]
    order = {text: at for at, text in enumerate(asked.passages)}
    answers = np.zeros((4, 2), np.float32)
    for text, vector in {"right": (1, 0), "wrong": (0.5, 0), "wrong too": (0.9, 1), "right too": (0, 0.5)}.items():
        answers[order[text]] = vector
    questions = np.array([[1, 0] if text == "a?" else [0, 1] for text in asked.questions], np.float32)
    # Of a: its right one first of its two (1), and first of all four (1/1); of b: second of its two (1/2), and of all
    # "wrong too" before it (1/2).
    ranked = [np.argsort(-cosines, kind="stable") for cosines in questions @ answers.T]
    assert asked.scores(ranked) == {"MAP": pytest.approx(75), "MRR@10": pytest.approx(75)}


def test_documents_are_scored_by_hand(scripts):
    _, _, search, _ = scripts
    right = np.array([[True, False, True, False]])
    asked = search.Collection(["q"], ["a", "b", "c", "d"], right, None)
    # Right ones on the first and the third place, of two: (1 + 1/2) / (1 + 1/log2(3)).
    found = asked.scores([np.array([2, 1, 0, 3])])
    assert found == {"nDCG@10": pytest.approx(100 * 1.5 / (1 + 1 / np.log2(3)))}


def test_words_rank_as_an_index_does(scripts):
    _, _, search, _ = scripts
    asked = search.Collection(["a blue door"], ["the sea", "a door", "a blue door", "blue"], np.eye(1, 4) > 0, None)
    ranked = search.words_ranked(asked)[0]
    assert ranked[0] == 2
    assert 0 not in ranked

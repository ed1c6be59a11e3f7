"""Scores of local tasks are those that can be worked out by hand, and bad data gives none."""

import hashlib
import json
import math
import random
from collections import Counter
from types import MappingProxyType

import numpy as np
import pytest
from local_sets import DOCS, QRELS, QUERIES, SEARCH_ENCODER, STS, STS_ENCODER, Lookup, at, mteb, no_network, run  # noqa: F401
from scipy.stats import spearmanr

from valuembed.errors import InputError
from valuembed.evaluation.local_tasks import classification_task, parse_task, retrieval_task

pytestmark = pytest.mark.slow

PromptType = mteb.types.PromptType


@pytest.fixture
def write(tmp_path):
    def to_file(name, rows):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return to_file


class TestSts:
    def test_score_by_hand(self, write):
        task = parse_task(f"sts:{write('pairs.jsonl', STS)}")
        encoder = Lookup(STS_ENCODER)
        # Ranks by cosine 4 3 2 1, by score 4 2 3 1: rho = 1 - 6 * (0 + 1 + 1 + 0) / (4 * (16 - 1)) = 0.8
        scores = run(task, encoder)
        assert scores["main_score"] == scores["cosine_spearman"] == pytest.approx(0.8, abs=1e-12)
        assert encoder.calls == [(None, ["a"] * 4), (None, ["b0", "b40", "b60", "b90"])]

    def test_score_is_scipys_on_the_same_float32_cosines(self, write):
        rng = np.random.default_rng(0)
        first, second = rng.standard_normal((2, 300, 24)).astype(np.float32)
        second += first * rng.uniform(0, 2, (300, 1)).astype(np.float32)
        gold = rng.integers(0, 6, 300)
        rows = [{"sentence1": f"a{n}", "sentence2": f"b{n}", "score": int(score)} for n, score in enumerate(gold)]
        encoder = Lookup({f"a{n}": v for n, v in enumerate(first)} | {f"b{n}": v for n, v in enumerate(second)})
        score = run(parse_task(f"sts:{write('random.jsonl', rows)}"), encoder)["main_score"]
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second)]
        cosines = (unit[0] * unit[1]).sum(axis=1)
        assert cosines.dtype == np.float32
        assert score == pytest.approx(spearmanr(cosines, gold).statistic, abs=1e-9)
        assert 0.02 < abs(score) < 0.98


class TestSearch:
    def test_retrieval_score_by_hand(self, write):
        files = [write(f"set.{name}.jsonl", rows) for name, rows in zip("dqr", (DOCS, QUERIES, QRELS), strict=True)]
        task = parse_task("retrieval:" + ",".join(map(str, files)))
        encoder = Lookup(SEARCH_ENCODER)
        # q0 finds d10 d20 d30 d80, and d20 is relevant: 1 / log2(3).
        # q90 finds d80 d30 d20 d10 with grades 1 2 0 0: (1 + 2 / log2(3)) / (2 + 1 / log2(3)).
        second = 1 / math.log2(3)
        by_hand = (second + (1 + 2 * second) / (2 + second)) / 2
        scores = run(task, encoder)
        assert scores["main_score"] == scores["ndcg_at_10"] == pytest.approx(by_hand, abs=1e-5)
        assert encoder.calls == [
            (PromptType.query, ["q0", "q90"]),
            (PromptType.document, ["d10", "d20", "d30", "d80"]),
        ]
        assert task.metadata.description == (
            "queries: 2; documents: 4; queries left out, without a relevant document: 1; "
            "from set.d.jsonl, set.q.jsonl, set.r.jsonl, split all"
        )

    def test_a_blank_document_is_searched_too(self, write):
        docs = [*DOCS, {"id": "empty", "text": "", "title": ""}]
        task = retrieval_task(write("d.jsonl", docs), write("q.jsonl", QUERIES), write("r.jsonl", QRELS))
        encoder = Lookup(SEARCH_ENCODER | {"": at(180)})
        assert run(task, encoder)["recall_at_5"] == 1
        assert encoder.calls[1] == (PromptType.document, ["d10", "d20", "d30", "d80", ""])
        assert "documents: 5, of them blank: 1" in task.metadata.description

    def test_reranking_score_by_hand(self, write):
        def row(question, answer, label):
            return {"qid": question, "question": question, "answer": answer, "label": label}

        rows = [
            *(row("q0", answer, label) for answer, label in (("d10", 0), ("d20", 1), ("d30", 1))),
            *(row("q90", answer, label) for answer, label in (("d80", 1), ("d20", 0), ("d20", 0))),
            row("all right", "d80", 1),
        ]
        encoder = Lookup(SEARCH_ENCODER)
        task = parse_task(f"reranking:{write('answers.jsonl', rows)}")
        # q0: wrong, right, right, an average precision of (1/2 + 2/3) / 2 = 7/12. q90: right first, 1.
        # Neither sees the other's candidates, among which d20 would be both right and wrong.
        scores = run(task, encoder)
        assert scores["main_score"] == scores["map_at_1000"] == pytest.approx((7 / 12 + 1) / 2, abs=1e-5)
        assert encoder.calls[0] == (PromptType.query, ["q0", "q90"])
        assert "1 questions with only right or only wrong answers left out" in task.metadata.description

    def test_equal_scores_do_not_favour_the_order_of_the_file(self, write):
        def score(name, right_first):
            rows = []
            for number in range(200):
                pair = [("right", 1), ("wrong", 0)]
                for word, label in pair if right_first else pair[::-1]:
                    rows.append({"question": f"{number}?", "answer": f"{word} {number}", "label": label})
            texts = {row[field] for row in rows for field in ("question", "answer")}
            return run(parse_task(f"reranking:{write(name, rows)}"), Lookup(dict.fromkeys(texts, at(0))))["main_score"]

        # All vectors are equal. Right first is 1, wrong first 1/2: chance is 0.75, here with a deviation of 0.018.
        first, last = score("a.jsonl", True), score("b.jsonl", False)
        assert first == last
        assert 0.69 < first < 0.81


class TestPairs:
    def test_score_by_hand(self, write):
        labels = {"b0": 1, "b40": 0, "b60": 1, "b90": 0}
        rows = [{"sentence1": "a", "sentence2": name, "label": label} for name, label in labels.items()]
        # In order of cosine 1 0 1 0: average precision (1 + 2/3) / 2.
        scores = run(parse_task(f"pairs:{write('pairs.jsonl', rows)}"), Lookup(STS_ENCODER))
        assert scores["main_score"] == scores["cosine_ap"] == pytest.approx(5 / 6, abs=1e-9)


def labelled(classes):
    """Rows and vectors: texts of the class "left" point left, others right, and a leading "!" turns a text around."""
    rows, vectors = [], {}
    for text, label in classes:
        rows.append({"text": text, "label": label})
        vectors[text] = [(-1 if label == "left" else 1) * (-1 if text.startswith("!") else 1), 0.5]
    return rows, vectors


class TestClassification:
    def test_score_by_hand(self, write):
        train, vectors = labelled([(f"train {n} {side}", side) for n in range(20) for side in ("left", "right")])
        test, more = labelled([("one", "left"), ("two", "right"), ("three", "right"), ("!four", "right")])
        task = parse_task(f"classification:{write('set.train.jsonl', train)},{write('set.test.jsonl', test)}")
        encoder = Lookup(vectors | more)
        # Left of 0 is called left: of the four texts only "!four" is called wrong, in each of the ten draws.
        scores = run(task, encoder)
        assert scores["main_score"] == scores["accuracy"] == 0.75
        assert len(scores["scores_per_experiment"]) == 10
        # Numbers stand for the names, since average precision takes no strings: precision 1, recall 2/3 for "right".
        assert scores["ap"] == pytest.approx(2 / 3 * 1 + 1 / 3 * 3 / 4)
        (_, trained), (_, tested) = encoder.calls
        assert set(trained) <= set(vectors)
        assert tested == ["one", "two", "three", "!four"]

    def test_scores_are_those_of_mteb_without_our_shortcuts(self, write):
        rng = np.random.default_rng(1)
        parts = [[{"text": f"{p} {n}", "label": int(rng.integers(3))} for n in range(60)] for p in ("train", "test")]
        task = classification_task(write("train.jsonl", parts[0]), write("test.jsonl", parts[1]))
        encoder = Lookup({row["text"]: rng.standard_normal(6) + row["label"] for part in parts for row in part})
        plain = type("Plain", (mteb.abstasks.AbsTaskClassification,), {"metadata": task.metadata})()
        plain.dataset, plain.data_loaded = task.dataset, True
        ours, theirs = run(task, encoder), run(plain, encoder)
        assert ours == theirs
        assert 0.5 < ours["accuracy"] < 1

    def test_one_file_with_both_splits(self, write):
        train, vectors = labelled([(f"train {n} {side}", side) for n in range(3) for side in ("left", "right")])
        test, more = labelled([("one", "left"), ("two", "right"), ("!three", "right")])
        rows = [{**row, "split": "train"} for row in train] + [{**row, "split": "test"} for row in test]
        path = write("both.jsonl", rows)
        task, same = parse_task(f"classification:{path}"), parse_task(f"classification:{path},{path}")
        assert run(task, Lookup(vectors | more))["accuracy"] == pytest.approx(2 / 3)
        assert task.metadata.name == same.metadata.name
        assert task.metadata.revision == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_cross_validation_by_hand(self, write):
        rows, vectors = labelled([(f"{n} {side}", side) for n in range(19) for side in ("left", "right")])
        wrong, more = labelled([("!one", "left"), ("!two", "right")])
        path = write("all.jsonl", [{**row, "split": "cv"} for row in rows + wrong])
        # Each of 40 texts is tested once: the two turned ones are called wrong.
        scores = run(parse_task(f"classification:{path}"), Lookup(vectors | more))
        assert scores["accuracy"] == pytest.approx(38 / 40)
        assert len(scores["scores_per_experiment"]) == 5

    def test_a_split_named_behind_the_file(self, write):
        train, vectors = labelled([(f"train {n} {side}", side) for n in range(3) for side in ("left", "right")])
        dev, more = labelled([("one", "left"), ("two", "right"), ("!three", "right")])
        rows = [{**row, "split": "train"} for row in train] + [{**row, "split": "dev"} for row in dev]
        path = write("both.jsonl", [*rows, *({**row, "split": "test"} for row in dev)])
        task = parse_task(f"classification:{path},{path}@dev")
        assert run(task, Lookup(vectors | more))["accuracy"] == pytest.approx(2 / 3)
        assert task.eval_splits == ["dev"]
        assert task.metadata.name != parse_task(f"classification:{path}").metadata.name

    def test_refuses_a_mixed_file_without_the_split(self, write):
        rows = labelled([(f"{n} {side}", side) for n in range(20) for side in ("left", "right")])[0]
        path = write("mixed.jsonl", [{**row, "split": ("train", "dev")[n // 20]} for n, row in enumerate(rows)])
        for spec in (f"classification:{path},{path}", f"classification:{path}"):
            with pytest.raises(
                InputError, match=r"mixed\.jsonl mixes splits and has no 'test': .* mixed\.jsonl@train$"
            ):
                parse_task(spec)
        assert parse_task(f"classification:{path}@dev").is_cross_validation

    def test_refuses_swapped_files(self, write):
        rows = labelled([("one", "left"), ("two", "right")])[0]
        train, test = (write(f"{name}.jsonl", [{**row, "split": name} for row in rows]) for name in ("train", "test"))
        with pytest.raises(InputError, match=r"test\.jsonl is given as TRAIN, and its rows are of the split 'test'$"):
            parse_task(f"classification:{test},{train}")
        with pytest.raises(InputError, match=r"train\.jsonl is given as TEST, and its rows are of the split 'train'$"):
            parse_task(f"classification:{train},{train}")

    def test_refuses_training_texts_as_test_texts(self, write):
        path = write("all.jsonl", labelled([("one", "left"), ("two", "right")])[0])
        with pytest.raises(InputError, match=r"all\.jsonl holds the training texts .*all\.jsonl again; expected other"):
            classification_task(path, path)

    def test_refuses_a_test_label_without_training_texts(self, write):
        train = write("train.jsonl", [{"text": name, "label": name} for name in "bca"])
        test = write("test.jsonl", [{"text": name, "label": name} for name in "abx"])
        message = r"test\.jsonl, line 3: no text of .*train\.jsonl has the label 'x'; expected one of 'a', 'b', 'c'"
        with pytest.raises(InputError, match=message):
            classification_task(train, test)
        train = write("train.jsonl", [{"text": str(n), "label": n} for n in range(11)])
        with pytest.raises(
            InputError, match=r"has the label 'a'; expected one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\."
        ):
            classification_task(train, test)

    def test_refuses_what_is_too_small_to_cross_validate(self, write):
        path = write("few.jsonl", [{"text": str(n), "label": int(n < 2)} for n in range(11)])
        message = r"few\.jsonl: 11 texts cannot be cross-validated in five parts of 3: fewer than two classes"
        with pytest.raises(InputError, match=message):
            parse_task(f"classification:{path}")


class TestClustering:
    # Two places, and of four texts one stands in the wrong one.
    ROWS = tuple({"text": text, "label": label} for text, label in zip("abcd", "xxyy", strict=True))
    ENCODER = MappingProxyType({"a": [0, 1], "b": [0, 1], "c": [0, 1], "d": [9, 1]})

    def test_score_of_separate_classes_is_1(self, write):
        vectors = self.ENCODER | {"c": [9, 1]}
        scores = run(parse_task(f"clustering:{write('texts.jsonl', self.ROWS)}"), Lookup(vectors))
        assert scores["main_score"] == scores["v_measure"] == 1

    def test_score_by_hand(self, write):
        scores = run(parse_task(f"clustering:{write('texts.jsonl', self.ROWS)}"), Lookup(self.ENCODER))
        # mteb draws 16,384 of the texts with replacement, ten times. In every draw k-means finds the two places;
        # the rest is the V-measure of the counts, from its definition.
        draw = random.Random(42)
        expected = [v_measure(draw.choices(["xA", "xA", "yA", "yB"], k=16_384)) for _ in range(10)]
        assert scores["v_measures"]["Level 0"] == pytest.approx(expected, abs=1e-9)
        assert scores["main_score"] == pytest.approx(np.mean(expected), abs=1e-9)
        # With equal counts the classes tell 1 - (3/4 * H(1/3)) = 0.311 of H(class) = 1 and H(place) = 0.811.
        assert scores["main_score"] == pytest.approx(2 * 0.3113 / (1 + 0.8113), abs=0.02)

    def test_every_model_gets_the_same_samples(self, write):
        task = parse_task(f"clustering:{write('texts.jsonl', self.ROWS)}")
        first, second = (run(task, Lookup(self.ENCODER)) for _ in range(2))
        assert first["v_measures"] == second["v_measures"]
        assert len(set(first["v_measures"]["Level 0"])) > 1


def v_measure(drawn):
    """2 I(class; place) / (H(class) + H(place)) of strings of two letters, a class and a place."""

    def entropy(of):
        counts = Counter(of).values()
        return -sum(n / len(drawn) * math.log(n / len(drawn)) for n in counts)

    classes, places = entropy(pair[0] for pair in drawn), entropy(pair[1] for pair in drawn)
    return 2 * (classes + places - entropy(drawn)) / (classes + places)

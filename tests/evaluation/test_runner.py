"""Methods on tasks through mteb: the right figures, each pass once, and no old figure for something new."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import spearmanr
from some_texts import some_texts

import valuembed
from valuembed.errors import CheckpointError, InputError, LayerError, OutputError, ReadingError, RecipeError
from valuembed.evaluation import runner as module
from valuembed.evaluation.runner import evaluate
from valuembed.models.multi_readout import MultiReadout
from valuembed.recipes.recipe import Recipe

pytestmark = pytest.mark.slow

mteb = pytest.importorskip("mteb", reason="mteb is not installed; it needs Python 3.11 or newer")

TEXTS = some_texts(60)
GOLD = [float(value) for value in np.random.default_rng(0).integers(0, 6, 30)]


@pytest.fixture
def write(tmp_path):
    def to_file(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return to_file


def pairs():
    return [{"sentence1": a, "sentence2": b, "score": s} for a, b, s in zip(TEXTS[:30], TEXTS[30:], GOLD, strict=True)]


@pytest.fixture
def sts(write):
    return f"sts:{write('pairs.jsonl', pairs())}"


@pytest.fixture
def other(write):
    return f"sts:{write('other.jsonl', pairs()[::-3])}"


def labelled(texts, classes=3):
    return [{"text": text, "label": f"class {number % classes}"} for number, text in enumerate(texts)]


@pytest.fixture
def clustering(write):
    return f"clustering:{write('groups.jsonl', labelled(TEXTS))}"


@pytest.fixture
def search(write):
    docs = [{"id": str(number), "text": text} for number, text in enumerate(TEXTS[:40])]
    asked = [{"id": str(number), "text": text} for number, text in enumerate(TEXTS[40:45])]
    judged = [{"query_id": str(number), "doc_id": str(number), "score": 1} for number in range(5)]
    files = [write(f"find.{name}.jsonl", rows) for name, rows in (("docs", docs), ("asked", asked), ("judged", judged))]
    return "retrieval:" + ",".join(map(str, files))


@pytest.fixture
def no_model(monkeypatch):
    """From here on no model is loaded."""

    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(MultiReadout, "load", refuse)
    monkeypatch.setattr(module, "load", refuse)


def spearman(model):
    vectors = model.encode(TEXTS)
    assert vectors.dtype == np.float32
    return 100 * spearmanr((vectors[:30] * vectors[30:]).sum(axis=1), GOLD).statistic


@pytest.mark.parametrize("method", ["va", "aligned_wva", "hidden_mean", "prompt_eol"])
def test_sts_is_scipys_spearman_on_the_same_cosines(folder, sts, method):
    found = evaluate(folder, [method], [sts])
    (score,) = found.scores
    assert score.score == pytest.approx(spearman(valuembed.load(folder, method)), abs=1e-7)
    assert (score.method, score.task, score.kind, score.metric) == (method, "pairs", "sts", "cosine_spearman")
    assert (score.texts, score.truncated, score.reused) == (60, 0, False)
    assert found.table() == {method: {"pairs": score.score}}


def test_every_kind_of_task(folder, write, sts, clustering, search):
    train = write("train.jsonl", labelled(TEXTS))
    test = write("test.jsonl", labelled(some_texts(80)[60:]))
    answers = [{"question": TEXTS[n // 4], "answer": TEXTS[20 + n], "label": int(n % 4 == 0)} for n in range(20)]
    alike = [{"sentence1": TEXTS[n], "sentence2": TEXTS[n + 30], "label": n % 2} for n in range(30)]
    tasks = [
        sts,
        f"classification:{train},{test}",
        clustering,
        search,
        f"reranking:{write('answers.jsonl', answers)}",
        f"pairs:{write('alike.jsonl', alike)}",
    ]
    found = evaluate(folder, ["va", "wva"], tasks)
    assert found.failures == ()
    assert [found.tasks[score.task] for score in found.scores] == [score.kind for score in found.scores]
    kinds = ["sts", "classification", "clustering", "retrieval", "reranking", "pairs"]
    assert list(found.tasks.values()) == kinds
    assert {score.kind for score in found.scores if score.method == "wva"} == set(kinds)
    assert all(-100 <= score.score <= 100 for score in found.scores)


def test_methods_with_the_same_tokens_share_a_pass(folder, sts, search, monkeypatch):
    read = []
    real = MultiReadout.encode

    def encode(self, texts, *, names=None, role=None, **more):
        read.append((tuple(names), len(texts)))
        return real(self, texts, names=names, role=role, **more)

    monkeypatch.setattr(MultiReadout, "encode", encode)
    found = evaluate(folder, ["va", "wva", "hidden_mean", "prompt_eol"], [sts, search])
    # Each text once for each of the two templates: both sides of the pairs; queries, then documents.
    assert read == [
        (("va", "hidden_mean"), 30),
        (("va", "hidden_mean"), 30),
        (("wva", "prompt_eol"), 30),
        (("wva", "prompt_eol"), 30),
        (("va", "hidden_mean"), 5),
        (("va", "hidden_mean"), 40),
        (("wva", "prompt_eol"), 5),
        (("wva", "prompt_eol"), 40),
    ]
    tokens = {score.method: score.tokens for score in found.scores if score.kind == "sts"}
    assert tokens["va"] == tokens["hidden_mean"] < tokens["wva"] == tokens["prompt_eol"]


def test_a_score_does_not_depend_on_what_was_computed_before(folder, clustering):
    task = mteb.get_task("BiorxivClusteringP2P.v2")
    # A published task draws from one generator for its whole life; this one gets data without a network.
    task.dataset = {"test": module.parse_task(clustering).dataset["all"]}
    task.dataset = {"test": task.dataset["test"].rename_columns({"text": "sentences", "label": "labels"})}
    task.data_loaded = True
    task.max_fraction_of_documents_to_embed = 0.5
    alone = evaluate(folder, ["wva"], [task]).scores[0].score
    after = evaluate(folder, ["va", "wva"], [task]).table()["wva"]
    assert list(after.values()) == [alone]


def test_roles_of_a_search_reach_the_templates(folder, search):
    roles = Recipe(signal="value", weights="mean", query_template="find: {text}")
    same = Recipe(signal="value", weights="mean", template="find: {text}")
    plain = Recipe(signal="value", weights="mean")
    found = evaluate(folder, {"roles": roles, "same": same, "plain": plain}, [search]).table()
    assert len({row["find"] for row in found.values()}) == 3


class TestOwn:
    """Without methods, what ``load(model)`` gives."""

    def test_of_a_checkpoint(self, folder, sts):
        (score,) = evaluate(folder, None, [sts]).scores
        assert score.method == "aligned_wva"
        assert score.score == pytest.approx(spearman(valuembed.load(folder)), abs=1e-7)

    def test_of_a_saved_folder_with_its_later_modules(self, folder, sts, tmp_path):
        from sentence_transformers.sentence_transformer.modules import Dense

        model = valuembed.load(folder, "va", layers=[1])
        width = model.get_embedding_dimension()
        model.add_module("2", Dense(in_features=width, out_features=3))
        model.save_pretrained(str(tmp_path / "saved"))
        (score,) = evaluate(tmp_path / "saved", None, [sts]).scores
        vectors = valuembed.load(tmp_path / "saved").encode(TEXTS)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        expected = 100 * spearmanr((unit[:30] * unit[30:]).sum(axis=1), GOLD).statistic
        assert (score.method, score.layers, score.width) == ("va (as saved)", "1", 3)
        assert score.score == pytest.approx(expected, abs=1e-6)
        # A method that is named is read from the decoder alone.
        (named,) = evaluate(tmp_path / "saved", ["va@1"], [sts]).scores
        assert named.width == width

    def test_of_a_saved_folder_with_its_prompts(self, folder, search, tmp_path):
        scores = []
        for prompts in ({}, {"query": "Query, of which nothing else is like: "}):
            model = valuembed.load(folder, "va")
            model.prompts = prompts
            model.save_pretrained(str(tmp_path / "saved"))
            found = model.encode_query(TEXTS[40:45]) @ model.encode_document(TEXTS[:40]).T
            ranks = [int((row > row[right]).sum()) for right, row in enumerate(found)]
            # One document is relevant to each query, so nDCG is 1 / log2(2 + documents before it) in the first 10.
            gain = [1 / np.log2(2 + rank) if rank < 10 else 0 for rank in ranks]
            (score,) = evaluate(tmp_path / "saved", None, [search]).scores
            assert score.score == pytest.approx(100 * np.mean(gain), abs=1e-3)
            scores.append(score.score)
        assert abs(scores[0] - scores[1]) > 1


class TestFailures:
    """One loss costs no other score, and is never silent."""

    def test_a_task_without_its_data(self, folder, sts):
        published = mteb.get_task("STS12")

        def offline():
            raise ConnectionError("no\nnetwork")

        published.load_data = offline
        with pytest.warns(UserWarning, match="STS12, (va|wva): ConnectionError: no network"):
            found = evaluate(folder, ["va", "wva"], [published, sts])
        assert [(lost.task, lost.method) for lost in found.failures] == [("STS12", "va"), ("STS12", "wva")]
        assert [score.task for score in found.scores] == ["pairs", "pairs"]

    def test_a_method_whose_numbers_are_not_finite(self, folder, sts, monkeypatch):
        real = MultiReadout.encode

        def encode(self, texts, *, names=None, **more):
            if "hidden_mean" in names:
                raise ReadingError("the embedding of 3 texts is not finite")
            return real(self, texts, names=names, **more)

        monkeypatch.setattr(MultiReadout, "encode", encode)
        with pytest.warns(UserWarning, match="pairs, hidden_mean: the embedding of 3 texts is not finite"):
            found = evaluate(folder, ["va", "hidden_mean", "aligned_va"], [sts])
        assert [score.method for score in found.scores] == ["va", "aligned_va"]

    def test_a_score_that_is_no_number(self, folder, write, tmp_path):
        alike = write("alike.jsonl", [{"sentence1": "a", "sentence2": "b", "score": score} for score in (1, 2, 3)])
        pytest.importorskip("matplotlib")
        with pytest.warns(UserWarning, match="task alike-sts-.* method va: cosine_spearman is nan and no score"):
            found = evaluate(folder, ["va"], [f"sts:{alike}"], output=tmp_path / "out")
        assert found.scores == ()
        assert not list((tmp_path / "out").rglob("alike*"))
        with pytest.warns(UserWarning, match="cosine_spearman is nan"):
            evaluate(folder, ["va"], [f"sts:{alike}"])


class TestCuts:
    def test_are_counted_for_each_method(self, folder, sts):
        found = evaluate(folder, ["va", "echo"], [sts], max_tokens=30)
        counted = {score.method: score.truncated for score in found.scores}
        assert 0 < counted["va"] < counted["echo"]
        assert f"pairs: {counted['va']} of 60 texts were cut to 30 tokens for va" in found.cut()


class TestTitles:
    def test_tell_tasks_apart(self, folder, write, tmp_path):
        rows = pairs()
        other = tmp_path / "other"
        other.mkdir()
        changed = [rows[0], {**rows[1], "score": 9}, rows[2]]
        (other / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
        first = write("pairs.jsonl", rows)
        both = write("x.jsonl", rows).rename(tmp_path / "x.jsonl")
        found = evaluate(folder, ["va"], [f"sts:{first}", f"sts:{other / 'pairs.jsonl'}", f"sts:{both}"])
        digests = [score.name[-8:] for score in found.scores]
        assert list(found.tasks) == [f"pairs-sts-{digests[0]}", f"pairs-sts-{digests[1]}", "x"]

    def test_a_task_given_twice_is_one(self, folder, sts):
        assert len(evaluate(folder, ["va"], [sts, sts]).scores) == 1


class TestErrors:
    """Raised before any model is loaded."""

    pytestmark = pytest.mark.usefixtures("no_model")

    def test_no_task(self, folder):
        with pytest.raises(InputError, match="no task to evaluate on; legal: sts:FILE, "):
            evaluate(folder, ["va"], [])

    def test_bad_data(self, folder, write):
        path = write("bad.jsonl", [*pairs()[:2], {**pairs()[2], "score": "high"}])
        with pytest.raises(InputError, match=r"bad\.jsonl, line 3: 'score' is \"high\"; expected a finite number"):
            evaluate(folder, ["va"], [f"sts:{path}"])

    def test_unknown_method(self, folder, sts):
        with pytest.raises(RecipeError, match="method 'vaa' is unknown; give one of va, "):
            evaluate(folder, ["va", "vaa"], [sts])

    def test_layers_that_do_not_exist(self, folder, sts):
        with pytest.raises(LayerError, match="layer 9 cannot be read in this model of 4 layers"):
            evaluate(folder, ["va", "wva@9"], [sts])

    def test_calibration_of_no_method(self, folder, sts):
        with pytest.raises(RecipeError, match=r"calibrations: no method is named 'wva'; there are va$"):
            evaluate(folder, ["va"], [sts], calibrations={"wva": None})

    def test_output_that_cannot_be_made(self, folder, sts, tmp_path):
        pytest.importorskip("matplotlib")
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match=r"cannot write into .*file/deep: Not a directory"):
            evaluate(folder, ["va"], [sts], output=tmp_path / "file" / "deep")

    def test_no_model(self, sts):
        with pytest.raises(CheckpointError, match=r"no folder '\./nowhere'"):
            evaluate("./nowhere", ["va"], [sts])

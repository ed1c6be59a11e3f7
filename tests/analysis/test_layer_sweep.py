"""Every layer and signal from one pass, with the score that each has by itself."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from sklearn.metrics.pairwise import paired_cosine_distances
from some_texts import some_texts

import valuembed
from valuembed.analysis import layer_sweep as module
from valuembed.analysis.layer_sweep import Sweep, sweep
from valuembed.errors import InputError, OutputError, ReadingError, RecipeError, TemplateError, TruncationWarning
from valuembed.models.multi_readout import SIGNALS, MultiReadout
from valuembed.reporting import outputs
from valuembed.testing import tiny_checkpoint

pytestmark = pytest.mark.slow

TEXTS = some_texts(40)
SCORES = [(7 * i) % 11 / 2 for i in range(20)]
TEMPLATE = '"{text}" in one word:"'


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"sentence1": TEXTS[i], "sentence2": TEXTS[20 + i], "score": score} for i, score in enumerate(SCORES)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def swept(folder, pairs):
    return sweep(folder, f"sts:{pairs}", template=TEMPLATE)


def score_alone(model, recipe, layers):
    encode = valuembed.load(model, recipe, layers=layers, template=TEMPLATE).encode
    cosines = 1 - paired_cosine_distances(encode(TEXTS[:20]), encode(TEXTS[20:]))
    return 100 * spearmanr(cosines, SCORES).statistic


class TestScores:
    @pytest.mark.parametrize("signal", SIGNALS)
    def test_each_is_what_the_recipe_scores_alone(self, swept, folder, signal):
        assert swept.layers == list(swept.scores[signal]) == [0, 1, 2, 3]
        assert swept.scores[signal][2] == pytest.approx(score_alone(folder, SIGNALS[signal], [2]), abs=1e-9)
        assert swept.default[signal] == pytest.approx(score_alone(folder, SIGNALS[signal], None), abs=1e-9)

    def test_is_the_score_of_mteb(self, swept, folder, pairs):
        pytest.importorskip("mteb", reason="mteb is not installed; it needs Python 3.11 or newer")
        from valuembed.evaluation.local_tasks import parse_task

        through = sweep(folder, parse_task(f"sts:{pairs}"), template=TEMPLATE, signals=["values raw", "hidden last"])
        assert through.metric == "cosine_spearman x100"
        for signal, scores in through.scores.items():
            assert scores == pytest.approx(swept.scores[signal], abs=1e-9)
            assert through.default[signal] == pytest.approx(swept.default[signal], abs=1e-9)

    def test_windows_change_nothing(self, swept, folder, pairs, monkeypatch):
        # Two texts at a time.
        monkeypatch.setattr(module, "WINDOW_BYTES", 1)
        small = sweep(folder, f"sts:{pairs}", template=TEMPLATE)
        for signal, scores in small.scores.items():
            assert scores == pytest.approx(swept.scores[signal], abs=1e-9)
        assert small.details["texts"] == swept.details["texts"] == 40

    def test_no_more_texts_are_read_at_a_time_than_fit(self, folder, pairs, monkeypatch):
        read = []
        real = MultiReadout.load

        def load(*args, **options):
            readouts = real(*args, **options)
            tensors = readouts.tensors
            per_text = 4 * sum(readouts.widths().values())
            monkeypatch.setattr(module, "WINDOW_BYTES", 7 * per_text)
            readouts.tensors = lambda texts, **more: read.append(len(texts)) or tensors(texts, **more)
            return readouts

        monkeypatch.setattr(MultiReadout, "load", load)
        sweep(folder, f"sts:{pairs}")
        assert (max(read), sum(read)) == (6, 40)

    def test_one_pass(self, folder, pairs, monkeypatch):
        def passes(signals):
            counted = []
            real = MultiReadout.load

            def load(*args, **options):
                readouts = real(*args, **options)
                readouts.reader.model.register_forward_pre_hook(lambda *_: counted.append(1))
                return readouts

            with monkeypatch.context() as patch:
                patch.setattr(MultiReadout, "load", load)
                sweep(folder, f"sts:{pairs}", signals=signals)
            return len(counted)

        assert passes(tuple(SIGNALS)) == passes(["hidden mean"]) > 0

    def test_test_splits_are_read_where_a_file_has_one(self, folder, tmp_path):
        rows = [
            {"sentence1": TEXTS[i], "sentence2": TEXTS[20 + i], "score": i, "split": "test" if i % 2 else "train"}
            for i in range(20)
        ]
        path = tmp_path / "both.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = sweep(folder, f"sts:{path}", signals=["values raw"])
        assert (found.details["split"], found.details["pairs"]) == ("test", 10)


class TestModels:
    def test_values_only_where_a_hybrid_has_them(self, tmp_path, pairs):
        hybrid = tiny_checkpoint(tmp_path / "hybrid", "qwen3_next")
        found = sweep(hybrid, f"sts:{pairs}", signals=["values raw", "hidden mean"])
        assert (list(found.scores["values raw"]), found.layers) == ([1, 3], [0, 1, 2, 3])
        assert found.row(0)[0] == "-"
        assert "| 0 | - | " in found.to_markdown()

    def test_a_folder_that_was_saved_cut_has_no_defaults(self, folder, pairs, tmp_path):
        valuembed.load(folder, "va", layers=[1]).save_pretrained(str(tmp_path / "cut"))
        found = sweep(tmp_path / "cut", f"sts:{pairs}", signals=["values aligned", "hidden last"])
        assert (found.layers, found.default, found.notes()) == ([0, 1], {}, [])
        assert "default" not in found.to_markdown()

    def test_options_reach_the_model(self, folder, pairs, tmp_path):
        with pytest.warns(TruncationWarning, match=r"of 40 texts were cut to fit max_tokens=5 \(template included\)"):
            found = sweep(folder, f"sts:{pairs}", signals=["values raw"], dtype="bfloat16", max_tokens=5)
        assert (found.details["dtype"], found.details["max_tokens"]) == ("bfloat16", 5)
        assert 0 < found.details["truncated"] < 40


MADE = Sweep(
    model="m",
    task="t",
    metric="Spearman of cosine x100",
    scores={"values raw": {0: 50.0, 1: 61.234, 2: 61.234}, "hidden last": {0: math.nan, 1: 7.0, 2: -3.0}},
    default={"values raw": 55.5, "hidden last": math.nan},
    default_layers=(1, 2),
    template=("{text}",),
    details={"file": "t.jsonl"},
)


class TestResults:
    def test_best(self):
        # The first of equals; what is not defined is never best.
        assert MADE.best == {"values raw": 1, "hidden last": 1}
        assert replace(MADE, scores={"hidden last": {0: math.nan}}).best == {}

    def test_markdown(self):
        assert MADE.to_markdown() == (
            "Spearman of cosine x100: m, t, no template\n"
            "\n"
            "| layer | values raw | hidden last |\n"
            "|--:|--:|--:|\n"
            "| 0 | 50.00 | - |\n"
            "| 1 | **61.23** | **7.00** |\n"
            "| 2 | 61.23 | -3.00 |\n"
            "| default | 55.50 | - |\n"
            "\n"
            "default: of values, the mean over layers 1-2; of hidden states, the last layer after the final norm\n"
            "-: no score, for all similarities are equal there\n"
        )

    def test_several_templates_are_named_by_the_first(self):
        assert replace(MADE, template=("a {text}", "b {text}", "c {text}")).title.endswith(
            ", template a {text} and 2 more"
        )

    def test_json_has_no_nan(self):
        data = json.loads(json.dumps(MADE.to_dict(), allow_nan=False))
        assert data["scores"]["hidden last"] == {"0": None, "1": 7.0, "2": -3.0}
        assert (data["default"]["hidden last"], data["best"]) == (None, {"values raw": 1, "hidden last": 1})

    def test_write(self, tmp_path):
        for _ in range(2):
            paths = MADE.write(tmp_path / "deep" / "out")
        assert sorted(path.name for path in (tmp_path / "deep" / "out").iterdir()) == [
            "sweep.json",
            "sweep.md",
            "sweep.png",
        ]
        assert json.loads(paths[0].read_text())["model"] == "m"
        assert paths[1].read_text() == MADE.to_markdown()
        assert paths[2].read_bytes().startswith(b"\x89PNG")

    def test_the_figure_draws_each_signal_over_its_layers(self):
        figure = MADE.figure()
        (axes,) = figure.axes
        assert [line.get_label() for line in axes.lines] == ["values raw", "hidden last"]
        np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[0, 50.0], [1, 61.234], [2, 61.234]])
        assert "no template" in figure.get_suptitle()
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert labels[2:] == ["default of values: layers\n1-2", "best layer of each signal"]

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match=r"cannot write into .*file: "):
            MADE.write(tmp_path / "file")

    def test_output_is_written(self, folder, pairs, tmp_path):
        found = sweep(folder, f"sts:{pairs}", signals=["values raw"], output=tmp_path / "out")
        assert (tmp_path / "out" / "sweep.md").read_text() == found.to_markdown()
        assert found.details["origin"]["name"] == folder.name
        assert found.details["digest"] == json.loads((tmp_path / "out" / "sweep.json").read_text())["details"]["digest"]


class TestOtherTasks:
    def fake(self, monkeypatch, scores, failures=()):
        asked = []

        def evaluate(model, methods, tasks, **options):
            asked.append((model, methods, tasks, options))
            made = [
                SimpleNamespace(method=name, task="t", metric="accuracy", score=score, texts=3, tokens=9, truncated=0)
                for name, score in scores.items()
            ]
            return SimpleNamespace(scores=made, failures=failures)

        monkeypatch.setattr("valuembed.evaluation.evaluate", evaluate)
        return asked

    def test_go_through_evaluate(self, folder, monkeypatch, tmp_path):
        scores = {"values raw@0": 1.0, "values raw@2": 3.0, "values raw@default": 2.0}
        asked = self.fake(monkeypatch, scores)
        found = sweep(folder, "Banking77", template=TEMPLATE, signals=["values raw"], output=tmp_path, max_tokens=9)
        ((model, recipes, tasks, options),) = asked
        assert (model, tasks) == (folder, ["Banking77"])
        assert list(recipes) == [*(f"values raw@{layer}" for layer in range(4)), "values raw@default"]
        assert {recipe.template for recipe in recipes.values()} == {(TEMPLATE,)}
        assert options == {"output": tmp_path / "scores", "progress": True, "max_tokens": 9}
        assert found.details["origin"]["name"] == folder.name
        # A layer that evaluate gave no score is missing.
        assert (found.scores, found.default) == ({"values raw": {0: 1.0, 2: 3.0}}, {"values raw": 2.0})
        assert (found.metric, found.task, found.details["tokens"]) == ("accuracy x100", "t", 9)

    def test_that_fail_altogether(self, folder, monkeypatch):
        self.fake(monkeypatch, {}, [SimpleNamespace(task="t", reason="no network")])
        with pytest.raises(ReadingError, match="t: no layer could be scored; no network"):
            sweep(folder, "Banking77")


class TestErrors:
    def test_unknown_signal(self):
        with pytest.raises(RecipeError, match="no signal is named 'values'; legal: values raw, values aligned, "):
            sweep("bundled", "sts:x.jsonl", signals=["values raw", "values"])

    def test_no_signal(self):
        with pytest.raises(RecipeError, match=r"signals=\[\] leaves nothing to read; legal: values raw, "):
            sweep("bundled", "sts:x.jsonl", signals=[])

    def test_the_file_is_checked_before_the_model_is_read(self, tmp_path):
        with pytest.raises(InputError, match=r"cannot read .*none\.jsonl"):
            sweep("no/such-model", f"sts:{tmp_path / 'none.jsonl'}")

    def test_template(self, folder, pairs):
        with pytest.raises(TemplateError, match="prompt_eoll"):
            sweep(folder, f"sts:{pairs}", template="prompt_eoll")

    def test_not_finite(self, pairs, tmp_path):
        broken = tiny_checkpoint(tmp_path / "broken", "qwen3")
        weights = load_file(broken / "model.safetensors")
        weights["model.layers.2.self_attn.v_proj.weight"].fill_(float("inf"))
        save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(
            ReadingError, match=r"^values aligned@2: some vectors are not finite .* try dtype='float32'$"
        ):
            sweep(broken, f"sts:{pairs}", signals=["values aligned"])

    def test_texts_that_are_all_alike_measure_nothing(self, folder, tmp_path):
        path = tmp_path / "alike.jsonl"
        row = {"sentence1": "the same", "sentence2": "the same"}
        path.write_text("".join(json.dumps({**row, "score": score}) + "\n" for score in range(4)))
        with pytest.raises(
            ReadingError,
            match=r"^alike.jsonl \(4 pairs\): nothing can be measured, for in every layer all similarities are equal, "
            "and Spearman of cosine x100 is not defined; give texts that differ, or another template$",
        ):
            sweep(folder, f"sts:{path}", output=tmp_path / "out")
        assert not list((tmp_path / "out").glob("*"))

    def test_without_matplotlib_no_work_is_begun(self, folder, pairs, monkeypatch, tmp_path):
        def require(module, extra):
            raise valuembed.ValuembedError(f"{module} {extra}")

        monkeypatch.setattr(outputs, "require", require)
        with pytest.raises(valuembed.ValuembedError, match="matplotlib plot"):
            sweep("no/such-model", f"sts:{pairs}", output=tmp_path)

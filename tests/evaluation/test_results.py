"""Tables and charts of an evaluation, and results on disk that are found only by what made them."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from valuembed.errors import OutputError, ReadingError
from valuembed.evaluation.results import (
    NOTES,
    Evaluation,
    Failure,
    Kept,
    Score,
    check_finite,
    percent,
    scoring_versions,
    write,
)
from valuembed.recipes.methods import METHODS
from valuembed.recipes.recipe import Recipe

TASKS = {"A": "sts", "B": "sts", "C": "clustering"}


def score(method, task, value, **more):
    kind = TASKS.get(task, "sts")
    about = {"metric": "m", "layers": "6-7", "width": 128, "texts": 10, "tokens": 99, "truncated": 0, "seconds": 1.0}
    return Score(method=method, task=task, name=task, kind=kind, score=value, reused=False, **{**about, **more})


def evaluation(rows, tasks=TASKS, **more):
    scores = [score(method, task, value) for method, row in rows.items() for task, value in row.items()]
    recipes = {method: replace(METHODS.get(method, METHODS["va"]), layers=(6, 7)) for method in rows}
    return Evaluation("tiny", recipes, tasks, tuple(scores), **more)


FULL = evaluation({"va": {"A": 10.0, "B": 20.0, "C": 90.0}, "wva": {"A": 30.0, "B": 20.0, "C": 30.0}})


class TestTable:
    def test_scores_by_method_and_task(self):
        assert FULL.table() == {"va": {"A": 10, "B": 20, "C": 90}, "wva": {"A": 30, "B": 20, "C": 30}}

    def test_means_of_kinds_and_tasks(self):
        # va: sts (10 + 20) / 2 = 15, tasks (10 + 20 + 90) / 3 = 40, kinds (15 + 90) / 2 = 52.5
        means = {"mean sts": 15, "mean of tasks": 40, "mean of kinds": 52.5}
        assert FULL.means()["va"] == pytest.approx(means)
        assert FULL.means()["wva"] == pytest.approx({"mean sts": 25, "mean of tasks": 80 / 3, "mean of kinds": 27.5})

    def test_no_mean_is_shown_twice(self):
        one_kind = evaluation({"va": {"A": 10.0, "B": 20.0}}, {"A": "sts", "B": "sts"})
        assert one_kind.means() == {"va": {"mean": 15}}
        one_each = evaluation({"va": {"A": 10.0, "C": 20.0}}, {"A": "sts", "C": "clustering"})
        assert one_each.means() == {"va": {"mean": 15}}
        assert evaluation({"va": {"A": 10.0}}, {"A": "sts"}).means() == {"va": {}}

    def test_a_method_that_failed_has_no_mean_over_it(self):
        rows = {"va": {"A": 10.0, "B": 20.0}, "wva": {"B": 20.0, "C": 1.0}, "echo": {}}
        assert evaluation(rows).means() == {"va": {"mean sts": 15}, "wva": {}, "echo": {}}

    def test_columns_are_the_tasks_and_then_the_means(self):
        columns = FULL.columns()
        assert list(columns) == ["A", "B", "C", "mean sts", "mean of tasks", "mean of kinds"]
        assert columns["C"] == {"va": 90, "wva": 30}

    def test_plain_data(self):
        data = json.loads(json.dumps(FULL.to_dict()))
        assert data["table"]["va"]["C"] == 90
        assert data["scores"][0]["method"] == "va"
        assert Recipe.from_dict(data["recipes"]["wva"]) == FULL.recipes["wva"]
        assert set(data["versions"]) == {"valuembed", "torch", "transformers", "sentence-transformers", "mteb"}


class TestMarkdown:
    def test_table(self):
        lines = FULL.to_markdown().splitlines()
        start = lines.index(
            "| method | layers | width | A (m) | B (m) | C (m) | mean sts | mean of tasks | mean of kinds |"
        )
        assert lines[start + 1 : start + 4] == [
            "|:--|:--|--:|--:|--:|--:|--:|--:|--:|",
            "| va | 6-7 | 128 | 10.00 | **20.00** | **90.00** | 15.00 | **40.00** | **52.50** |",
            "| wva | 6-7 | 128 | **30.00** | **20.00** | 30.00 | **25.00** | 26.67 | 27.50 |",
        ]

    def test_one_method_has_no_best(self):
        assert "**" not in evaluation({"va": {"A": 1.0}}, {"A": "sts"}).to_markdown()

    def test_recipes_with_templates_by_name_or_in_full(self):
        own = Recipe(signal="value", weights="mean", template='a | "{text}"', query_template="prompt_eol", span="all")
        made = Evaluation("tiny", {"wva": METHODS["wva"], "meta": METHODS["meta_eol"], "own": own}, {"A": "sts"}, ())
        text = made.to_markdown()
        assert "| wva | value | last | none | text | prompt_eol | none |" in text
        assert "| meta | hidden | last | none | text | meta_eol | none |" in text
        assert '| own | value | mean | none | all | `a \\| "{text}"`; query: prompt_eol | none |' in text

    def test_failures_and_cut_texts(self):
        made = Evaluation(
            "tiny",
            {method: METHODS[method] for method in ("va", "wva", "echo")},
            {"A": "sts"},
            tuple(score(method, "A", 1.0, texts=2000, truncated=count) for method, count in (("va", 7), ("wva", 7))),
            (Failure("echo", "A", "Oh\nno | what"),),
            max_tokens=64,
        )
        text = made.to_markdown()
        assert "- A, echo: Oh no \\| what" in text
        assert "- A: 7 of 2,000 texts were cut to 64 tokens for va, wva" in text
        assert "| echo | final norm |  | - |" in text


class TestFigure:
    def texts(self, made):
        pytest.importorskip("matplotlib")
        figure = made.figure()
        return figure, [axes.get_title() for axes in figure.axes if axes.get_visible()]

    def test_few_methods_stand_side_by_side_for_each_task(self):
        figure, titles = self.texts(FULL)
        assert (titles, figure.get_suptitle()) == ([""], "Evaluation of tiny")
        assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["A", "B", "C"]

    def test_many_methods_have_a_panel_for_each_column(self):
        rows = {f"m{number}": {"A": float(number), "B": 50.0} for number in range(20)}
        del rows["m7"]["A"]
        figure, titles = self.texts(evaluation(rows, {"A": "sts", "B": "sts"}))
        assert titles == ["A", "B", "mean"]
        readouts = figure.axes[0]
        assert [tick.get_text() for tick in readouts.get_yticklabels()] == list(rows)
        assert [text.get_text() for text in readouts.texts][5:9] == ["5.00", "6.00", "-", "8.00"]
        # The best one is told apart, and the first method stands on top.
        assert len({patch.get_facecolor() for patch in readouts.patches}) == 2
        assert readouts.patches[19].get_facecolor() != readouts.patches[0].get_facecolor()
        assert readouts.yaxis_inverted()

    def test_too_many_tasks_leave_the_means(self):
        tasks = {f"t{number}": "sts" if number % 2 else "pairs" for number in range(30)}
        _, titles = self.texts(evaluation({"va": dict.fromkeys(tasks, 1.0), "wva": dict.fromkeys(tasks, 2.0)}, tasks))
        assert titles == ["mean pairs", "mean sts", "mean of tasks", "mean of kinds"]

    def test_too_many_tasks_without_a_mean_leave_the_first_that_have_scores(self):
        # As after an interruption: of no kind are all tasks there.
        tasks = {f"t{number}": "sts" for number in range(30)}
        for count, shown in ((1, 1), (20, 12)):
            row = {f"t{number}": 1.0 for number in range(5, 5 + count)}
            figure, titles = self.texts(evaluation({"va": row, "wva": {}}, tasks))
            assert titles == list(row)[:12]
            assert figure.get_suptitle().replace("\n", " ") == f"Evaluation of tiny, {shown} of 30 tasks, in percent"

    def test_a_name_is_no_formula(self):
        name = "from $5} to $6"
        rows = {f"{name} {number}": {name: 1.0} for number in range(8)}
        figure, titles = self.texts(replace(evaluation(rows, {name: "sts"}), model=name))
        figure.draw_without_rendering()
        assert (titles, figure.get_suptitle()) == ([name], f"Evaluation of {name}, in percent")

    @pytest.mark.parametrize("count", [1, 12, 30])
    def test_no_score_at_all(self, count):
        figure, _ = self.texts(evaluation({"va": {}}, {f"t{number}": "sts" for number in range(count)}))
        figure.draw_without_rendering()


class TestFiles:
    def test_table_and_chart(self, tmp_path):
        pytest.importorskip("matplotlib")
        write(FULL, tmp_path)
        assert (tmp_path / "results.md").read_text() == FULL.to_markdown()
        assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
        assert len(list(tmp_path.iterdir())) == 2

    def test_one_score_of_many_tasks(self, tmp_path):
        pytest.importorskip("matplotlib")
        write(evaluation({"va": {"t0": 1.0}}, {f"t{number}": "sts" for number in range(13)}), tmp_path)
        assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")

    def test_that_cannot_be_written(self, tmp_path):
        with pytest.raises(OutputError, match=r"cannot write .*results\.md: No such file or directory"):
            write(FULL, tmp_path / "missing")


@pytest.fixture
def mteb():
    return pytest.importorskip("mteb", reason="mteb is not installed; it needs Python 3.11 or newer")


class TestKept:
    """A result is found by model, recipe, task and data, and by nothing less."""

    @pytest.fixture
    def task(self, mteb):
        return self.make_task(mteb)

    def make_task(self, mteb, revision="r1", splits=("test",)):
        metadata = mteb.TaskMetadata(
            name="Tiny",
            description="",
            dataset={"path": "tiny", "revision": revision},
            type="STS",
            eval_splits=list(splits),
            eval_langs=["eng-Latn"],
            main_score="cosine_spearman",
        )
        members = {"metadata": metadata, "data_loaded": True, "dataset": {}}
        return type("Tiny", (mteb.abstasks.AbsTaskSTS,), members)()

    def result(self, mteb, task, value=0.5, splits=("test",)):
        scores = {split: {"default": {"main_score": value, "cosine_spearman": value}} for split in splits}
        return mteb.TaskResult.from_task_results(task, scores, evaluation_time=1.0)

    def kept(self, folder, revision="abc", notes=None):
        from valuembed.evaluation.mteb_adapter import model_meta

        return Kept(folder, model_meta("tiny", revision), "va", lambda: notes or {"width": 3})

    def test_round_trip(self, mteb, tmp_path, task):
        kept = self.kept(tmp_path)
        assert kept.find(task) is None
        kept.save_to_cache(self.result(mteb, task, 0.123456789), None)
        found, notes = self.kept(tmp_path).find(task)
        assert (found.get_score(), notes) == (0.123457, {"width": 3, "versions": scoring_versions()})

    def test_the_file_is_mtebs_own_with_ours_beside_it(self, mteb, tmp_path, task):
        kept = self.kept(tmp_path, notes={"recipe": METHODS["va"].to_dict()})
        kept.find(task)
        kept.save_to_cache(self.result(mteb, task), None)
        path = tmp_path / "results" / "local__tiny" / "abc" / "Tiny.json"
        assert json.loads(path.read_text())[NOTES] == {
            "recipe": METHODS["va"].to_dict(),
            "versions": scoring_versions(),
        }
        assert mteb.TaskResult.from_disk(path).get_score() == 0.5
        assert mteb.ResultCache(tmp_path).get_cache_paths() == [path]
        assert not list(tmp_path.rglob("*.tmp"))

    def test_another_model_or_recipe_finds_nothing(self, mteb, tmp_path, task):
        kept = self.kept(tmp_path)
        kept.find(task)
        kept.save_to_cache(self.result(mteb, task), None)
        assert self.kept(tmp_path, revision="abd").find(task) is None

    def test_another_release_of_the_data_finds_nothing(self, mteb, tmp_path, task):
        kept = self.kept(tmp_path)
        kept.find(task)
        kept.save_to_cache(self.result(mteb, task), None)
        assert self.kept(tmp_path).find(self.make_task(mteb, revision="r2")) is None

    @pytest.mark.parametrize("package", ["mteb", "torch", "transformers", "sentence-transformers"])
    def test_other_versions_find_nothing(self, mteb, tmp_path, task, monkeypatch, package):
        kept = self.kept(tmp_path)
        kept.find(task)
        kept.save_to_cache(self.result(mteb, task), None)
        monkeypatch.setattr("importlib.metadata.version", lambda name: "999" if name == package else version(name))
        assert self.kept(tmp_path).find(task) is None
        # Nor is one carried on that other versions began.
        again = self.kept(tmp_path)
        again.find(task)
        assert again.load_task_result("Tiny", None) is None

    def test_an_incomplete_result_is_not_found_but_carried_on(self, mteb, tmp_path):
        task = self.make_task(mteb, splits=("dev", "test"))
        kept = self.kept(tmp_path)
        kept.find(task)
        kept.save_to_cache(self.result(mteb, task, splits=("dev",)), None)
        again = self.kept(tmp_path)
        assert again.find(task) is None
        assert list(again.load_task_result("Tiny", None).scores) == ["dev"]

    @pytest.mark.parametrize("content", ["", '{"task_name": ', '{"task_name": "Tiny"}', '{"valuembed": {}}', "[]"])
    def test_a_damaged_file_is_computed_again(self, tmp_path, task, content):
        path = tmp_path / "results" / "local__tiny" / "abc" / "Tiny.json"
        path.parent.mkdir(parents=True)
        path.write_text(content)
        assert self.kept(tmp_path).find(task) is None

    def test_several_tasks_are_known_at_once(self, mteb, tmp_path, task):
        other = self.make_task(mteb)
        other.metadata = other.metadata.model_copy(update={"name": "Other"})
        kept = self.kept(tmp_path)
        kept.find(task), kept.find(other)
        for one in (task, other):
            kept.save_to_cache(self.result(mteb, one), None)
            assert kept.find(one)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
    def test_no_number_is_an_error_and_not_kept(self, mteb, tmp_path, task, value):
        kept = self.kept(tmp_path)
        kept.find(task)
        result = self.result(mteb, task)
        result.scores["test"][0]["main_score"] = value
        with pytest.raises(ReadingError, match=f"task Tiny, split test, method va: cosine_spearman is {value} and no"):
            kept.save_to_cache(result, None)
        assert kept.find(task) is None
        assert not list(tmp_path.rglob("Tiny.json"))

    def test_a_folder_that_vanished(self, mteb, tmp_path, task, monkeypatch):
        kept = self.kept(tmp_path)
        kept.find(task)
        monkeypatch.setattr(Path, "mkdir", lambda *args, **kwargs: (_ for _ in ()).throw(PermissionError(13, "denied")))
        with pytest.raises(OutputError, match=r"cannot write .*Tiny\.json: denied"):
            kept.save_to_cache(self.result(mteb, task), None)


def test_only_main_scores_have_to_be_numbers():
    entry = {"main_score": 0.5, "nauc": float("nan")}
    task = SimpleNamespace(metadata=SimpleNamespace(name="x", main_score="y"))
    check_finite(SimpleNamespace(scores={"test": [entry]}), task, "va")


def test_percent():
    assert (percent(12.345678), percent(None), percent(-0.5)) == ("12.35", "-", "-0.50")

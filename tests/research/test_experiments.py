"""The files of the experiments against what they stand for, and every mistake in such a file by name."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from transformers import AutoConfig

from valuembed.errors import InputError, RecipeError
from valuembed.recipes.layers import preset_for
from valuembed.recipes.recipe import Recipe
from valuembed.recipes.templates import TEMPLATES
from valuembed.research.experiments import FOLDER, KINDS, STS, backbones, map_layers, read_backbone

STS_SETS = ["STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R"]


@pytest.fixture(params=["llama-2-7b", "qwen-3-8b"])
def backbone(request):
    return read_backbone(request.param)


@pytest.fixture
def written(tmp_path):
    """Write a changed copy of a backbone's file and give its path."""

    def write(change):
        data = json.loads((FOLDER / "llama-2-7b.json").read_text())
        change(data)
        path = tmp_path / "mine.json"
        path.write_text(json.dumps(data))
        return str(path)

    return write


class TestFiles:
    def test_are_these(self):
        assert backbones() == ["llama-2-7b", "qwen-3-8b"]
        assert [read_backbone(name).id for name in backbones()] == backbones()
        assert read_backbone("bundled") == read_backbone("qwen-3-8b")

    def test_decoder_is_the_one_that_the_preset_knows(self, backbone):
        assert preset_for(AutoConfig.for_model(**backbone.decoder)) == backbone.id

    def test_name_every_row_of_the_tables(self, backbone):
        recipes = {row.id: row.recipe for row in backbone.rows}
        value = {row_id: recipe for row_id, recipe in recipes.items() if recipe.signal == "value"}
        assert {row_id: recipe.layers for row_id, recipe in value.items()} == {
            **dict.fromkeys(value, backbone.id),
            "va_full": "all",
            "va_half": "half",
        }
        names = {
            (text,) if isinstance(text, str) else text: name for name, text in TEMPLATES.items()
        }  # template strings by name
        found = {
            (recipe.signal, recipe.weights, recipe.aligned, names[recipe.template], recipe.cleaning)
            for recipe in recipes.values()
        }
        assert found == {
            ("value", "mean", False, "none", "none"),
            ("value", "mean", True, "none", "none"),
            ("value", "last", False, "none", "none"),
            ("value", "last", False, "prompt_eol", "none"),
            ("value", "last", False, "future_eol", "none"),
            ("value", "last", True, "prompt_eol", "none"),
            ("value", "last", True, "future_eol", "none"),
            ("value", "last", True, "prompt_eol", "sentence"),
            ("hidden", "mean", False, "none", "none"),
            ("hidden", "last", False, "none", "none"),
            ("hidden", "last", False, "prompt_eol", "none"),
            ("hidden", "last", False, "prompt_eol", "sentence"),
            ("hidden", "mean", False, "echo", "none"),
            ("hidden", "last", False, "pretended_cot", "none"),
            ("hidden", "last", False, "knowledge", "none"),
            ("hidden", "last", False, "meta_eol", "none"),
        }
        # Value presets would cripple a baseline: it keeps the last layer after the final norm.
        assert all(recipe.reads_final_norm for recipe in recipes.values() if recipe.signal == "hidden")

    def test_name_the_seven_sts_sets_and_every_kind(self, backbone):
        assert [task.name for task in backbone.tasks if task.kind == STS] == STS_SETS
        assert {task.kind for task in backbone.tasks} == set(KINDS)

    def test_agree_on_rows_and_tasks(self):
        one, other = map(read_backbone, backbones())
        plain = [
            [replace(row, recipe=replace(row.recipe, layers=None)) for row in backbone.rows]
            for backbone in (one, other)
        ]
        assert plain[0] == plain[1]
        assert [(task.name, task.kind, task.texts) for task in one.tasks] == [
            (task.name, task.kind, task.texts) for task in other.tasks
        ]

    @pytest.mark.parametrize(("name", "mean"), [("llama-2-7b", 77.91), ("qwen-3-8b", 74.79)])
    def test_published_figures_of_each_set_have_the_published_mean(self, name, mean):
        by_set = [entry for entry in read_backbone(name).theirs if entry.scores]
        assert [(entry.label, list(entry.scores)) for entry in by_set] == [("AlignedWVA", STS_SETS)]
        assert round(by_set[0].mean, 2) == mean

    def test_other_published_figures(self):
        means = {name: {e.label: e.mean for e in read_backbone(name).theirs if not e.scores} for name in backbones()}
        dysem = "DySem (13 passes, scores pairs)"
        assert means == {
            "llama-2-7b": {
                "mean of hidden states": 46.96,
                "PromptEOL": 70.11,
                "Token Prepending": 77.19,
                dysem: 78.98,
            },
            "qwen-3-8b": {"mean of hidden states": 38.82, "PromptEOL": 68.91, dysem: 80.54},
        }
        assert {entry.source for name in backbones() for entry in read_backbone(name).theirs} == {
            "DySem repository (arXiv 2605.29751)"
        }

    def test_printed_rows_have_six_figures(self, backbone):
        assert len(backbone.printed) == {"llama-2-7b": 4, "qwen-3-8b": 3}[backbone.id]
        assert {len(entry.figures) for entry in backbone.printed} == {6}
        assert (
            max(entry.figures[5] for entry in backbone.printed)
            == {"llama-2-7b": 83.38, "qwen-3-8b": 84.31}[backbone.id]
        )

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from packages that mteb imports
    def test_tasks_are_mtebs_in_english_and_of_their_size(self, backbone):
        mteb = pytest.importorskip("mteb")
        for task in backbone.tasks:
            metadata = mteb.get_task(task.name).metadata
            assert metadata.type.lower() == task.kind
            assert metadata.languages == ["eng"]
            count = metadata.descriptive_stats["test"]["num_samples"]
            if task.kind == STS:
                assert task.texts == 2 * count
            elif task.kind in ("retrieval", "reranking"):
                assert task.texts == count


class TestMapping:
    def test_by_hand(self):
        # 20 * 8 / 32 = 5, 23.. gives 5.75; 24 * 8 / 32 = 6, 27 gives 6.75.
        assert map_layers(tuple(range(20, 28)), 32, 8) == (5, 6)
        # 26 * 8 / 36 = 5.8, 27 * 8 / 36 = 6, 31 * 8 / 36 = 6.9.
        assert map_layers((26, 27, 29, 30, 31), 36, 8) == (5, 6)
        # To the deeper one: 1 * 6 / 4 = 1.5, 3 * 6 / 4 = 4.5.
        assert map_layers((1, 3), 4, 6) == (1, 4)

    @pytest.mark.parametrize("depth", [1, 36, 49])
    def test_same_depth_changes_nothing(self, depth):
        assert map_layers(tuple(range(depth)), depth, depth) == tuple(range(depth))
        # As floats, 1 / 49 * 98 is less than 2.
        assert map_layers(tuple(range(depth)), depth, 2 * depth) == tuple(range(0, 2 * depth, 2))

    def test_no_layer_of_the_backbone(self):
        with pytest.raises(RecipeError, match="layer 32 cannot be mapped by depth; expected 0 to 31"):
            map_layers((31, 32), 32, 8)

    def test_rows(self, backbone):
        rows = {row.id: row for row in backbone.rows}
        assert backbone.recipe(rows["va"], 8).layers == (5, 6)
        assert backbone.recipe(rows["va"], backbone.num_layers) == rows["va"].recipe
        for same in ("va_full", "va_half", "hidden_mean", "prompt_eol"):
            assert backbone.recipe(rows[same], 8) == rows[same].recipe


class TestOwnFiles:
    def test_a_row_may_be_a_recipe(self, written):
        recipe = Recipe(signal="hidden", weights="mean", layers=[3, 16])

        def change(data):
            data["rows"] = [{"id": "deep", "label": "Deep", "recipe": recipe.to_dict()}]
            del data["theirs"], data["printed"], data["notes"], data["sizes"]

        backbone = read_backbone(written(change))
        assert [row.recipe for row in backbone.rows] == [recipe]
        assert backbone.recipe(backbone.rows[0], 8).layers == (0, 4)
        assert (backbone.theirs, backbone.printed, backbone.notes) == ((), (), ())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda data: data.update(row=[]), "the file: unknown key 'row'; legal: id, title, model, decoder, rows"),
            (lambda data: data.pop("tasks"), "the file: lacks the key 'tasks'; needed: id, title"),
            (lambda data: data.update(model=3), "the file: 'model' is 3; expected a string"),
            (lambda data: data.update(rows=[]), "rows: is empty"),
            (lambda data: data["decoder"].pop("num_hidden_layers"), "decoder: needs 'model_type' and 'num_hidden"),
            (lambda data: data["rows"][2].update(layer=3), r"rows\[2\]: unknown key 'layer'; legal: id, label, method"),
            (lambda data: data["rows"][0].update(method="vaa"), r"rows\[0\]: method 'vaa' is unknown; give one of va"),
            (lambda data: data["rows"][0].update(template="none{"), r"rows\[0\]: template 'none\{' "),
            (lambda data: data["rows"].append(3), r"rows\[18\]: is int, not an object"),
            (lambda data: data["rows"][1].update(id="va_full"), "rows: the id: 'va_full' stands twice"),
            (lambda data: data["rows"][1].update(label="MetaEOL"), "rows: the label: 'MetaEOL' stands twice"),
            (lambda data: data["tasks"][1].update(name="STS12"), "tasks: the name: 'STS12' stands twice"),
            (lambda data: data["tasks"][1].update(kind="STS"), r"tasks\[1\]: kind 'STS' is unknown; legal: clustering"),
            (lambda data: data["tasks"][1].update(texts=0), r"tasks\[1\]: 'texts' and 'tokens_per_text' have to be"),
            (lambda data: data["tasks"][1].update(texts=True), r"tasks\[1\]: 'texts' is True; expected a whole number"),
            (lambda data: data["theirs"][0].pop("mean"), r"theirs\[0\]: needs either 'scores' by task or 'mean'"),
            (lambda data: data["theirs"][3]["scores"].pop("STS12"), r"theirs\[3\]: scores of STS13.*those of STS12"),
        ],
    )
    def test_mistakes_are_named(self, written, change, message):
        with pytest.raises(InputError, match=f"backbone file 'mine.json': {message}"):
            read_backbone(written(change))

    def test_unknown(self):
        with pytest.raises(InputError, match=r"'llama' is unknown; legal: llama-2-7b, qwen-3-8b, bundled, or a .json"):
            read_backbone("llama")

    def test_no_such_file(self, tmp_path):
        with pytest.raises(InputError, match=r"backbone file 'none.json' cannot be read: .*No such file"):
            read_backbone(str(tmp_path / "none.json"))

    def test_no_json(self, tmp_path):
        path = tmp_path / "broken.json"
        path.write_text("{")
        with pytest.raises(InputError, match=r"backbone file 'broken.json' cannot be read: Expecting property name"):
            read_backbone(str(path))

"""How several methods are named at once."""

from __future__ import annotations

import warnings

import pytest

import valuembed
from valuembed.backbone.checkpoints.location import locate
from valuembed.errors import LayerError, RecipeError
from valuembed.models.method_choice import choose_recipes
from valuembed.recipes.method_specs import MethodRequest, parse_methods
from valuembed.recipes.methods import METHODS, write_recipe
from valuembed.recipes.recipe import Recipe
from valuembed.recipes.templates import TEMPLATES


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("va", MethodRequest("va")),
        ("va@all", MethodRequest("va", None, "all")),
        ("va@20:28", MethodRequest("va", None, "20:28")),
        ("va@14,15,16", MethodRequest("va", None, "14,15,16")),
        ("wva:future_eol", MethodRequest("wva", "future_eol")),
        ("aligned_wva:future_eol@0.65:0.9", MethodRequest("aligned_wva", "future_eol", "0.65:0.9")),
        ('wva:Say "{text}" : now', MethodRequest("wva", 'Say "{text}" : now')),
        ("wva:to x@y: {text}", MethodRequest("wva", "to x@y: {text}")),
        ("wva:to x@y: {text}@half", MethodRequest("wva", "to x@y: {text}", "half")),
    ],
)
def test_name_template_and_layers(spec, expected):
    assert parse_methods([spec]) == {spec: expected}
    assert parse_methods(spec) == {spec: expected}


def test_all_is_every_row():
    assert list(parse_methods("all")) == list(METHODS)
    assert list(parse_methods(["va@all", "all"])) == ["va@all", *METHODS]


def test_a_method_named_twice_is_one():
    assert list(parse_methods(["va", "wva", "va"])) == ["va", "wva"]


def test_recipe_files_are_called_by_their_names(tmp_path):
    path = tmp_path / "at@home: mine.json"
    write_recipe(path, METHODS["va"])
    assert parse_methods([str(path)]) == {"at@home: mine": MethodRequest(str(path))}
    assert parse_methods([f"{path}@half"]) == {"at@home: mine@half": MethodRequest(str(path), None, "half")}


def test_labels_of_the_callers_choice():
    recipe = Recipe(signal="value", weights="mean")
    assert parse_methods({"mine": recipe, 2: "va"}) == {"mine": MethodRequest(recipe), "2": MethodRequest("va")}
    assert parse_methods(None) is None


class TestChoice:
    @pytest.fixture
    def chosen(self, folder):
        def choose_from(*methods, layers=None, template="auto", cleaning=None):
            return choose_recipes(locate(folder), parse_methods(methods or None), layers, template, cleaning)

        return choose_from

    def test_own_template_and_layers_win(self, chosen):
        made = chosen("wva", "wva:future_eol", "wva@0", layers="all", template="echo", cleaning="sentence")
        assert [recipe.layers for recipe in made.values() if recipe] == ["all", "all", "0"]
        templates = [recipe.template for recipe in made.values()]
        assert templates == [(TEMPLATES["echo"],), (TEMPLATES["future_eol"],), (TEMPLATES["echo"],)]
        assert {recipe.cleaning for recipe in made.values()} == {"sentence"}

    def test_layers_for_all_do_not_cripple_a_baseline(self, chosen):
        with pytest.warns(UserWarning, match="layers='half' is for value methods; not applied to hidden_mean$"):
            made = chosen("va", "va@all", "hidden_mean", layers="half")
        assert {label: recipe.layers for label, recipe in made.items()} == {
            "va": "half",
            "va@all": "all",
            "hidden_mean": None,
        }

    def test_layers_that_apply_to_all_need_no_word(self, chosen):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            chosen("va", "wva", layers="half")
        assert caught == []

    def test_layers_of_a_baseline_stand_beside_its_name(self, chosen):
        assert chosen("hidden_mean@half")["hidden_mean@half"].layers == "half"

    def test_no_method_is_the_models_own(self, chosen, folder, tmp_path):
        assert chosen(layers=[1]) == {"aligned_wva": Recipe(**{**METHODS["aligned_wva"].__dict__, "layers": (1,)})}
        valuembed.load(folder, "va", layers=[1, 2]).save_pretrained(str(tmp_path / "saved"))
        saved = choose_recipes(locate(tmp_path / "saved"), None, None, "auto", None)
        assert {label: recipe.layers for label, recipe in saved.items()} == {"va (as saved)": (1, 2)}


class TestErrors:
    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("vaa", "method 'vaa' is unknown; give one of va, aligned_va, .*wva:future_eol or va@20:28"),
            ("va,wva", "method 'va,wva' is unknown"),
            ("all@half", "method 'all@half' is unknown"),
            ("va@", "method 'va@': layers have to follow '@', as in wva:future_eol@half"),
            ("va:", "method 'va:': a template has to follow ':'"),
            ("va:@half", "method 'va:@half': a template has to follow ':'"),
            ("wva:future_eol@", "layers have to follow '@'"),
            (3, "a method is named by a string, got int: 3; recipes need labels"),
        ],
    )
    def test_no_method(self, spec, message):
        with pytest.raises(RecipeError, match=message):
            parse_methods([spec])

    def test_none_at_all(self):
        with pytest.raises(RecipeError, match="no method to evaluate; give some of va, "):
            parse_methods([])

    def test_two_files_of_one_name(self):
        with pytest.raises(RecipeError, match=r"method 'b/x.json': two recipe files are named 'x'; rename one"):
            parse_methods(["a/x.json", "b/x.json"])

    def test_layers_for_no_method(self, folder):
        with pytest.raises(RecipeError, match=r"is for value methods that name no layers .* as in hidden_mean@half"):
            choose_recipes(locate(folder), parse_methods(["hidden_mean"]), "half", "auto", None)

    def test_unknown_template(self, folder):
        with pytest.raises(RecipeError, match="template 'futur_eol' is unknown; give one of none, "):
            choose_recipes(locate(folder), parse_methods(["wva:futur_eol"]), None, "auto", None)

    def test_unknown_layers_are_named_later(self, folder):
        # Whether layers exist is known only with the model.
        made = choose_recipes(locate(folder), parse_methods(["va@99"]), None, "auto", None)
        with pytest.raises(LayerError, match="layers='99': layer 99 cannot be read in this model of 4 layers"):
            valuembed.load(folder, made["va@99"])

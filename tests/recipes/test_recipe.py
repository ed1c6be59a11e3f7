"""The table of methods against the paper's, and what makes a recipe meaningless."""

from __future__ import annotations

import json
import re
from dataclasses import FrozenInstanceError, fields, replace

import pytest
from hypothesis import given, strategies as st

from valuembed.errors import LayerError, RecipeError, TemplateError, ValuembedError
from valuembed.recipes.methods import METHODS, read_recipe, resolve_recipe, write_recipe
from valuembed.recipes.recipe import Recipe
from valuembed.recipes.templates import META_EOL, TEMPLATES

PROMPT_EOL = ('This sentence : "{text}" means in one word:"',)
NONE = ("{text}",)

# name: signal, token weights, through W_O, template. The first four are the paper's, the rest what it compares with.
TABLE = {
    "va": ("value", "mean", False, NONE),
    "aligned_va": ("value", "mean", True, NONE),
    "wva": ("value", "last", False, PROMPT_EOL),
    "aligned_wva": ("value", "last", True, PROMPT_EOL),
    "hidden_mean": ("hidden", "mean", False, NONE),
    "hidden_last": ("hidden", "last", False, NONE),
    "prompt_eol": ("hidden", "last", False, PROMPT_EOL),
    "meta_eol": ("hidden", "last", False, META_EOL),
    "echo": ("hidden", "mean", False, (TEMPLATES["echo"],)),
}

OWN = Recipe(signal="value", weights="mean")
ODD = (
    Recipe(signal="value", weights="mean", span="all", layers="0.65:0.9", method="mine"),
    Recipe(signal="value", weights="last", alignment="projection", layers=[3, 1], template="future_eol"),
    Recipe(signal="hidden", weights="mean", layers=-1, template=["none", "A: {text}"], query_template="Q: {text}"),
    Recipe(signal="hidden", weights="last", layers=0.75, document_template="meta_eol"),
    Recipe(signal="value", weights="mean", layers=[0.5, 1.0], template='"{prompt}" {text} {{x}} é\n'),
    Recipe(signal="value", weights="mean", layers=range(20, 28)),
)


class TestTable:
    def test_is_the_papers(self):
        read = {name: (r.signal, r.weights, r.aligned, r.template) for name, r in METHODS.items() if not r.joined}
        assert read == TABLE
        assert {name for name, r in METHODS.items() if r.joined} == {"joined"}

    @pytest.mark.parametrize("name", METHODS)
    def test_rows_leave_the_rest_open(self, name):
        recipe = METHODS[name]
        assert recipe.method == name
        assert (recipe.layers, recipe.span) == (None, "text")
        assert (recipe.query_template, recipe.document_template) == (None, None)

    def test_only_hidden_states_without_layers_need_the_final_norm(self):
        # Hugging Face's last_hidden_state; with explicit layers no norm is applied.
        assert {name for name, r in METHODS.items() if r.reads_final_norm} == set(list(TABLE)[4:])
        assert not replace(METHODS["echo"], layers=[3]).reads_final_norm

    def test_the_name_decides_nothing(self):
        with pytest.raises(FrozenInstanceError):
            METHODS["va"].signal = "hidden"
        assert Recipe(method="va", signal="hidden", weights="last").signal == "hidden"


class TestPlainData:
    @pytest.mark.parametrize("recipe", [*METHODS.values(), *ODD], ids=lambda recipe: recipe.method)
    def test_round_trip(self, recipe):
        assert Recipe.from_dict(recipe.to_dict()) == recipe
        through_json = json.loads(json.dumps(recipe.to_dict()))
        assert through_json == recipe.to_dict()
        again = Recipe.from_dict(through_json)
        assert again == recipe
        assert hash(again) == hash(recipe)

    @given(
        signal=st.sampled_from(["value", "hidden"]),
        weights=st.sampled_from(["mean", "last"]),
        alignment=st.sampled_from(["none", "projection", "residual"]),
        span=st.sampled_from(["text", "all"]),
        layers=st.none() | st.integers(-40, 40) | st.lists(st.integers(0, 40)) | st.sampled_from(["all", "2:5", 0.5]),
        template=st.sampled_from([*TEMPLATES, None, "{prompt}{text}", ["none", "echo"]]),
        query=st.sampled_from([None, "none", "Q {text}"]),
    )
    def test_every_combination_is_either_refused_or_survives(self, **choices):
        query = choices.pop("query")
        meaningless = (choices["signal"] == "hidden" and choices["alignment"] != "none") or (
            choices["weights"] == "last" and choices["span"] == "all"
        )
        if meaningless:
            with pytest.raises(
                RecipeError,
                match=r"signal='hidden' with alignment='(projection|residual)'|span='all' belongs to weights='mean'",
            ):
                Recipe(**choices, query_template=query)
            return
        recipe = Recipe(**choices, query_template=query)
        assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe

    def test_holds_every_field(self):
        assert list(OWN.to_dict()) == [field.name for field in fields(Recipe)]

    def test_defaults_may_be_left_out(self):
        assert Recipe.from_dict({"signal": "value", "weights": "mean"}) == OWN

    def test_unknown_keys(self):
        data = {**OWN.to_dict(), "aligment": True, "Layers": 3}
        said = (
            "a recipe has no 'Layers', 'aligment'; its fields are alignment, centring, cleaning, document_template, "
            "joined, layers, method"
        )
        with pytest.raises(RecipeError, match=re.escape(said)):
            Recipe.from_dict(data)

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            ({}, "a recipe needs 'signal' and 'weights', got only []"),
            ({"signal": "value", "span": "text"}, "a recipe needs 'weights', got only ['signal', 'span']"),
        ],
    )
    def test_missing_keys(self, data, said):
        with pytest.raises(RecipeError, match=re.escape(said)):
            Recipe.from_dict(data)


class TestBooleanAlignment:
    """Recorded recipes may say ``aligned`` and a boolean."""

    @pytest.mark.parametrize(("aligned", "alignment"), [(True, "projection"), (False, "none")])
    def test_is_read_and_written_as_a_name(self, aligned, alignment):
        data = {name: value for name, value in OWN.to_dict().items() if name != "alignment"}
        recipe = Recipe.from_dict({**data, "aligned": aligned})
        assert recipe == replace(OWN, alignment=alignment)
        assert recipe.aligned is aligned
        assert "aligned" not in recipe.to_dict()

    @pytest.mark.parametrize("data", [{"aligned": "yes"}, {"aligned": 1}, {"aligned": True, "alignment": "none"}])
    def test_anything_else_is_refused(self, data):
        said = f"aligned={data['aligned']!r} has to be True or False, and alignment left out; or give alignment alone"
        with pytest.raises(RecipeError, match=re.escape(said)):
            Recipe.from_dict({"signal": "value", "weights": "mean", **data})

    def test_hidden_states_have_none(self):
        with pytest.raises(RecipeError, match="signal='hidden' with alignment='projection' means nothing"):
            Recipe.from_dict({"signal": "hidden", "weights": "mean", "aligned": True})


class TestMeaningless:
    @pytest.mark.parametrize(
        ("choices", "said"),
        [
            ({"signal": "key"}, "signal='key' is unknown; legal: value, hidden"),
            ({"weights": "max"}, "weights='max' is unknown; legal: mean, last"),
            ({"span": "prompt"}, "span='prompt' is unknown; legal: text, all"),
            ({"signal": None}, "signal=None is unknown; legal: value, hidden"),
            ({"signal": ["value"]}, "signal=['value'] is unknown; legal: value, hidden"),
            ({"alignment": "yes"}, "alignment='yes' is unknown; legal: none, projection, residual"),
            ({"alignment": True}, "alignment=True is unknown; legal: none, projection, residual"),
            (
                {"signal": "hidden", "alignment": "projection"},
                "signal='hidden' with alignment='projection' means nothing",
            ),
            (
                {"signal": "hidden", "weights": "last", "alignment": "projection"},
                "signal='hidden' with alignment='projection' means nothing",
            ),
            ({"weights": "last", "span": "all"}, "span='all' belongs to weights='mean'"),
            ({"signal": "hidden", "weights": "last", "span": "all"}, "span='all' belongs to weights='mean'"),
        ],
    )
    def test_choices(self, choices, said):
        with pytest.raises(RecipeError, match=re.escape(said)):
            Recipe(**{"signal": "value", "weights": "mean", **choices})
        with pytest.raises(RecipeError, match=re.escape(said)):
            Recipe.from_dict({"signal": "value", "weights": "mean", **choices})

    @pytest.mark.parametrize("field", ["template", "query_template", "document_template"])
    def test_templates(self, field):
        with pytest.raises(TemplateError, match="template 'nosuch' is unknown; give one of none, prompt_eol"):
            replace(OWN, **{field: "nosuch"})

    def test_errors_can_be_caught_as_one_family(self):
        assert issubclass(LayerError, RecipeError)
        assert issubclass(TemplateError, RecipeError)
        assert issubclass(RecipeError, ValuembedError)
        assert issubclass(RecipeError, ValueError)


class TestRoles:
    def test_a_role_falls_back_on_the_template(self):
        recipe = replace(OWN, template="A {text}", query_template="Q {text}")
        assert recipe.templates_for(None) == ("A {text}",)
        assert recipe.templates_for("query") == ("Q {text}",)
        assert recipe.templates_for("document") == ("A {text}",)

    def test_none_is_the_fallback_but_the_template_named_none_is_not(self):
        assert replace(METHODS["wva"], query_template=None).templates_for("query") == PROMPT_EOL
        assert replace(METHODS["wva"], query_template="none").templates_for("query") == NONE


class TestResolve:
    @pytest.mark.parametrize("name", METHODS)
    def test_a_name_alone(self, name):
        assert resolve_recipe(name) == METHODS[name]

    def test_a_recipe_of_ones_own(self):
        assert resolve_recipe(ODD[0]) is ODD[0]
        assert resolve_recipe(ODD[0].to_dict()) == ODD[0]

    def test_layers_replace_the_recipes_unless_none(self):
        assert resolve_recipe("va", layers=[1, 2]).layers == (1, 2)
        assert resolve_recipe(ODD[0], layers="all").layers == "all"
        assert resolve_recipe(ODD[0], layers=None).layers == "0.65:0.9"
        assert resolve_recipe("va", layers=0).layers == 0

    @pytest.mark.parametrize(
        ("template", "expected"),
        [
            ("auto", PROMPT_EOL),
            # A weighted method without template is the paper's LT variant.
            (None, NONE),
            ("none", NONE),
            ("future_eol", (TEMPLATES["future_eol"],)),
            ("Q: {text}", ("Q: {text}",)),
            (["none", "prompt_eol"], NONE + PROMPT_EOL),
        ],
    )
    def test_one_template_is_for_all_roles(self, template, expected):
        recipe = resolve_recipe("aligned_wva", template=template)
        assert {recipe.templates_for(role) for role in (None, "query", "document")} == {expected}

    @pytest.mark.parametrize("template", [None, "none"])
    def test_no_template_drops_the_recipes_own_roles(self, template):
        own = replace(OWN, query_template="Q {text}", document_template="D {text}")
        assert resolve_recipe(own, template=template).templates_for("query") == NONE
        assert resolve_recipe(own, template="auto").templates_for("query") == ("Q {text}",)

    def test_templates_by_role(self):
        recipe = resolve_recipe("wva", template={"query": "Q {text}", "document": None, "default": "auto"})
        assert recipe.templates_for("query") == ("Q {text}",)
        assert recipe.templates_for("document") == NONE
        assert recipe.templates_for(None) == PROMPT_EOL
        assert resolve_recipe("wva", template={"default": "none"}).templates_for("query") == NONE

    @pytest.mark.parametrize("method", ["VA", "mean", "", None, 3, ["va"]])
    def test_unknown_method_lists_the_known_ones(self, method):
        known = "va, aligned_va, wva, aligned_wva, hidden_mean, hidden_last, prompt_eol, meta_eol, echo, joined"
        said = f"method {method!r} is unknown; give one of {known}, a recipe file (.json), or a Recipe of your own"
        with pytest.raises(RecipeError, match=re.escape(said)):
            resolve_recipe(method)

    def test_unknown_role_and_no_role(self):
        with pytest.raises(TemplateError, match="role 'queries' is unknown; roles are query, document, default"):
            resolve_recipe("va", template={"queries": "none"})
        with pytest.raises(TemplateError, match="names no role; give query, document or default"):
            resolve_recipe("va", template={})

    def test_unknown_template(self):
        with pytest.raises(TemplateError, match="template 'eol' is unknown; give one of none, prompt_eol"):
            resolve_recipe("va", template="eol")


class TestFiles:
    def test_a_recipe_file_is_a_method(self, tmp_path):
        write_recipe(tmp_path / "mine.json", OWN, chosen="by hand")
        assert read_recipe(tmp_path / "mine.json") == OWN
        assert resolve_recipe(str(tmp_path / "mine.json")) == OWN
        assert resolve_recipe(str(tmp_path / "mine.json"), layers=[3]).layers == (3,)

    def test_missing(self, tmp_path):
        with pytest.raises(RecipeError, match=r"recipe file '.*no\.json' cannot be read: .*No such file"):
            resolve_recipe(str(tmp_path / "no.json"))

    @pytest.mark.parametrize("text", ["[]", "{}", '{"recipe": 3}'])
    def test_no_recipe_in_it(self, tmp_path, text):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(RecipeError, match=r"'.*bad\.json' has to hold an object with the key 'recipe'"):
            read_recipe(tmp_path / "bad.json")

    def test_damaged(self, tmp_path):
        (tmp_path / "bad.json").write_text("{")
        with pytest.raises(RecipeError, match=r"recipe file '.*bad\.json' cannot be read: Expecting property name"):
            read_recipe(tmp_path / "bad.json")

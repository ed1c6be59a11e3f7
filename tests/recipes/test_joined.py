"""Recipes of several parts: what they are made of, and which cannot be joined."""

from __future__ import annotations

from dataclasses import replace

import pytest

from valuembed.errors import RecipeError
from valuembed.recipes import METHODS, Recipe, group_by_tokens, resolve_recipe

VA = Recipe(signal="value", weights="mean")
WVA = Recipe(signal="value", weights="last", template="prompt_eol")
HIDDEN = Recipe(signal="hidden", weights="mean", layers=[2])
ECHO = replace(VA, template=("A {echo} B {text}",))


def joined(*parts: Recipe, **changes: object) -> Recipe:
    return replace(parts[0], joined=parts[1:], **changes)


def test_parts_are_itself_and_those_it_is_joined_with():
    recipe = joined(WVA, ECHO, HIDDEN, method="mine")
    assert recipe.parts == (replace(WVA, method="mine"), ECHO, HIDDEN)
    assert WVA.parts == (WVA,)


def test_templates_that_two_parts_share_are_fed_once():
    recipe = joined(WVA, ECHO, replace(HIDDEN, template="prompt_eol"), VA)
    assert recipe.templates_for(None) == (*WVA.template, *ECHO.template, "{text}")
    assert recipe.places() == ((0,), (1,), (0,), (2,))


def test_parts_may_have_several_templates():
    recipe = joined(replace(VA, template=["none", "so: {text}"]), replace(HIDDEN, template=["so: {text}", "{text}!"]))
    assert recipe.templates_for("document") == ("{text}", "so: {text}", "{text}!")
    assert recipe.places() == ((0, 1), (1, 2))


def test_templates_are_shared_where_they_are_the_same_in_every_role():
    asking = replace(VA, query_template="Q: {text}")
    recipe = joined(asking, VA, replace(HIDDEN, query_template="Q: {text}"))
    assert recipe.templates_for(None) == recipe.templates_for("document") == ("{text}", "{text}")
    assert recipe.templates_for("query") == ("Q: {text}", "{text}")
    assert recipe.places() == ((0,), (1,), (0,))


def test_the_final_norm_of_any_part_needs_the_whole_decoder():
    assert not joined(WVA, HIDDEN).reads_final_norm
    assert joined(WVA, replace(HIDDEN, layers=None)).reads_final_norm


def test_plain_data_and_back():
    recipe = joined(replace(WVA, centring="general", weight=2.5), replace(ECHO, layers=[1, 3]))
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.to_dict()["joined"][0]["layers"] == [1, 3]
    assert recipe.choices() == {
        "signal": "value",
        "weights": "last",
        "template": list(WVA.template),
        "centring": "general",
        "weight": 2.5,
        "joined": [{"signal": "value", "weights": "mean", "layers": [1, 3], "template": ["A {echo} B {text}"]}],
    }


def test_layers_and_template_that_are_asked_for_are_the_first_parts():
    recipe = resolve_recipe("joined", layers="half", template="future_eol")
    assert recipe.parts[0].layers == "half"
    assert recipe.parts[0].template == resolve_recipe("va", template="future_eol").template
    assert recipe.joined == METHODS["joined"].joined


def test_cleaning_is_that_of_all_parts():
    recipe = resolve_recipe("joined", cleaning="sentence")
    assert {part.cleaning for part in recipe.parts} == {"sentence"}


def test_in_words_every_part_is_told():
    words = METHODS["joined"].describe()
    assert words.vector == (
        "Values weighed by the last token's attention, through the output projection and the norm after it; layers "
        "default; in a template, joined with: Mean of the values of the text's tokens; layers last; in a template, "
        "joined with: Mean of the values of the text's tokens; layers last-2; in a template"
    )
    assert (words.signal, words.weights) == ("attention values", "last token + mean over tokens")
    assert (words.layers, words.templates) == ("default + last + last-2", "prompt_eol + echo + echo")
    assert replace(WVA, centring="general").describe().vector == (
        "Values weighed by the last token's attention, centred; layers default; in a template"
    )


def test_recipes_that_feed_the_same_are_grouped():
    recipes = {"a": WVA, "b": VA, "c": replace(WVA, layers="half"), "d": joined(WVA, VA), "e": replace(VA, span="all")}
    assert group_by_tokens(recipes) == [["a", "c"], ["b"], ["d"], ["e"]]
    asking = {"a": VA, "b": replace(VA, query_template="Q: {text}")}
    assert group_by_tokens(asking) == [["a", "b"]]
    assert group_by_tokens(asking, "query") == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((WVA, joined(VA, ECHO)), "a part of a joined recipe cannot be joined itself; list all parts side by side"),
        (
            (VA, replace(VA, cleaning="sentence")),
            "parts of a joined recipe share their cleaning: one has 'none', another 'sentence'",
        ),
        ((VA, replace(HIDDEN, span="all")), "parts of a joined recipe share their span: one has 'text', another 'all'"),
        (
            (VA, replace(VA, query_template="meta_eol")),
            "part 1 of a joined recipe has 1 or 8 templates, as the role may be; a part has as many in one role as in "
            "another",
        ),
    ],
)
def test_what_cannot_be_joined_is_refused(parts, message):
    with pytest.raises(RecipeError) as caught:
        joined(*parts)
    assert str(caught.value) == message


@pytest.mark.parametrize("weight", [0, -1.0, float("inf"), float("nan"), True, "2"])
def test_a_weight_is_a_number_above_0(weight):
    with pytest.raises(RecipeError) as caught:
        replace(VA, weight=weight)
    assert str(caught.value) == f"weight={weight!r} has to be a number above 0"


@pytest.mark.parametrize("given", ["va", {"signal": "value"}, 3])
def test_joined_in_plain_data_is_a_list(given):
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict({"signal": "value", "weights": "mean", "joined": given})
    assert str(caught.value) == f"joined={given!r} has to be a list of recipes"


def test_a_part_in_plain_data_is_a_recipe():
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict({"signal": "value", "weights": "mean", "joined": ["va"]})
    assert str(caught.value) == "a recipe is an object with signal and weights, got 'va'"

"""Recipes in words, as cards, tables and pages show them."""

from dataclasses import replace

import pytest

from valuembed.recipes.methods import METHODS
from valuembed.recipes.recipe import Recipe


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("va", ("attention values", "mean over tokens", "the text's tokens", "")),
        ("aligned_va", ("attention values", "mean over tokens", "the text's tokens", "the output projection")),
        ("wva", ("attention values", "last token", "", "")),
        ("hidden_mean", ("hidden states", "mean over tokens", "the text's tokens", "")),
        ("hidden_last", ("hidden states", "last token", "", "")),
    ],
)
def test_choices(method, words):
    found = METHODS[method].describe()
    assert (found.signal, found.weights, found.tokens, found.alignment) == words


@pytest.mark.parametrize(
    ("method", "layers", "words"),
    [
        ("va", (20, 21, 22, 25), "20-22, 25"),
        ("hidden_mean", (3,), "3"),
        ("hidden_mean", None, "final norm"),
        ("va", None, "default"),
        ("va", "half", "half"),
        ("va", "0.65:0.9", "0.65:0.9"),
    ],
)
def test_layers(method, layers, words):
    assert replace(METHODS[method], layers=layers).describe().layers == words


def test_templates_by_name_or_in_full():
    recipe = Recipe(
        signal="value", weights="mean", query_template="Q: {text}", document_template=["{text}", "D {text}"]
    )
    assert recipe.describe().templates == "none; query: `Q: {text}`; document: `{text}` + `D {text}`"
    assert METHODS["wva"].describe().templates == "prompt_eol"


@pytest.mark.parametrize(
    ("recipe", "line"),
    [
        (replace(METHODS["va"], layers=[2, 3]), "Mean of the values of the text's tokens; layers 2-3"),
        (replace(METHODS["va"], layers=[2], span="all"), "Mean of the values of all tokens; layer 2"),
        (
            replace(METHODS["aligned_wva"], layers=[1]),
            "Values weighed by the last token's attention, through the output projection and the norm after it; "
            "layer 1; in a template",
        ),
        (
            replace(METHODS["aligned_wva"], layers=[1], alignment="projection"),
            "Values weighed by the last token's attention, through the output projection; layer 1; in a template",
        ),
        (METHODS["hidden_mean"], "Mean of the hidden states of the text's tokens; final norm"),
        (METHODS["meta_eol"], "Hidden state of the last token; final norm; in 8 templates"),
        (replace(METHODS["va"], layers="half"), "Mean of the values of the text's tokens; layers half"),
    ],
)
def test_a_vector_in_one_line(recipe, line):
    assert recipe.describe().vector == line

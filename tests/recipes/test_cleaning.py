"""Text cleaning is what a recipe says, and by default nothing."""

from __future__ import annotations

import re

import numpy as np
import pytest
from saved_models import assert_saved_alike

import valuembed
from valuembed.errors import RecipeError
from valuembed.recipes.cleaning import CLEANINGS
from valuembed.recipes.methods import METHODS
from valuembed.recipes.recipe import Recipe


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("A cat sleeps", "A cat sleeps."),
        ("  A cat sleeps.\n", "A cat sleeps."),
        ("Is it so?", "Is it so."),
        ("Go!", "Go!."),
        ("the dogs'", "the dogs'"),
        # The quotation mark at the end counts as an end, and becomes a single one.
        ('He said "go"', "He said 'go'"),
        ('"Why?" she asked?', "'Why?' she asked."),
        ("   ", ""),
        ("", ""),
    ],
)
def test_sentence(text, cleaned):
    assert CLEANINGS["sentence"](text) == cleaned


@pytest.mark.parametrize("text", ["  A cat ", 'He said "go"', "Why?", ""])
def test_none_changes_nothing(text):
    assert CLEANINGS["none"](text) == text


def test_no_method_cleans_by_itself():
    assert {recipe.cleaning for recipe in METHODS.values()} == {"none"}


def test_a_cleaned_text_is_embedded_as_if_it_had_been_clean(folder, tmp_path):
    plain = valuembed.load(folder, "aligned_wva")
    cleaning = valuembed.load(folder, "aligned_wva", cleaning="sentence")
    np.testing.assert_allclose(cleaning.encode([' Is "it" so? ']), plain.encode(["Is 'it' so."]), atol=1e-6)
    assert np.abs(cleaning.encode(["Is it so?"]) - plain.encode(["Is it so?"])).max() > 1e-3
    cleaning.save_pretrained(str(tmp_path / "saved"))
    again = valuembed.load(tmp_path / "saved")
    assert again.recipe.cleaning == "sentence"
    assert_saved_alike(cleaning, again, ["Is it so?"])
    assert "sentence" in (tmp_path / "saved" / "README.md").read_text()


def test_unknown_names_list_the_known_ones():
    said = "cleaning='tidy' is unknown; legal: none, sentence"
    with pytest.raises(RecipeError, match=re.escape(said)):
        Recipe(signal="value", weights="mean", cleaning="tidy")

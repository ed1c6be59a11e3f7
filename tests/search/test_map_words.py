"""Words of areas, on passages whose counts can be taken by hand."""

import math

import pytest

from valuembed.search.map_words import WordCounts


def telling(*areas, most=4):
    counts = WordCounts(len(areas))
    for number, texts in enumerate(areas):
        for text in texts:
            counts.add(number, text)
    return counts.telling(most)


def test_words_that_tell_areas_apart():
    ships = ["Ships and boats leave", "Ships return from boats", "Ships sink"]
    herbs = ["Herbs and tomatoes grow", "Herbs dry and leave", "Water tomatoes"]
    # Boats: 2/3 log(2) log(3) = 0.51; ships: 3/3 log(2) log(2) = 0.48. Herbs and tomatoes count as much as boats.
    # "leave" is in one of each, and "and" is a word of grammar.
    assert telling(ships, herbs) == [["boats", "Ships"], ["Herbs", "tomatoes"]]


def test_the_rarer_of_two_words_that_are_equally_frequent_comes_first():
    # In area 0 both words stand in 2 of 2 passages; common also stands in one of four others.
    # rare: 1 * log(6/2) * log(6/2) = 1.21; common: 1 * log(6/3) * log(6/3) = 0.48.
    assert math.log(3) ** 2 > math.log(2) ** 2
    first, _ = telling(["rare common", "common rare"], ["common one", "two", "three", "four"])
    assert first == ["rare", "common"]


def test_a_word_in_one_passage_names_no_area():
    assert telling(["zebra zebra zebra", "other"], ["thing", "stuff"]) == [[], []]


def test_a_word_everywhere_names_no_area():
    assert telling(["same", "same"], ["same", "same"]) == [[], []]


def test_forms_of_a_word_are_named_once():
    first, _ = telling(["vector vectors", "vectors vector"], ["else", "else"])
    assert first == ["vector"]


@pytest.mark.parametrize(
    ("texts", "word"),
    [
        (["in Paris", "to Paris"], "Paris"),
        (["Fish swim", "the fish sleep", "fish", "a fish"], "fish"),
        (["PCA", "by PCA"], "PCA"),
    ],
)
def test_names_keep_their_capitals(texts, word):
    assert telling(texts, ["other", "things", "stand", "here"])[0][0] == word


def test_scripts_without_blanks_give_pairs():
    first, _ = telling(["天気予報", "天気図"], ["音楽会", "音楽家"])
    assert first == ["天気"]


def test_empty_areas():
    assert telling([], ["words", "words"]) == [[], []]
    assert WordCounts(0).telling() == []

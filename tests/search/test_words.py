"""Where words of a query stand in a text."""

import pytest

from valuembed.search import matched_words


def marked(query, text):
    return [text[start:end] for start, end in matched_words(query, text)]


@pytest.mark.parametrize(
    ("query", "text", "words"),
    [
        ("late trains", "The LATE train, and late trains.", ["LATE", "late", "trains"]),
        ("cafe", "Café, cafe\u0301 and decaf", ["Café", "cafe\u0301"]),
        ("Ångström file", "angstrom, ﬁle", ["angstrom", "ﬁle"]),
        ("strasse", "Straße STRASSE", ["Straße", "STRASSE"]),
        ("foo_bar", "bar = foo(bar_foo)", ["bar", "foo", "bar", "foo"]),
        ("e-mail", "mail, e.g. e-mail", ["mail", "e", "e", "mail"]),
        ("don't", "don t", ["don", "t"]),
        ("3.14", "pi is 3.14, not 314", ["3", "14"]),
        ("東京に住む", "私は東京都に住んでいる", ["東京", "に住"]),
        ("猫", "黒い猫がいる", ["猫"]),
        ("日本語 grammar", "日本語のGrammar入門", ["日本語", "Grammar"]),
        ("ελλάδα", "Ζω Ελλαδα", ["Ελλαδα"]),
        ("", "text", []),
        ("word", "", []),
    ],
)
def test_words_are_split_and_compared_as_in_the_index_of_words(query, text, words):
    assert marked(query, text) == words


def test_words_of_grammar_count_only_where_there_are_no_others():
    assert marked("how do I cook the rice", "The rice is what you cook.") == ["rice", "cook"]
    assert marked("to be", "I want a bee.") == []
    assert marked("to be", "I want to be.") == ["to", "be"]


def test_a_long_query_is_no_trouble():
    assert marked("goal " * 20_000, "A late goal.") == ["goal"]

"""Parts of a text as ranges of its tokens, and windows over a text that is too long, by hand-made tokens."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from valuembed.errors import InputError, TemplateError
from valuembed.recipes import METHODS, resolve_recipe
from valuembed.testing import TOKENIZERS, tiny_tokenizer
from valuembed.tokenization.tokenizer import TextTokenizer
from valuembed.tokenization.windows import part_tokens, plan_windows, tokenize_parts, windows_of

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def word_tokenizer(bos=True):
    """A token for each word, ids in the order of the alphabet from 2; 1 in front of everything."""
    known = {"?": 0, "<s>": 1, **{letter: at for at, letter in enumerate(LETTERS, 2)}}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="?"))


WORDS = word_tokenizer()


def spelled(ids):
    return "".join("?^"[token] if token < 2 else LETTERS[token - 2] for token in ids)


def read(text, parts, template="{text}", **options):
    """Each window as letters, with the letters of its parts."""
    (placed,) = WORDS.placed([text], template)
    return [
        (spelled(ids := window.sequence.ids), {part: spelled(ids[slice(*span)]) for part, span in found})
        for window in windows_of(placed, parts, template=template, **options)
        for found in [list(zip(window.parts, window.sequence.spans, strict=True))]
    ]


class TestTokensOfAPart:
    def test_are_those_that_overlap_its_characters(self):
        (placed,) = WORDS.placed(["aa b c d"], "{text}")
        # ^ aa b c d; characters 0-2, 3-4, 5-6, 7-8.
        assert placed.own == (1, 5)
        assert part_tokens(placed, [(0, 8), (3, 6), (1, 4), (0, 1), (6, 8), (2, 3)]) == [
            (1, 5),
            (2, 4),
            (1, 3),
            (1, 2),
            (4, 5),
            (2, 2),
        ]

    def test_never_the_templates(self):
        (placed,) = WORDS.placed(["a b"], "x y {text} z")
        assert spelled(placed.ids) == "^xyabz"
        assert part_tokens(placed, [(0, 3), (2, 3), (0, 1)]) == [(3, 5), (4, 5), (3, 4)]

    def test_of_the_second_copy(self):
        (placed,) = WORDS.placed(["a b"], "x {echo} y {text} z")
        assert part_tokens(placed, [(0, 1), (2, 3)]) == [(5, 6), (6, 7)]

    @pytest.mark.parametrize("kind", TOKENIZERS)
    @pytest.mark.parametrize("template", ["{text}", 'so "{text}" ends', "say {echo}: {text}"])
    def test_of_the_whole_text_are_the_texts_own(self, kind, template):
        tokenizer = TextTokenizer(tiny_tokenizer(kind))
        text = "The na\u00efve cat, \u65e5\u672c \U0001f469\u200d\U0001f467 sleeps."
        (row,) = tokenizer.rows([text], template, max_tokens=None)
        (placed,) = tokenizer.placed([text], template)
        assert placed.ids == row.ids
        assert placed.own == row.span
        assert part_tokens(placed, [(0, len(text))]) == [row.span]
        # Parts that touch have all of the tokens between them.
        halves = part_tokens(placed, [(0, 10), (10, len(text))])
        assert halves[0][0] == row.span[0]
        assert halves[0][1] >= halves[1][0]
        assert halves[1][1] == row.span[1]


class TestPlan:
    def test_each_part_lies_whole_behind_its_context(self):
        # Ten tokens a window, three in front of each part: 0-10 holds the first two; 12-14 wants to see from 9.
        assert plan_windows([(0, 4), (6, 10), (12, 14), (16, 19), (20, 22)], 30, 10, 3) == [
            ((0, 10), [0, 1]),
            ((9, 19), [2, 3]),
            ((17, 27), [4]),
        ]

    def test_the_last_window_ends_with_the_text(self):
        assert plan_windows([(0, 2), (18, 20)], 20, 10, 3) == [((0, 10), [0]), ((10, 20), [1])]

    def test_parts_in_any_order_that_overlap(self):
        assert plan_windows([(12, 16), (0, 8), (2, 10), (9, 13)], 20, 10, 2) == [((0, 10), [1, 2]), ((7, 17), [3, 0])]

    def test_a_part_that_needs_the_room_has_less_context_and_nobody_elses_is_shortened(self):
        # 10-19 leaves one token in front of it; 11-12, which lies within the same window, has its three in one more.
        assert plan_windows([(10, 19), (11, 12)], 40, 10, 3) == [((9, 19), [0]), ((8, 18), [1])]


class TestWindows:
    def test_a_text_that_fits_is_run_once(self):
        assert read("a b c d", [(0, 3), (4, 7), (2, 5)], max_tokens=5) == [("^abcd", {0: "ab", 1: "cd", 2: "bc"})]
        assert read("a b c d", [(0, 3)], max_tokens=None) == [("^abcd", {0: "ab"})]
        assert read("a b", [], max_tokens=2) == []

    def test_of_a_text_that_does_not(self):
        # Five tokens, one of them the beginning's: four of the text, one of them in front of a part.
        text = " ".join("abcdefghij")
        parts = [(2 * at, 2 * at + 3) for at in range(0, 10, 2)]
        assert read(text, parts, max_tokens=5) == [
            ("^abcd", {0: "ab", 1: "cd"}),
            ("^defg", {2: "ef"}),
            ("^fghi", {3: "gh"}),
            ("^ghij", {4: "ij"}),
        ]
        assert read(text, parts, max_tokens=5, context=0) == [
            ("^abcd", {0: "ab", 1: "cd"}),
            ("^efgh", {2: "ef", 3: "gh"}),
            ("^ghij", {4: "ij"}),
        ]

    def test_the_template_is_around_each(self):
        text = " ".join("abcdef")
        assert read(text, [(0, 1), (10, 11)], "x {text} y z", max_tokens=7) == [
            ("^xabcyz", {0: "a"}),
            ("^xdefyz", {1: "f"}),
        ]
        # Both copies lose the same.
        assert read(text, [(0, 1), (10, 11)], "x {echo} y {text} z", max_tokens=10) == [
            ("^xabcyabcz", {0: "a"}),
            ("^xdefydefz", {1: "f"}),
        ]

    @pytest.mark.parametrize("kind", TOKENIZERS)
    def test_a_token_that_holds_characters_of_both_stays_with_the_template(self, kind):
        tokenizer = TextTokenizer(tiny_tokenizer(kind))
        text = "rain fell on the hill and the river ran over."
        template = 'so "{text}" ends'
        (placed,) = tokenizer.placed([text], template)
        most = len(placed.ids) - 8
        windows = windows_of(placed, [(0, 4), (len(text) - 5, len(text))], max_tokens=most, template=template)
        front, back = placed.inner[0], len(placed.ids) - placed.inner[1]
        assert len(windows) == 2
        for window in windows:
            assert len(window.sequence.ids) == most
            assert window.sequence.ids[:front] == placed.ids[:front]
            assert window.sequence.ids[most - back :] == placed.ids[len(placed.ids) - back :]
        for window, tokens in zip(windows, part_tokens(placed, [(0, 4), (len(text) - 5, len(text))]), strict=True):
            (span,) = window.sequence.spans
            assert window.sequence.ids[slice(*span)] == placed.ids[slice(*tokens)]

    def test_refused(self):
        text = " ".join("abcdefgh")
        message = (
            r"^the text, part 1: it has 5 tokens, and 4 fit into a window \(max_tokens=5, template included\); ask"
        )
        with pytest.raises(InputError, match=message):
            read(text, [(0, 1), (2, 11)], max_tokens=5)
        message = r"part 0: it has 3 tokens, and 2 fit into a window behind 2 tokens of context .* or less context$"
        with pytest.raises(InputError, match=message):
            read(text, [(2, 7)], max_tokens=5, context=2)
        with pytest.raises(
            InputError, match=r"part 0: characters 1 to 2 have no token of their own; leave blank parts"
        ):
            read(text, [(1, 2)], max_tokens=5)
        with pytest.raises(TemplateError, match=r"template 'x y {text}' and prompt take 3 tokens by themselves, of 3"):
            read(text, [(0, 1)], "x y {text}", max_tokens=3)


def test_every_template_of_a_recipe():
    recipe = resolve_recipe("va", template=["{text}", "x y x y {text}"])
    found = tokenize_parts(WORDS, ["a b c", "d"], [[(0, 1), (4, 5)], [(0, 1)]], recipe, max_tokens=None, prefixes=True)
    rows = [[[window.sequence for window in windows] for windows in of_template] for of_template in found]
    assert [[[spelled(row.ids) for row in windows] for windows in of_template] for of_template in rows] == [
        [["^abc"], ["^d"]],
        [["^xyxyabc"], ["^xyxyd"]],
    ]
    assert [[row.spans for (row,) in of_template] for of_template in rows] == [
        [((1, 2), (3, 4)), ((1, 2),)],
        [((5, 6), (7, 8)), ((5, 6),)],
    ]
    assert [[row.prefix for (row,) in of_template] for of_template in rows] == [[1, 1], [5, 5]]


def test_a_text_that_cannot_be_read_is_named():
    with pytest.raises(InputError, match=r"^text 6, part 0: characters 1 to 2 have no token"):
        tokenize_parts(WORDS, ["a", "b c"], [[], [(1, 2)]], METHODS["va"], max_tokens=None, first=5)

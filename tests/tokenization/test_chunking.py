"""Documents cut into chunks by hand-made tokens and by real tokenizers."""

from itertools import pairwise

import pytest
from hypothesis import given, strategies as st
from some_texts import some_texts
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from valuembed.errors import InputError
from valuembed.testing import TOKENIZERS, tiny_tokenizer
from valuembed.tokenization import chunking
from valuembed.tokenization.chunking import Cutter
from valuembed.tokenization.offsets import token_starts

pytestmark = pytest.mark.slow


def tokenizer_of(pre_tokenizer):
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


WORDS = tokenizer_of(pre_tokenizers.WhitespaceSplit())
CHARACTERS = tokenizer_of(pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"))


def cut(tokenizer, tokens, document, overlap=0):
    return [(chunk.text, chunk.start, chunk.end) for chunk in Cutter(tokenizer, tokens, overlap).cut(document)]


def test_a_chunk_is_a_slice_without_blanks_at_its_ends():
    assert cut(WORDS, 3, " a b  c\nd e f g ") == [("a b  c", 1, 7), ("d e f", 8, 13), ("g", 14, 15)]
    assert cut(WORDS, 3, "a b c") == [("a b c", 0, 5)]
    assert cut(WORDS, 1, "a b") == [("a", 0, 1), ("b", 2, 3)]


def test_chunks_overlap():
    # Seven tokens, four a chunk, two of them those of the one before.
    texts = [text for text, _, _ in cut(WORDS, 4, "a b c d e f g", overlap=2)]
    assert texts == ["a b c d", "c d e f", "e f g"]
    # Nothing but what the one before ended with is no chunk of its own.
    assert [text for text, _, _ in cut(WORDS, 4, "a b c d e f", overlap=2)] == ["a b c d", "c d e f"]


def test_a_chunk_ends_between_words_where_it_can():
    # Eight letters a chunk: the last two of them are given up for the blank at 5, then for the one at 11.
    assert cut(CHARACTERS, 8, "hello there world") == [("hello", 0, 5), ("there", 6, 11), ("world", 12, 17)]
    # For a blank further back nothing is.
    assert [text for text, _, _ in cut(CHARACTERS, 8, "he thereandeverywhere")] == ["he there", "andevery", "where"]
    # An overlap begins with a word too.
    assert [text for text, _, _ in cut(CHARACTERS, 8, "on its way to here", 4)] == [
        "on its",
        "its way",
        "way to",
        "to here",
    ]


def test_no_character_that_a_reader_sees_is_torn():
    accent, family, jamo = "e\u0301", "\U0001f469\u200d\U0001f467", "\u1112\u1161\u11ab"
    flag, thumb = "\U0001f1e9\U0001f1ea", "\U0001f44d\U0001f3fd"
    for character in (accent, family, flag, thumb, jamo, "\r\n"):
        document = f"ab{character}c"
        for tokens in (1, 2, 3):
            edges = {edge for _, start, end in cut(CHARACTERS, tokens, document) for edge in (start, end)}
            assert not edges & set(range(3, 2 + len(character))), (character, tokens)
    # A character of more tokens than a chunk has is a chunk.
    assert [text for text, _, _ in cut(CHARACTERS, 1, accent * 2)] == [accent, accent]


def test_blank_parts_are_left_out_and_blank_documents_have_none():
    assert cut(CHARACTERS, 4, "ab" + " " * 20 + "cd") == [("ab", 0, 2), ("cd", 22, 24)]
    assert cut(CHARACTERS, 4, "  \n ") == []


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(("tokens", "overlap"), [(1, 0), (5, 2), (64, 0), (64, 32)])
def test_every_tokenizer(kind, tokens, overlap, monkeypatch):
    tokenizer = tiny_tokenizer(kind)
    document = " ".join(some_texts(30))
    document += " \u65e5\u672c\u8a9e\u306e\u6587\u7ae0 na\u00efve \U0001f469\u200d\U0001f467 <|eos|>\n\n end."
    whole = Cutter(tokenizer, tokens, overlap).cut(document)
    check(document, whole)
    assert max(len(token_starts(tokenizer, chunk.text)) for chunk in whole) <= tokens + 12
    # In windows, which end in the middle of words, much the same.
    monkeypatch.setattr(chunking, "WINDOW", 200)
    check(document, Cutter(tokenizer, tokens, overlap).cut(document))


def check(document, found):
    """Slices in order, that hold every character of the document that is not blank."""
    covered = set()
    for chunk in found:
        assert document[chunk.start : chunk.end] == chunk.text == chunk.text.strip() != ""
        covered |= set(range(chunk.start, chunk.end))
    for one, after in pairwise(found):
        assert one.start < after.start
        assert one.end < after.end
    assert [c for at, c in enumerate(document) if at not in covered and not c.isspace()] == []


@pytest.mark.slow
@given(
    document=st.text(st.characters(codec="utf-8"), max_size=120),
    tokens=st.integers(1, 12),
    kind=st.sampled_from(["byte_level", "metaspace"]),
    window=st.integers(1, 60),
)
def test_any_text(document, tokens, kind, window):
    kind = next(name for name in TOKENIZERS if name.startswith(kind))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "WINDOW", window)
        check(document, Cutter(tiny_tokenizer(kind), tokens, tokens // 2).cut(document))


def test_windows_bound_what_is_tokenized_at_once(monkeypatch):
    seen = []

    def starts(tokenizer, text):
        seen.append(len(text))
        return token_starts(tokenizer, text)

    monkeypatch.setattr(chunking, "token_starts", starts)
    monkeypatch.setattr(chunking, "WINDOW", 500)
    document = "word " * 2000
    assert len(cut(WORDS, 20, document)) == 100
    assert max(seen) == 500
    assert sum(seen) < 2 * len(document)


@pytest.mark.parametrize(
    ("tokens", "overlap", "message"),
    [
        (0, 0, "chunk=0 has to be at least 1 token"),
        (10, 6, "overlap=6 has to be 0 to 5, at most half of a chunk of 10"),
        (10, -1, "overlap=-1 has to be 0 to 5"),
    ],
)
def test_numbers_that_mean_nothing(tokens, overlap, message):
    with pytest.raises(InputError, match=message):
        Cutter(WORDS, tokens, overlap)

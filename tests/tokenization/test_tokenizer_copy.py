"""A copy of a tokenizer: the same ids, a life of its own, and one vocabulary for both."""

import pytest
from some_texts import some_texts
from tokenizers import AddedToken

from valuembed.testing import TOKENIZERS, tiny_tokenizer
from valuembed.tokenization import copy_tokenizer

TEXTS = [*some_texts(8), "<|eos|> typed", " two  blanks ", "\u4e2d\u6587 \u00e9", ""]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_copy_gives_the_same_ids(kind):
    words = tiny_tokenizer(kind)
    copy = copy_tokenizer(words)
    assert copy(TEXTS)["input_ids"] == words(TEXTS)["input_ids"]
    assert copy.get_vocab() == words.get_vocab()
    assert copy.backend_tokenizer is not words.backend_tokenizer


def test_neither_notices_what_the_other_is_told():
    words = tiny_tokenizer()
    copy = copy_tokenizer(words)
    copy.add_tokens(["<mine>"])
    words.add_tokens(["<yours>"])
    assert ("<mine>" in words.get_vocab(), "<yours>" in copy.get_vocab()) == (False, False)
    copy([words.eos_token], split_special_tokens=True)
    assert words.eos_token_id in words.backend_tokenizer.encode(words.eos_token).ids


def test_added_tokens_keep_their_numbers():
    words = tiny_tokenizer()
    words.add_tokens([AddedToken("<one>"), AddedToken("<two>")])
    held = words.backend_tokenizer.get_added_tokens_decoder()
    assert copy_tokenizer(words).backend_tokenizer.get_added_tokens_decoder() == held
    assert copy_tokenizer(copy_tokenizer(words))(["<two> a"])["input_ids"] == words(["<two> a"])["input_ids"]

"""The tokenizer of a GGUF file cuts texts as the checkpoint's own does, and as transformers reads it."""

from __future__ import annotations

import gguf
import pytest
from gguf_files import tiny_gguf
from some_texts import mixed_texts
from transformers import AutoTokenizer
from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

from valuembed.backbone.checkpoints import locate
from valuembed.testing import TOKENIZERS
from valuembed.tokenization import load_tokenizer
from valuembed.tokenization.gguf_tokenizer import merges_of

pytestmark = pytest.mark.slow

BYTE_LEVEL = [kind for kind in TOKENIZERS if kind not in ("metaspace_bos", "metaspace_first", "adds_eos", "bos_eos")]


@pytest.mark.parametrize("kind", BYTE_LEVEL)
def test_ids_are_those_of_the_folder(tmp_path, kind):
    # GPT-2's way to cut texts is said by a file, and the folder's tokenizer is of that kind.
    file, plain = tiny_gguf(tmp_path, "llama", tokenizer=kind)
    ours, theirs = load_tokenizer(locate(file)), AutoTokenizer.from_pretrained(plain)
    texts = [*mixed_texts(300), "</s> and <|im_end|> <pad>"]
    assert ours(texts).input_ids == theirs(texts).input_ids
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
    )
    assert ours.chat_template == theirs.chat_template


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "tekken", "gpt-4o", "default"])
def test_each_way_to_cut_texts_is_that_of_transformers(tmp_path, pre):
    file, _ = tiny_gguf(tmp_path, "llama", settings={"tokenizer.ggml.pre": pre})
    same_as_transformers(file, composes=pre == "qwen2")


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2"])
def test_sentencepiece_is_that_of_transformers(tmp_path, family):
    file, _ = tiny_gguf(tmp_path, family, tokenizer="metaspace_bos")
    same_as_transformers(file)


def same_as_transformers(file, composes=False):
    """Compare with what transformers makes of the file; Qwen's tokenizer composes letters, which its class adds."""
    ours = load_tokenizer(locate(file)).backend_tokenizer
    theirs, _ = convert_gguf_tokenizer(*get_gguf_tokenizer(str(file))[:2])
    assert (ours.normalizer is not None and "NFC" in repr(ours.normalizer)) == composes
    texts = [ours.normalizer.normalize_str(text) for text in mixed_texts(300)] if composes else mixed_texts(300)
    found = [row.ids for row in ours.encode_batch(texts, add_special_tokens=False)]
    assert found == [row.ids for row in theirs.encode_batch(texts, add_special_tokens=False)]


@pytest.mark.parametrize("wanted", [True, False])
def test_a_file_says_whether_texts_begin_with_bos(tmp_path, wanted):
    file, _ = tiny_gguf(
        tmp_path, "llama", tokenizer="byte_level_bos", settings={"tokenizer.ggml.add_bos_token": wanted}
    )
    tokenizer = load_tokenizer(locate(file))
    assert (tokenizer("a").input_ids[0] == tokenizer.bos_token_id) is wanted


def test_sentencepiece_begins_with_bos_where_a_file_says_nothing(tmp_path):
    file, _ = tiny_gguf(tmp_path, "llama", tokenizer="metaspace_bos", settings={"tokenizer.ggml.add_bos_token": None})
    tokenizer = load_tokenizer(locate(file))
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize(("pre", "begins"), [("llama-bpe", True), ("tekken", True), ("qwen2", False)])
def test_some_that_merge_bytes_begin_with_bos_where_a_file_says_nothing(tmp_path, pre, begins):
    settings = {"tokenizer.ggml.add_bos_token": None, "tokenizer.ggml.pre": pre}
    file, _ = tiny_gguf(tmp_path, "llama", tokenizer="byte_level_bos", settings=settings)
    tokenizer = load_tokenizer(locate(file))
    assert (tokenizer("a").input_ids[0] == tokenizer.bos_token_id) is begins


def test_llama_3_takes_a_word_that_the_vocabulary_holds_as_it_is(tmp_path):
    """With one merge alone, nothing else is more than one byte."""
    stock, _ = tiny_gguf(tmp_path / "stock", "llama")
    first = str(bytes(fields(stock, "tokenizer.ggml.merges")[0]), "utf-8")
    for pre, whole in (("llama-bpe", True), ("qwen2", False)):
        settings = {"tokenizer.ggml.pre": pre, "tokenizer.ggml.merges": [first], "tokenizer.ggml.add_bos_token": False}
        file, _ = tiny_gguf(tmp_path / pre, "llama", settings=settings)
        tokens = [str(bytes(part), "utf-8") for part in fields(file, "tokenizer.ggml.tokens")]
        word = next(token for token in tokens if len(token) > 3 and token.isalpha() and token.isascii())
        assert (load_tokenizer(locate(file)).tokenize(word) == [word]) is whole


def test_a_blank_in_front_is_the_files_to_say(tmp_path):
    made = {}
    for wanted in (True, False):
        settings = {"tokenizer.ggml.add_space_prefix": wanted}
        file, _ = tiny_gguf(tmp_path / str(wanted), "llama", tokenizer="metaspace_bos", settings=settings)
        made[wanted] = load_tokenizer(locate(file)).tokenize("the cat")
    assert made[True][0].startswith("\u2581")
    assert not made[False][0].startswith("\u2581")


def test_merges_are_every_cut_of_a_token_best_token_first():
    """abc, the best, is a + bc or ab + c, the longer beginning first; ab and bc, of one score, stay in their order."""
    tokens, scores = ["a", "b", "c", "ab", "bc", "abc"], [0, 0, 0, -2, -2, -1]
    assert merges_of(tokens, scores) == [("ab", "c"), ("a", "bc"), ("a", "b"), ("b", "c")]


def test_tokens_that_are_never_cut_are_those_that_the_file_marks(tmp_path):
    file, _ = tiny_gguf(tmp_path, "llama")
    tokens = [str(bytes(part), "utf-8") for part in fields(file, "tokenizer.ggml.tokens")]
    ordinary = next(number for number, token in enumerate(tokens) if len(token) > 3 and token.isalpha())
    kinds = [int(part[0]) for part in fields(file, "tokenizer.ggml.token_type")]
    kinds[ordinary] = 4
    marked, _ = tiny_gguf(tmp_path / "marked", "llama", settings={"tokenizer.ggml.token_type": kinds})
    text = f"x{tokens[ordinary]}x"
    assert ordinary in load_tokenizer(locate(marked))(text).input_ids
    assert tokens[ordinary] not in load_tokenizer(locate(marked)).all_special_tokens


def fields(file, key):
    field = gguf.GGUFReader(file).fields[key]
    return [field.parts[at] for at in field.data]

"""encode_parts and token embeddings: what a user sees of parts of a text that is run once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import doubled, references
from some_texts import some_texts
from transformers import AutoModel

from valuembed.errors import InputError, NotFiniteError, RecipeError, TruncationWarning
from valuembed.execution.report import EncodeReport
from valuembed.models import TextParts, ValueEncoder, load, load_text_encoder
from valuembed.recipes import METHODS

pytestmark = pytest.mark.slow

TEXT = "Rain fell on the hill. The river ran over its banks, and the village woke in water. Nobody slept."
SENTENCES = [(0, 23), (23, 84), (84, 97)]
PART_METHODS = ["va", "aligned_va", "hidden_mean", "echo"]


def off(one: Any, other: Any) -> float:
    """The largest distance of two vectors, of their length."""
    one, other = np.asarray(one), np.asarray(other)
    return float((np.linalg.norm(one - other, axis=-1) / np.linalg.norm(other, axis=-1)).max())


@pytest.mark.parametrize("method", PART_METHODS)
@pytest.mark.parametrize("source", ["folder", "sliding"])
def test_the_whole_text_is_what_encode_gives(source: str, method: str, request: pytest.FixtureRequest) -> None:
    model = load(request.getfixturevalue(source), method, normalize=False)
    texts = [*some_texts(12), TEXT]
    found = model.encode_parts(texts, [[(0, len(text))] for text in texts])
    assert off(np.concatenate([one.vectors for one in found]), model.encode(texts)) < 1e-5
    assert [one.spans for one in found] == [[(0, len(text))] for text in texts]
    assert model.report is not None
    assert (model.report.texts, model.report.truncated) == (13, 0)


@pytest.mark.parametrize("method", ["va", "aligned_va", "hidden_mean"])
@pytest.mark.parametrize("template", ["none", 'so "{text}" ends'])
def test_a_part_is_the_mean_of_its_tokens_and_the_parts_make_the_whole(
    folder: Path, method: str, template: str
) -> None:
    model = load(folder, method, template=template, normalize=False)
    found = model.encode_parts(TEXT, [*SENTENCES, (0, len(TEXT))])
    assert isinstance(found, TextParts)
    assert (found.vectors.dtype, found.vectors.shape[0]) == (np.float32, 4)
    weights = np.array(found.tokens[:3]) / found.tokens[3]
    assert sum(found.tokens[:3]) == found.tokens[3]
    # A linear projection of means is the mean of projections, its bias taken once.
    assert off(weights @ found.vectors[:3], found.vectors[3]) < 1e-5


def test_a_part_has_seen_what_is_in_front_of_it_and_nothing_behind(folder: Path) -> None:
    model = load(folder, "va", normalize=False)
    (whole, cut, other) = model.encode_parts(
        [TEXT, TEXT[:84], "Sun shone on the hill." + TEXT[22:]], [SENTENCES[:2], SENTENCES[:2], SENTENCES[:2]]
    )
    assert off(cut.vectors, whole.vectors) < 1e-5
    assert off(other.vectors[1], whole.vectors[1]) > 1e-3
    assert off(model.encode(TEXT[23:84]), whole.vectors[1]) > 1e-3


@pytest.mark.parametrize("source", ["folder", "sliding"])
def test_in_any_batch_in_any_order(source: str, request: pytest.FixtureRequest) -> None:
    model = load(request.getfixturevalue(source), "aligned_va", normalize=False)
    texts = [*some_texts(20), TEXT]
    spans = [[(0, 1), (len(text) // 2, len(text))] for text in texts[:-1]] + [SENTENCES]
    together = model.encode_parts(texts, spans)
    backwards = model.encode_parts(texts[::-1], [of_text[::-1] for of_text in spans[::-1]])[::-1]
    for text, of_text, one, other in zip(texts, spans, together, backwards, strict=True):
        assert off(one.vectors, other.vectors[::-1]) < 1e-5
        assert one.tokens == other.tokens[::-1]
        assert off(model.encode_parts(text, of_text).vectors, one.vectors) < 1e-5


def test_chunks_of_so_many_tokens(folder: Path) -> None:
    model = load(folder, "va")
    found = model.encode_parts([TEXT, "", "short"], chunk_tokens=8, overlap=3)
    assert [len(one.spans) for one in found][1:] == [0, 1]
    assert found[1].vectors.shape == (0, 16)
    assert max(found[0].tokens) <= 8 + 1
    assert found[0].spans[1][0] < found[0].spans[0][1]
    assert off(model.encode_parts(TEXT, found[0].spans).vectors, found[0].vectors) < 1e-5
    assert np.allclose(np.linalg.norm(found[0].vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("method", ["va", "aligned_va"])
def test_a_text_beyond_the_models_length_is_run_in_windows(folder: Path, method: str) -> None:
    model = load(folder, method, max_tokens=24, normalize=False)
    assert isinstance(model, ValueEncoder)
    reader = model.reader
    tokenizer: Any = reader.processor
    encoded = tokenizer(TEXT, return_offsets_mapping=True, add_special_tokens=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    bos = tokenizer.bos_token_id
    # Words, each a part: 23 tokens of the text fit behind BOS, and 5 of them stand in front of each part.
    words = [(start, end) for start, end in _words(TEXT)]
    found = model.encode_parts(TEXT, words, context=5)
    assert len(ids) > 40
    stock = AutoModel.from_pretrained(folder, dtype=torch.float32)
    waiting = list(range(len(words)))
    tokens = [[at for at, (start, end) in enumerate(offsets) if start < word[1] and end > word[0]] for word in words]
    windows = 0
    while waiting:
        first = tokens[waiting[0]][0]
        begin = 0 if tokens[waiting[0]][-1] < 23 else min(first - 5, len(ids) - 23)
        inside = [word for word in waiting if tokens[word][-1] < begin + 23]
        fed = torch.tensor([[bos, *ids[begin : begin + 23]]])
        spans = [torch.tensor([[tokens[word][0] - begin + 1, tokens[word][-1] - begin + 2]]) for word in inside]
        expected = references(
            "qwen3", stock, fed, torch.ones_like(fed), torch.arange(24)[None], spans, [method], reader.plan.layers
        )
        for number, word in enumerate(inside):
            assert off(found.vectors[word], expected[number, method][0]) < 1e-5
            assert found.tokens[word] == len(tokens[word])
        waiting = [word for word in waiting if word not in inside]
        windows += 1
    assert windows > 2
    assert model.report == EncodeReport(1, 24 * windows, 0, 0)


def _words(text: str) -> list[tuple[int, int]]:
    found, start = [], 0
    for word in text.split():
        start = text.index(word, start)
        found.append((start, start + len(word)))
        start += len(word)
    return found


def test_windows_of_both_copies_and_of_several_templates(folder: Path) -> None:
    text = TEXT * 3
    spans = [(at, at + 10) for at in range(0, len(text) - 10, 37)]
    echo = load(folder, "echo", max_tokens=60, normalize=False)
    found = echo.encode_parts(text, spans)
    assert found.vectors.shape[0] == len(spans)
    assert echo.report is not None
    assert echo.report.tokens <= 60 * -(-echo.report.tokens // 60)
    several = load(folder, "va", template=["{text}", "say: {text}"], max_tokens=40, normalize=False)
    alone = [load(folder, "va", template=one, max_tokens=40, normalize=False) for one in ("{text}", "say: {text}")]
    texts, parts = [text, "a short one"], [spans, [(0, 7)]]
    expected = [np.concatenate([one.vectors for one in model.encode_parts(texts, parts)]) for model in alone]
    mean = np.concatenate([one.vectors for one in several.encode_parts(texts, parts)])
    assert off(mean, (expected[0] + expected[1]) / 2) < 1e-5


def test_options_are_those_of_encode(folder: Path) -> None:
    model = load(folder, "va", normalize=False, prompts={"document": "read: ", "ask": "ask: "})
    whole = [[(0, len(TEXT))]]
    for options in (
        {"prompt": "so: "},
        {"prompt_name": "ask"},
        {"truncate_dim": 4},
        {"normalize_embeddings": True},
        {"truncate_dim": 4, "normalize_embeddings": True},
    ):
        (found,) = model.encode_parts([TEXT], whole, **options)
        assert off(found.vectors[0], model.encode(TEXT, **options)) < 1e-5
    (found,) = model.encode_parts([TEXT], whole, task="document")
    assert off(found.vectors[0], model.encode_document(TEXT)) < 1e-5
    (tensors,) = model.encode_parts([TEXT], whole, convert_to_tensor=True)
    assert isinstance(tensors.vectors, torch.Tensor)
    with model.truncate_embeddings(6):
        assert model.encode_parts(TEXT, whole[0]).vectors.shape == (1, 6)
    assert model.encode_parts([], []) == []
    light = load_text_encoder(folder, "va", template="none")
    assert light is not None
    (one,) = light.encode_parts([TEXT], whole, task="document")
    assert off(one.vectors[0], light.encode_document(TEXT)) < 1e-5


REFUSED = {
    "wva": "reads a text at its last token",
    "aligned_wva": "reads a text at its last token",
    "prompt_eol": "reads a text at its last token",
    "hidden_last": "reads a text at its last token",
    "meta_eol": "reads a text at its last token",
    "joined": "joins several readouts, made for whole texts",
}


@pytest.mark.parametrize("method", REFUSED)
def test_methods_that_have_no_vector_of_a_part(folder: Path, method: str) -> None:
    model = load(folder, method)
    advice = "parts of a text are means over their own tokens: use va, aligned_va or hidden_mean"
    with pytest.raises(RecipeError, match=rf"^encode_parts\(\): method '{method}' {REFUSED[method]}; {advice}$"):
        model.encode_parts([TEXT], [[(0, 4)]])
    with pytest.raises(RecipeError, match=rf"^output_value='token_embeddings': method '{method}' {REFUSED[method]}"):
        model.encode([TEXT], output_value="token_embeddings")
    assert set(PART_METHODS) | set(REFUSED) == set(METHODS)


def test_recipes_that_have_none(folder: Path) -> None:
    with pytest.raises(RecipeError, match="has span='all', a mean over the template's tokens too"):
        load(folder, {**METHODS["va"].to_dict(), "span": "all"}).encode_parts([TEXT], [[(0, 4)]])
    with pytest.raises(RecipeError, match="has cleaning='sentence', which moves the places of a text's characters"):
        load(folder, "va", cleaning="sentence").encode_parts([TEXT], [[(0, 4)]])
    with pytest.raises(RecipeError, match="has 2 templates, in which a text may have other tokens"):
        load(folder, "va", template=["{text}", "a {text}"]).encode([TEXT], output_value="token_embeddings")


@pytest.mark.parametrize(
    ("spans", "options", "message"),
    [
        (None, {}, r"takes the parts of each text as spans=.* chunks of chunk_tokens=None; give one of both"),
        ([[(0, 4)]], {"chunk_tokens": 8}, "chunks of chunk_tokens=8; give one of both"),
        ([[(0, 4)]], {"overlap": 2}, "overlap=2 belongs to chunk_tokens; spans may overlap as they are"),
        ([[(0, 4)], []], {}, r"spans of 2 texts for 1 text; give a list of \(start, end\) for each"),
        ([[(0, 4), (4, 4)]], {}, r"text 0, part 1: \(4, 4\) is no range of its 97 characters; give \(start, end\)"),
        ([[(0, 98)]], {}, r"text 0, part 0: \(0, 98\) is no range of its 97 characters"),
        ([[(0.5, 3)]], {}, r"text 0, part 0: \(0.5, 3\) is no range"),
        ([[7]], {}, "text 0, part 0: 7 is no range"),
        (7, {}, r"spans=7 is no list of \(start, end\) for each text"),
        ([7], {}, r"spans=\[7\] is no list of \(start, end\) for each text"),
        ([[(0, 4)]], {"context": -1}, "context=-1 has to be a whole number of tokens, at least 0"),
        ([[(0, 90)]], {}, r"text 0, part 0: it has \d+ tokens, and 23 fit into a window \(max_tokens=24, template"),
        ([[(0, 40)]], {"context": 20}, r"and 3 fit into a window behind 20 tokens of context .* or less context"),
        (None, {"chunk_tokens": 8, "overlap": 5}, "overlap=5 has to be 0 to 4"),
        ([[(0, 4)]], {"truncate_dim": 0}, "truncate_dim=0 has to be a whole number of at least 1"),
    ],
)
def test_parts_that_mean_nothing(folder: Path, spans: Any, options: dict[str, Any], message: str) -> None:
    model = load(folder, "va", max_tokens=24)
    with pytest.raises(InputError, match=message):
        model.encode_parts([TEXT], spans, **options)
    assert model.report is None


def test_a_text_without_a_finite_part_is_named(folder: Path) -> None:
    model = load(folder, "va")
    with torch.no_grad():
        model.reader.model.get_input_embeddings().weight[model.tokenize(["z"])["input_ids"][0, -1]] = float("nan")
    with pytest.raises(NotFiniteError, match=r"the embedding of 1 text is not finite .* row 1"):
        model.encode_parts(["a b", "a z"], [[(0, 1), (2, 3)], [(0, 1), (2, 3)]])


class TestTokens:
    @pytest.mark.parametrize("method", ["va", "aligned_va", "hidden_mean"])
    def test_are_the_stock_models(self, folder: Path, method: str) -> None:
        model = load(folder, method, normalize=False)
        texts = [TEXT, "rain", *some_texts(6)]
        found = model.encode(texts, output_value="token_embeddings")
        assert isinstance(found, list)
        assert all(isinstance(one, torch.Tensor) for one in found)
        # Their mean is the text's vector.
        assert off(np.stack([one.mean(dim=0) for one in found]), model.encode(texts)) < 1e-5
        stock = AutoModel.from_pretrained(folder, dtype=torch.float32)
        ids = model.reader.texts.rows([TEXT], "{text}", max_tokens=None)[0].ids
        fed, count = torch.tensor([ids]), len(ids) - 1
        if method == "hidden_mean":
            with doubled(stock) as double:
                expected = double(input_ids=fed, use_cache=False)[0][0, 1:]
        else:
            spans = [torch.tensor([[at + 1, at + 2]]) for at in range(count)]
            layers = model.reader.plan.layers
            by_token = references(
                "qwen3", stock, fed, torch.ones_like(fed), torch.arange(len(ids))[None], spans, [method], layers
            )
            expected = torch.cat([by_token[at, method] for at in range(count)])
        assert found[0].shape == (count, expected.shape[1])
        assert off(found[0], expected) < 1e-5

    def test_come_as_from_any_sentence_transformer(self, folder: Path) -> None:
        model = load(folder, "va")
        one = model.encode(TEXT, output_value="token_embeddings")
        assert isinstance(one, torch.Tensor)
        assert one.dim() == 2
        # Neither normalised nor arrays, whatever is asked of whole texts' vectors.
        assert not torch.allclose(one.norm(dim=1), torch.ones(len(one)), atol=1e-3)
        (listed,) = model.encode([TEXT], output_value="token_embeddings", convert_to_numpy=True)
        assert torch.allclose(listed, one, atol=1e-6)
        assert model.encode([], output_value="token_embeddings") == []
        asked = model.encode(TEXT, output_value="token_embeddings", truncate_dim=4, normalize_embeddings=True)
        assert asked.shape == (len(one), 4)
        assert torch.allclose(asked.norm(dim=1), torch.ones(len(one)), atol=1e-6)
        prompted = model.encode_document(TEXT, prompt="read this: ", output_value="token_embeddings")
        assert prompted.shape == one.shape

    def test_of_a_text_that_is_too_long_end_where_it_is_cut(self, folder: Path) -> None:
        model = load(folder, "va", max_tokens=9)
        with pytest.warns(TruncationWarning, match="1 of 2 texts was cut to fit max_tokens=9"):
            found = model.encode([TEXT, "rain"], output_value="token_embeddings")
        assert len(found[0]) == 8
        assert model.report is not None
        assert (model.report.texts, model.report.truncated) == (2, 1)

    @pytest.mark.parametrize("count", [3, 70])
    def test_in_any_batch(self, folder: Path, count: int) -> None:
        model = load(folder, "aligned_va", template="Here is a long line in front of it: {text}")
        texts = some_texts(count)
        found = model.encode(texts, output_value="token_embeddings")
        for text, of_text in list(zip(texts, found, strict=True))[:5]:
            assert off(model.encode(text, output_value="token_embeddings"), of_text) < 1e-5

"""Estimates against what a panel really feeds, and against sums by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from datasets import Dataset
from some_texts import some_texts

import valuembed
from valuembed.backbone import LoadOptions
from valuembed.errors import RecipeError, UnsupportedModelError
from valuembed.models.multi_readout import MultiReadout
from valuembed.recipes.methods import METHODS, resolve_recipe
from valuembed.recipes.templates import PROMPT_EOL, TEMPLATES
from valuembed.research.experiments import read_backbone
from valuembed.research.workload import (
    CHARACTERS_PER_TOKEN,
    Decoder,
    estimate,
    found_decoder,
    texts_of,
    written_decoder,
)

pytestmark = pytest.mark.slow

RECIPES = {
    **METHODS,
    "va full": resolve_recipe("va", layers="all"),
    "cleaned": resolve_recipe("aligned_wva", cleaning="sentence"),
}


@pytest.fixture(scope="module")
def decoder(folder):
    return found_decoder(str(folder), LoadOptions())


def test_found_decoder(decoder, folder):
    assert (decoder.name, decoder.num_layers, decoder.saved) == (folder.name, 4, None)
    assert decoder.decoder_spec.value_layers == (0, 1, 2, 3)


def test_a_saved_folder_knows_the_depth_of_its_source(folder, tmp_path):
    saved = tmp_path / "saved"
    valuembed.load(folder, "va", layers=[0, 1]).save(str(saved))
    decoder = found_decoder(str(saved), LoadOptions())
    assert (decoder.num_layers, decoder.decoder_spec.num_layers) == (4, 2)
    work = estimate(decoder, {"va": resolve_recipe("va", layers=[1])}, {"T": (1, 1.0)}, 1.0)
    assert work.passes[0].layers == 2


@pytest.mark.parametrize(("name", "billions"), [("llama-2-7b", 6.61), ("qwen-3-8b", 7.57)])
def test_written_decoder_has_the_size_of_the_backbone(name, billions):
    backbone = read_backbone(name)
    decoder = written_decoder(backbone, LoadOptions())
    layers, _, rest = decoder.decoder_spec.sizes
    # Published: 6.74 and 8.19 billion, with a head of its own for each: vocabulary x 4096.
    assert round((sum(layers) + rest) / 1e9, 2) == billions
    head = backbone.decoder["vocab_size"] * 4096 / 1e9
    assert billions + head == pytest.approx({"llama-2-7b": 6.74, "qwen-3-8b": 8.19}[name], abs=0.01)
    assert decoder.num_layers == len(layers) == backbone.num_layers


def test_written_decoder_of_an_unknown_family():
    backbone = replace(read_backbone("llama-2-7b"), decoder={"model_type": "llamo", "num_hidden_layers": 4})
    with pytest.raises(UnsupportedModelError, match=r"backbone 'llama-2-7b': its decoder cannot be made: .*llamo"):
        written_decoder(backbone, LoadOptions())


class TestEstimate:
    def test_passes_are_those_of_a_panel(self, decoder, folder):
        readouts = MultiReadout.load(folder, RECIPES)
        work = estimate(decoder, RECIPES, {"T": (10, 5.0)}, 1.0)
        assert [list(part.rows) for part in work.passes] == readouts.groups()

    def test_tokens_are_those_that_a_panel_feeds(self, decoder, folder):
        texts = some_texts(20)
        readouts = MultiReadout.load(folder, RECIPES)
        work = estimate(decoder, RECIPES, {"T": decoder.measure(texts)}, 1.0)
        for part in work.passes:
            readouts.encode(texts, names=part.rows)
            # Words may tokenize otherwise where they touch a template.
            assert part.tokens["T"] == pytest.approx(readouts.report.tokens, rel=0.03), part.rows

    def test_layers_and_operations_by_hand(self, decoder):
        recipes = {
            "shallow": resolve_recipe("va", layers=[0]),
            "deep": resolve_recipe("va", layers=[1, 2]),
            "whole": resolve_recipe("prompt_eol", template="a {text}"),
        }
        bare = replace_words(decoder)
        work = estimate(bare, recipes, {"A": (10, 5.0), "B": (2, 20.0)}, 0.5, ["A note."])
        size = decoder.decoder_spec.sizes[0][0]
        first, second = work.passes
        assert (first.rows, first.templates, first.layers) == (("shallow", "deep"), 1, 3)
        # Without template each text has one more token, a BOS.
        assert first.tokens == {"A": 10 * 6.0, "B": 2 * 21.0}
        assert first.flops == 2 * 102 * 3 * size
        # One word of a template: 1.3 tokens.
        assert (second.rows, second.layers) == (("whole",), 4)
        assert second.tokens == pytest.approx({"A": 10 * 7.3, "B": 2 * 22.3})
        assert second.flops == pytest.approx(2 * 117.6 * 4 * size)
        assert work.tokens == pytest.approx(102 + 117.6)
        assert work.hours == pytest.approx((first.flops + second.flops) / 0.5e12 / 3600)
        assert work.parameters == 4 * size + decoder.decoder_spec.sizes[2]
        assert work.notes == ("A note.",)
        assert not work.counted

    def test_only_what_is_loaded_counts(self, decoder):
        work = estimate(decoder, {"va": resolve_recipe("va", layers=[0])}, {"A": (1, 1.0)}, 1.0)
        assert work.parameters == decoder.decoder_spec.sizes[0][0] + decoder.decoder_spec.sizes[2]

    def test_long_texts_are_cut_as_by_the_model(self, folder):
        texts = [" ".join(some_texts(2 + 3 * n)) for n in range(8)]
        readouts = MultiReadout.load(folder, RECIPES, max_tokens=120)
        decoder = found_decoder(str(folder), LoadOptions(max_tokens=120))
        work = estimate(decoder, RECIPES, {"T": decoder.measure(texts)}, 1.0)
        for part in work.passes:
            readouts.encode(texts, names=part.rows)
            # What is fed of a text twice is cut to the last word that fits twice.
            assert part.tokens["T"] == pytest.approx(readouts.report.tokens, rel=0.05), part.rows
            assert part.tokens["T"] <= part.templates * 120 * len(texts)

    def test_the_limit_of_a_saved_folder_counts(self, folder, tmp_path):
        valuembed.load(folder, "va", max_tokens=30).save(str(tmp_path / "saved"))
        assert found_decoder(str(tmp_path / "saved"), LoadOptions()).max_tokens == 30
        with pytest.raises(RecipeError, match="max_tokens=0 has to be at least 1"):
            found_decoder(str(folder), LoadOptions(max_tokens=0))

    def test_several_templates_and_two_copies(self, decoder):
        recipes = {"echo": METHODS["echo"], "meta": METHODS["meta_eol"]}
        echo, meta = estimate(replace_words(decoder), recipes, {"A": (1, 100.0)}, 1.0).passes
        # "Rewrite the sentence: , rewritten sentence: " has 6 words, the comma for one.
        assert echo.tokens == pytest.approx({"A": 2 * 100 + 1 + 1.3 * 6})
        assert meta.templates == 8
        words = sum(len(template.replace("{text}", " ").split()) for template in TEMPLATES["meta_eol"])
        assert meta.tokens == pytest.approx({"A": 8 * 100 + 8 + 1.3 * words})

    def test_report(self, decoder):
        work = estimate(decoder, {"va": METHODS["va"]}, {"A": (1500, 20.4), "B": "no file B.jsonl"}, 2.0, ["Mapped."])
        text = work.to_markdown()
        assert "Assumed: 2 TFLOP/s sustained (--tflops)" in text
        assert "Template tokens are counted with the tokenizer" in text
        assert "\nMapped.\n" in text
        assert "| A | 1,500 | 20 |" in text
        assert "| B | no data | | |" in text
        assert "- B: no file B.jsonl" in text
        data = work.to_dict()
        assert data["missing"] == {"B": "no file B.jsonl"}
        assert (data["tokens"], data["hours"]) == (work.tokens, work.hours)


class TestMeasure:
    def test_counts_different_texts_in_tokens(self, decoder):
        rows = decoder.words.rows(["One.", "Two words."], "{text}", max_tokens=None)
        lengths = [row.span[1] - row.span[0] for row in rows]
        assert decoder.measure(["One.", "Two words.", "One."]) == (2, lengths)

    def test_without_a_tokenizer(self, decoder):
        assert replace_words(decoder).measure(["abcd", "abcdefgh"]) == (
            2,
            [4 / CHARACTERS_PER_TOKEN, 8 / CHARACTERS_PER_TOKEN],
        )

    def test_template(self, decoder):
        copies, added = decoder.around(PROMPT_EOL)
        row = decoder.words.rows(["word"], PROMPT_EOL, max_tokens=None)[0]
        assert (copies, added) == (1, len(row.ids) - (row.span[1] - row.span[0]))


def test_texts_of_data_of_any_depth():
    flat = Dataset.from_dict({"sentence1": ["a"], "sentence2": ["b"], "score": [1.0]})
    deep = {"default": {"test": {"corpus": Dataset.from_dict({"id": ["1"], "text": ["c"]}), "relevant_docs": {"q": 1}}}}
    assert texts_of({"test": flat}) == ["a", "b"]
    assert texts_of(deep) == ["c"]
    assert texts_of(SimpleNamespace()) == []


def replace_words(decoder: Decoder) -> Decoder:
    return replace(decoder, words=None)

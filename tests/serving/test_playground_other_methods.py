"""What a page compares a model with is what that method itself would give, on the layers that are loaded."""

import numpy as np
import pytest
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import valuembed
from valuembed.analysis.calibration_fit import calibrate
from valuembed.models.explanation import explain
from valuembed.recipes.methods import METHODS
from valuembed.recipes.recipe import Recipe
from valuembed.serving.playground.api import SERVED, to_unit_length
from valuembed.serving.playground.other_methods import OFFERED, EncoderPlayground
from valuembed.testing import tiny_checkpoint

pytestmark = pytest.mark.slow

TEXTS = ["A cat sleeps.", "x", "Ein Satz mit Umlauten: äöü. " * 4, "\u4e2d\u6587 and more"]
CLOSE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(scope="module")
def encoder(folder):
    return valuembed.load(folder, "va", layers=[0, 2])


@pytest.fixture(scope="module")
def playground(encoder):
    return EncoderPlayground(encoder)


def close(vectors, encoder):
    """Served vectors are scaled to length 1."""
    np.testing.assert_allclose(to_unit_length(vectors), encoder.encode(TEXTS), **CLOSE)


def names(playground):
    return [choice.name for choice in playground.choices]


def test_what_is_served_comes_first_and_once(folder, playground):
    assert names(playground) == [SERVED, "aligned_va", "wva", "aligned_wva", "hidden_mean", "hidden_last"]
    for method in OFFERED[1:4]:
        assert method not in names(EncoderPlayground(valuembed.load(folder, method, layers=[0, 2])))


def test_they_say_what_they_read(playground):
    assert {choice.name: choice.about for choice in playground.choices} == {
        SERVED: "Mean of the values of the text's tokens; layers 0, 2",
        "aligned_va": "Mean of the values of the text's tokens, through the output projection; layers 0, 2",
        "wva": "Values weighed by the last token's attention; layers 0, 2; in a template",
        "aligned_wva": "Values weighed by the last token's attention, through the output projection; layers 0, 2; "
        "in a template",
        "hidden_mean": "Mean of the hidden states of the text's tokens; layer 2",
        "hidden_last": "Hidden state of the last token; layer 2",
    }
    assert playground.choices[0].label == "va (as served)"
    assert [choice.signal for choice in playground.choices] == ["value"] * 4 + ["hidden"] * 2


@pytest.mark.parametrize("method", OFFERED[1:])
def test_vectors_are_those_of_the_method(folder, playground, method):
    layers = [2] if METHODS[method].signal == "hidden" else [0, 2]
    vectors, truncated = playground.vectors(TEXTS, method, None)
    close(vectors, valuembed.load(folder, method, layers=layers))
    assert truncated == 0


def test_texts_that_are_cut_are_counted(folder):
    playground = EncoderPlayground(valuembed.load(folder, "va", layers=[1], max_tokens=20))
    assert playground.vectors(TEXTS, "hidden_mean", "query")[1] == 1


class TestModelsOfHiddenStates:
    def test_after_the_final_norm(self, folder):
        playground = EncoderPlayground(valuembed.load(folder, "hidden_mean"))
        assert names(playground) == [SERVED, "va", "aligned_va", "wva", "aligned_wva", "hidden_last"]
        assert playground.choices[0].about == "Mean of the hidden states of the text's tokens; final norm"
        for method in ("va", "hidden_last"):
            found, _ = playground.vectors(TEXTS, method, None)
            close(found, valuembed.load(folder, method))

    def test_of_a_layer(self, folder):
        """Of layers 0 and 1 only, the default depth of a model of two."""
        playground = EncoderPlayground(valuembed.load(folder, METHODS["hidden_last"], layers=[1]))
        assert playground.choices[1].about.endswith("; layer 1")
        found, _ = playground.vectors(TEXTS, "va", None)
        close(found, valuembed.load(folder, "va", layers=[1]))


def test_a_calibrated_model_offers_its_method_raw_too(folder):
    encoder = valuembed.load(folder, "va", layers=[0, 2])
    calibrated = calibrate(encoder, [f"{text} {number}" for text in TEXTS for number in range(10)], progress=False)
    playground = EncoderPlayground(calibrated)
    assert names(playground)[:2] == [SERVED, "va"]
    assert playground.choices[0].about.endswith("; calibrated")
    close(playground.vectors(TEXTS, "va", None)[0], valuembed.load(folder, "va", layers=[0, 2]))


def test_a_model_that_gives_short_vectors_offers_its_method_whole_too(folder):
    encoder = valuembed.load(folder, "va", layers=[0, 2])
    encoder.truncate_dim = 4
    playground = EncoderPlayground(encoder)
    assert playground.choices[0].about.endswith("; layers 0, 2; the first 4 numbers")
    close(playground.vectors(TEXTS, "va", None)[0], valuembed.load(folder, "va", layers=[0, 2]))


def test_methods_that_the_layers_cannot_give_are_left_out(tmp_path):
    """Values of 16 and of 32 numbers have no mean; aligned, all are as wide as the model."""
    config = CONFIG_MAPPING["gemma4_text"](
        vocab_size=512,
        vocab_size_per_layer_input=512,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        global_head_dim=16,
        hidden_size_per_layer_input=8,
        layer_types=["sliding_attention", "full_attention"],
        num_kv_shared_layers=0,
    )
    mixed = tiny_checkpoint(tmp_path / "mixed")
    AutoModelForCausalLM.from_config(config).save_pretrained(mixed)
    playground = EncoderPlayground(valuembed.load(mixed, "aligned_va", layers="all"))
    assert names(playground) == [SERVED, "aligned_wva", "hidden_mean", "hidden_last"]
    assert playground.weights("a cat").about.startswith("aligned_wva, layers 0-1; ")


def test_templates_of_ones_own_are_counted(folder):
    recipe = Recipe(signal="value", weights="mean", span="all", template=("a {text}", "b {text}"))
    served = EncoderPlayground(valuembed.load(folder, recipe, layers=[1])).choices[0]
    assert served.about == "Mean of the values of all tokens; layer 1; in 2 templates"


class TestWeights:
    def test_are_those_of_the_method_where_it_has_some(self, folder):
        encoder = valuembed.load(folder, "aligned_wva", layers=[0, 2])
        found, expected = EncoderPlayground(encoder).weights(TEXTS[0]), explain(encoder, TEXTS[0])
        (tokens,), (sequence,) = found.sequences, expected.sequences
        assert found.about == "aligned_wva, layers 0, 2"
        assert found.full == sequence.full()
        assert "".join(token.text for token in tokens if token.is_text).startswith(TEXTS[0])
        assert sum(token.weight for token in tokens) == pytest.approx(1, abs=1e-5)

    def test_are_those_of_wva_elsewhere(self, folder, playground):
        found = playground.weights(TEXTS[0])
        assert found.about == "wva, layers 0, 2; va, which is served, has no such weights"
        expected = explain(valuembed.load(folder, "wva", layers=[0, 2]), TEXTS[0])
        np.testing.assert_allclose(
            [token.weight for token in found.sequences[0]], expected.sequences[0].mean(), rtol=1e-4
        )

    def test_of_a_character_of_several_tokens_are_added_up(self, folder, playground):
        text = "a \N{SNOWMAN}\N{GRINNING FACE}"
        found = playground.weights(text)
        sequence = explain(valuembed.load(folder, "wva", layers=[0, 2]), text).sequences[0]
        assert len(found.sequences[0]) < len(sequence.tokens)
        assert all(token.text for token in found.sequences[0])
        assert sum(token.weight for token in found.sequences[0]) == pytest.approx(1, abs=1e-5)

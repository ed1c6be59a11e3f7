"""Every way to name layers, and every way to name them wrongly."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, strategies as st
from transformers import LlamaConfig, MistralConfig, Qwen3Config

from valuembed.errors import LayerError
from valuembed.recipes.layers import PRESETS, describe, preset_for, resolve_layers

EIGHT = tuple(range(8))
HYBRID = (3, 7, 11)

LLAMA_2_7B = {"vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "max_position_embeddings": 4096}
QWEN3_8B = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 40960,
}
SMOLLM2_135M = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
}


class TestPresets:
    def test_layers_are_the_papers_and_one_of_ours(self):
        assert {name: preset.layers for name, preset in PRESETS.items()} == {
            "llama-2-7b": (20, 21, 22, 23, 24, 25, 26, 27),
            "qwen-3-8b": (26, 27, 29, 30, 31),
            "smollm2-135m": (7, 19, 21, 22, 23, 25, 27, 29),
        }

    @pytest.mark.parametrize(
        ("config", "name"),
        [
            (LlamaConfig(**LLAMA_2_7B), "llama-2-7b"),
            # A fine-tuned descendant keeps the shape, whatever its name.
            (LlamaConfig(**LLAMA_2_7B, name_or_path="someone/tuned"), "llama-2-7b"),
            (Qwen3Config(**QWEN3_8B), "qwen-3-8b"),
            (LlamaConfig(**SMOLLM2_135M), "smollm2-135m"),
            # SmolLM-135M has a quarter of the positions, SmolLM2-360M 32 layers.
            (LlamaConfig(**{**SMOLLM2_135M, "max_position_embeddings": 2048}), None),
            (LlamaConfig(**{**SMOLLM2_135M, "num_hidden_layers": 32}), None),
            # LLaMA-1 has half the positions, LLaMA-3-8B grouped heads and another vocabulary, the 13B 40 layers.
            (LlamaConfig(**{**LLAMA_2_7B, "max_position_embeddings": 2048}), None),
            (LlamaConfig(**{**LLAMA_2_7B, "vocab_size": 128256, "num_key_value_heads": 8}), None),
            (LlamaConfig(**{**LLAMA_2_7B, "num_hidden_layers": 40, "hidden_size": 5120}), None),
            (MistralConfig(**LLAMA_2_7B, num_key_value_heads=32), None),
            # Qwen3-4B has 36 layers as well, of another width.
            (Qwen3Config(**{**QWEN3_8B, "hidden_size": 2560}), None),
            (object(), None),
        ],
    )
    def test_backbone_is_recognised_by_its_configuration(self, config, name):
        assert preset_for(config) == name

    def test_preset_is_the_default_of_its_backbone_and_can_be_changed(self):
        legal = tuple(range(36))
        assert resolve_layers(None, legal, 36, preset="qwen-3-8b") == (26, 27, 29, 30, 31)
        assert resolve_layers("all", legal, 36, preset="qwen-3-8b") == legal
        assert resolve_layers([5], legal, 36, preset="qwen-3-8b") == (5,)

    def test_preset_by_name(self):
        assert resolve_layers("LLaMA-2-7B", range(32), 32) == tuple(range(20, 28))

    @pytest.mark.parametrize("arguments", [("llama-2-7b", EIGHT, 8), (None, EIGHT, 8, "llama-2-7b")])
    def test_preset_on_a_shallower_model(self, arguments):
        expected = "layers='llama-2-7b': layers 20-27 cannot be read in this model of 8 layers; legal layers are 0-7"
        with pytest.raises(LayerError, match=re.escape(expected)):
            resolve_layers(*arguments)


class TestDefault:
    @pytest.mark.parametrize(
        ("num_layers", "expected"),
        [
            (36, range(24, 36)),  # 2/3 of 36 is 24, which counts
            (32, range(22, 32)),  # 21.3
            (30, range(20, 30)),  # 20
            (28, range(19, 28)),  # 18.7
            (8, (6, 7)),  # 5.3
            (4, (3,)),  # 2.7
            (3, (2,)),  # 2
            # 0/2, 1/2 and 0/1 are all less deep than 2/3: one layer is read all the same.
            (2, (1,)),
            (1, (0,)),
        ],
    )
    def test_by_depth(self, num_layers, expected):
        assert resolve_layers(None, range(num_layers), num_layers) == tuple(expected)

    def test_hybrids_count_depth_over_the_whole_decoder(self):
        # Of 48 layers, those from 32; every fourth has values.
        assert resolve_layers(None, range(3, 48, 4), 48) == (35, 39, 43, 47)
        # Of 12, those from 8, where there is none: the last of the legal ones.
        assert resolve_layers(None, (1, 3, 7), 12) == (7,)

    @given(st.integers(1, 130).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
    def test_always_some_and_all_of_them_legal(self, case):
        num_layers, legal = case
        chosen = resolve_layers(None, sorted(legal), num_layers)
        inside = [layer for layer in sorted(legal) if layer / num_layers >= 2 / 3]
        assert list(chosen) == (inside or [max(legal)])
        assert set(chosen) <= legal

    def test_the_last_ones_are_counted_among_the_legal(self):
        assert resolve_layers("last", (1, 3, 7), 12) == (7,)
        assert resolve_layers("last-2", (1, 3, 7), 12) == (1,)
        assert resolve_layers("last-2", (3, 7), 12) == (3,)


class TestForms:
    @pytest.mark.parametrize(
        ("spec", "expected"),
        [
            ("all", EIGHT),
            (" ALL ", EIGHT),
            ("half", (4, 5, 6, 7)),
            ("third", (6, 7)),
            ("last", (7,)),
            ("Last-2", (5,)),
            ("last-99", (0,)),
            (5, (5,)),
            ("5", (5,)),
            (-1, (7,)),
            ("-1", (7,)),
            (-8, (0,)),
            ([2, 0, 5], (0, 2, 5)),
            ((2, 0, 5), (0, 2, 5)),
            (range(2, 5), (2, 3, 4)),
            ([-1, 0], (0, 7)),
            ("2,0,5", (0, 2, 5)),
            ("2, -1", (2, 7)),
            ("2:5", (2, 3, 4)),
            ("-3:-1", (5, 6)),
            (":2", (0, 1)),
            ("6:", (6, 7)),
            ("-2:", (6, 7)),
            (":", EIGHT),
            # A fraction points at a layer of 0..7: 0.5 * 7 = 3.5 is between 3 and 4, 0.75 * 7 = 5.25, 0.3 * 7 = 2.1.
            (0.0, (0,)),
            (1.0, (7,)),
            (0.75, (5,)),
            ("0.75", (5,)),
            ([0.3, 1.0], (2, 7)),
            ("0.3,1.0", (2, 7)),
            # l/8: 0.65 <= 6/8, 7/8 < 0.9; 4/8 = 0.5 counts as a lower bound and not as an upper one.
            ("0.65:0.9", (6, 7)),
            ("0.5:1.0", (4, 5, 6, 7)),
            (":0.5", (0, 1, 2, 3)),
            ("0.5:", (4, 5, 6, 7)),
        ],
    )
    def test_of_eight(self, spec, expected):
        assert resolve_layers(spec, EIGHT, 8) == expected

    @pytest.mark.parametrize(
        ("spec", "expected"),
        [
            ("all", HYBRID),
            ("half", (7, 11)),  # of an odd number, the larger half
            ("0.5:0.95", (7, 11)),  # 6 <= l < 11.4
            (0.0, (3,)),
            (0.5, (7,)),
            (1.0, (11,)),
            ([3, 11], (3, 11)),
            (-1, (11,)),
        ],
    )
    def test_of_a_hybrid_names_and_fractions_select_among_its_value_layers(self, spec, expected):
        assert resolve_layers(spec, HYBRID, 12) == expected

    def test_half_is_the_second_half(self):
        assert resolve_layers("half", range(32), 32) == tuple(range(16, 32))
        assert resolve_layers("half", range(1), 1) == (0,)

    def test_legal_layers_in_any_order(self):
        assert resolve_layers("half", (11, 3, 7), 12) == (7, 11)

    @given(st.sets(st.integers(0, 40), min_size=1))
    def test_absolute_indices_stay_what_they_are(self, layers):
        chosen = tuple(sorted(layers))
        for spec in (chosen, list(reversed(chosen)), ",".join(map(str, chosen))):
            assert resolve_layers(spec, range(41), 41) == chosen

    @given(st.sets(st.integers(0, 60)))
    def test_describe_names_exactly_the_layers(self, layers):
        named = []
        for run in filter(None, describe(tuple(layers)).split(", ")):
            low, _, high = run.partition("-")
            named += range(int(low), int(high or low) + 1)
        assert named == sorted(layers)

    def test_describe_by_hand(self):
        assert describe((31, 26, 27, 29, 30)) == "26-27, 29-31"
        assert describe((4,)) == "4"


FORMS = 'a list of 0-based indices, "all", "half"'


class TestErrors:
    @pytest.mark.parametrize(
        ("spec", "said"),
        [
            (8, "layers=8: layer 8 cannot be read in this model of 8 layers; legal layers are 0-7"),
            (-9, "layers=-9: layer -9 cannot be read in this model of 8 layers; legal layers are 0-7"),
            ([1, 8, 9, 12], "layers=[1, 8, 9, 12]: layers 8-9, 12 cannot be read"),
            ("20:28", "layers='20:28': layers 20-27 cannot be read in this model of 8 layers; legal layers are 0-7"),
            ("6:10", "layers='6:10': layers 8-9 cannot be read"),
            ([1, 1], "layers=[1, 1] names a layer twice; it means [1, 1]"),
            ([-1, 7], "layers=[-1, 7] names a layer twice; it means [7, 7]"),
            # 0.5 * 7 = 3.5 and 0.51 * 7 = 3.57 are the same layer.
            ([0.5, 0.51], "layers=[0.5, 0.51] names a layer twice; it means [4, 4]"),
            ([], "layers=[] selects no layer; legal layers are 0-7"),
            ("5:5", "layers='5:5' selects no layer; legal layers are 0-7"),
            ("6:2", "layers='6:2' selects no layer; legal layers are 0-7"),
            ("0.9:0.95", "layers='0.9:0.95' selects no layer; legal layers are 0-7"),
            (1.5, "layers=1.5: the fraction 1.5 is not between 0.0 and 1.0"),
            ([0.5, -0.1], "layers=[0.5, -0.1]: the fraction -0.1 is not between 0.0 and 1.0"),
            (float("nan"), "layers=nan: the fraction nan is not between 0.0 and 1.0"),
        ],
    )
    def test_what_does_not_exist(self, spec, said):
        with pytest.raises(LayerError, match=re.escape(said)):
            resolve_layers(spec, EIGHT, 8)

    @pytest.mark.parametrize("spec", ["", "last-x", "a:b", "1:2:3", "1,,2", "0.x", "0.1:y", "1-3", "three quarters"])
    def test_a_string_that_is_no_form_lists_the_forms(self, spec):
        with pytest.raises(LayerError, match=re.escape(f"layers={spec!r} is not understood; give {FORMS}")) as caught:
            resolve_layers(spec, EIGHT, 8)
        for form in ('"third"', '"last-2"', '"20:28"', "0.75", '"0.65:0.9"', *PRESETS):
            assert form in str(caught.value)

    @pytest.mark.parametrize(
        ("spec", "culprit"),
        [(True, "True"), ([0, True], "True"), (["3"], "'3'"), ([0, None], "None"), ({3}, "{3}"), ({}, "{}")],
    )
    def test_a_thing_that_is_no_layer_lists_the_forms(self, spec, culprit):
        with pytest.raises(LayerError, match=re.escape(f"layers={spec!r}: {culprit} is not a layer; give {FORMS}")):
            resolve_layers(spec, EIGHT, 8)

    @pytest.mark.parametrize(
        ("spec", "said"),
        [
            (4, "layers=4: layer 4 cannot be read in this model of 12 layers; legal layers are 3, 7, 11"),
            ("3:8", "layers='3:8': layers 4-6 cannot be read in this model of 12 layers; legal layers are 3, 7, 11"),
            (-2, "layers=-2: layer 10 cannot be read in this model of 12 layers; legal layers are 3, 7, 11"),
            ("0.3:0.5", "layers='0.3:0.5' selects no layer; legal layers are 3, 7, 11"),
        ],
    )
    def test_layers_of_a_hybrid_without_values(self, spec, said):
        with pytest.raises(LayerError, match=re.escape(said)):
            resolve_layers(spec, HYBRID, 12)

    @pytest.mark.parametrize("spec", [None, "all", 0])
    def test_a_model_without_readable_layers(self, spec):
        with pytest.raises(LayerError, match=re.escape(f"layers={spec!r}: none of the 12 layers")):
            resolve_layers(spec, (), 12)

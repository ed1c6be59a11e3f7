"""What a survey finds out about a decoder without any weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from once import EVERY_FAMILY, traced
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CONFIG_MAPPING
from watching import watch_reads

import valuembed
from valuembed.backbone.plan import Plan
from valuembed.backbone.tracing import trace_architecture
from valuembed.errors import LayerError, UnsupportedModelError
from valuembed.recipes import METHODS, Recipe
from valuembed.testing import tiny_checkpoint, tiny_config, tiny_decoder

MLA = {"deepseek_v2", "deepseek_v3", "mistral4", "youtu"}
UNGROUPED = {"biogpt", "gpt2", "gpt_neox", "opt", "persimmon"}
# The final norm, where it is not called `norm`.
TAILS = {
    "bamba": "final_layernorm",
    "biogpt": "layer_norm",
    "falcon_h1": "final_layernorm",
    "gpt2": "ln_f",
    "gpt_bigcode": "ln_f",
    "gpt_neox": "final_layer_norm",
    "jamba": "final_layernorm",
    "lfm2": "embedding_norm",
    "lfm2_moe": "embedding_norm",
    "opt": "decoder.final_layer_norm",
    "persimmon": "final_layernorm",
    "phi": "final_layernorm",
}
# olmo's norms have no weights, so that nothing with weights runs after its last layer.
WITHOUT_TAIL = {"olmo", "nanochat"}
PROJECTIONS = {
    "biogpt": "self_attn.out_proj",
    "gpt2": "attn.c_proj",
    "gpt_bigcode": "attn.c_proj",
    "gpt_neox": "attention.dense",
    "lfm2": "self_attn.out_proj",
    "lfm2_moe": "self_attn.out_proj",
    "opt": "self_attn.out_proj",
    "persimmon": "self_attn.dense",
    "phi": "self_attn.dense",
}
LAYERS = {"gpt2": "h", "gpt_bigcode": "h", "opt": "decoder.layers"}
# Attention in layers 1 and 3 only; falcon_h1 has it beside the recurrence in every layer.
EVERY_OTHER = {
    "bamba",
    "granitemoehybrid",
    "jamba",
    "lfm2",
    "lfm2_moe",
    "minimax",
    "olmo_hybrid",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_next",
}


@pytest.mark.parametrize("architecture", EVERY_FAMILY)
def test_what_each_family_is_made_of(architecture):
    decoder_spec = traced(architecture)
    layers_path = LAYERS.get(architecture, "layers")
    projection = PROJECTIONS.get(architecture, "self_attn.o_proj")
    assert decoder_spec.model_class is type(tiny_decoder(architecture))
    assert (decoder_spec.num_layers, decoder_spec.model_width, decoder_spec.layers_path) == (4, 32, layers_path)
    assert decoder_spec.value_layers == ((1, 3) if architecture in EVERY_OTHER else (0, 1, 2, 3))
    expected_tail = () if architecture in WITHOUT_TAIL else (TAILS.get(architecture, "norm"),)
    assert decoder_spec.tail == expected_tail
    groups = 1 if architecture == "gpt_bigcode" else 4 if architecture in UNGROUPED | MLA else 2
    width = 12 if architecture in MLA else 8
    for block in decoder_spec.blocks:
        assert (block.query_heads, block.value_heads, block.head_width) == (4, groups, width)
        assert block.projection == f"{layers_path}.{block.layer}.{projection}"
        assert block.projection.startswith(f"{block.path}.")
        assert block.calls == 1
    layers = decoder_spec.value_layers
    widths = {
        (weights, aligned): Plan(value_recipe(weights, aligned=aligned), layers, decoder_spec).width
        for weights in ("mean", "last")
        for aligned in (False, True)
    }
    assert widths == {
        ("mean", False): groups * width,
        ("last", False): 4 * width,
        ("mean", True): 32,
        ("last", True): 32,
    }
    assert Plan(METHODS["hidden_mean"], (), decoder_spec).width == 32


@pytest.mark.parametrize("architecture", EVERY_FAMILY)
def test_sizes_add_up_to_the_real_parameter_count(architecture):
    model = tiny_decoder(architecture)
    decoder_spec = traced(architecture)
    layers, tail, rest = decoder_spec.sizes

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert list(layers) == [count(layer) for layer in model.get_submodule(decoder_spec.layers_path)]
    assert tail == sum(count(model.get_submodule(path)) for path in decoder_spec.tail)
    assert sum(layers) + tail + rest == count(model)
    assert rest >= 512 * 32


@pytest.mark.parametrize("architecture", ["gpt_oss", "gemma2", "vaultgemma"])
def test_what_a_kernel_must_not_drop_is_noted(architecture):
    needs = {block.needs for block in trace_architecture(tiny_config(architecture)).blocks}
    assert needs == {frozenset({"s_aux"} if architecture == "gpt_oss" else {"softcap"})}


def test_plain_attention_needs_nothing_special():
    assert {block.needs for block in trace_architecture(tiny_config("qwen3")).blocks} == {frozenset()}
    capless = trace_architecture(tiny_config("gemma2", attn_logit_softcapping=None))
    assert {block.needs for block in capless.blocks} == {frozenset()}


def value_recipe(weights, *, aligned=False):
    return Recipe(signal="value", weights=weights, alignment="projection" if aligned else "none")


def gemma4(**overrides: object):
    """Its full layers have one head of width 16, its sliding layers two of width 8 by default."""
    return CONFIG_MAPPING["gemma4_text"](
        vocab_size=64,
        vocab_size_per_layer_input=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        global_head_dim=16,
        hidden_size_per_layer_input=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
        **{"num_kv_shared_layers": 0, **overrides},
    )


def test_layers_of_unequal_width_cannot_be_averaged():
    decoder_spec = trace_architecture(gemma4())
    assert [block.head_width for block in decoder_spec.blocks] == [8, 16, 8, 16]
    for weights, narrow, wide in (("mean", 16, 32), ("last", 32, 64)):
        recipe = value_recipe(weights)
        message = (
            rf"^layers of unequal width cannot be averaged \({narrow} wide: layers 0, 2; {wide} wide: layers 1, 3\); "
            "choose layers of one group$"
        )
        with pytest.raises(LayerError, match=message):
            Plan(recipe, (0, 1, 2, 3), decoder_spec).check_layers()
        for layers, width in (((0, 2), narrow), ((1, 3), wide)):
            plan = Plan(recipe, layers, decoder_spec)
            plan.check_layers()
            assert plan.width == width
    # Aligned, all layers speak the language of the residual stream.
    aligned = Plan(value_recipe("last", aligned=True), (0, 1, 2, 3), decoder_spec)
    aligned.check_layers()
    assert aligned.width == 32


def test_unequal_widths_are_found_before_weights_are_read(tmp_path, monkeypatch):
    folder = tiny_checkpoint(tmp_path)
    gemma4().save_pretrained(folder)
    reads = watch_reads(monkeypatch)
    with pytest.raises(
        LayerError, match=r"^layers of unequal width cannot be averaged \(16 wide: layers 0, 2; 32 wide"
    ):
        valuembed.load(folder, "va", layers="all")
    assert reads.opened == []


def test_layers_that_reuse_values_are_refused():
    message = (
        r"^gemma4_text: the last 2 layers reuse the keys and values of earlier ones \(num_kv_shared_layers\).*"
        "choose a decoder without shared layers$"
    )
    with pytest.raises(UnsupportedModelError, match=message):
        trace_architecture(gemma4(num_kv_shared_layers=2))


SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("bert", {}),
        ("roberta", {}),
        ("modernbert", {"pad_token_id": 0}),
        ("eurobert", {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 3}),
        ("nomic_bert", {}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
    ],
)
def test_encoders_are_refused_by_what_their_attention_does(family, settings):
    tokens = {"bos_token_id": None, "eos_token_id": None} if family == "modernbert" else {}
    tokens |= {"cls_token_id": 1, "sep_token_id": 2} if family == "modernbert" else {}
    config = CONFIG_MAPPING[family](**{**SMALL, **tokens, **settings})
    message = f"^{family}: layers 0-1 attend to later tokens too, so it is an encoder and no decoder; choose .*qwen3"
    with pytest.raises(UnsupportedModelError, match=message):
        trace_architecture(config)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_same_families_built_as_decoders_are_read(family):
    assert trace_architecture(CONFIG_MAPPING[family](**SMALL, is_decoder=True)).value_layers == (0, 1)


def test_a_block_without_an_output_projection_can_be_read_but_not_aligned():
    from dataclasses import replace

    decoder_spec = trace_architecture(tiny_config("qwen3"))
    blocks = tuple(
        replace(block, projection=None if block.layer == 2 else block.projection) for block in decoder_spec.blocks
    )
    lacking = replace(decoder_spec, blocks=blocks)
    message = (
        r"Qwen3Model has no linear map from its heads to the model width in layer 2; use alignment='none' \(methods va"
    )
    with pytest.raises(LayerError, match=message):
        Plan(value_recipe("mean", aligned=True), (1, 2), lacking).check_layers()
    # The block's own output needs no projection by name.
    for recipe, layers, width in (
        (value_recipe("mean", aligned=True), (1, 3), 32),
        (value_recipe("mean"), (1, 2), 16),
        (value_recipe("last", aligned=True), (1, 2), 32),
    ):
        plan = Plan(recipe, layers, lacking)
        plan.check_layers()
        assert plan.width == width


class Allocations(TorchDispatchMode):
    """Bytes of the tensors with data that torch makes."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                self.made += tensor.numel() * tensor.element_size()
        return out


def test_an_8b_model_is_surveyed_without_its_memory():
    config = CONFIG_MAPPING["qwen3"](
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    )
    with Allocations() as real:
        parameters = sum(tensor.numel() for tensor in tiny_decoder("qwen3").parameters())
    assert real.made > 4 * parameters, "the measure missed a model that was built with data"
    with Allocations() as surveying:
        decoder_spec = trace_architecture(config)
    assert surveying.made < 1e6
    layers, tail, rest = decoder_spec.sizes
    assert len(layers) == 36
    # q and o: 2 m h d; k and v: 2 m g d; MLP: 3 m 12288; two norms of m, two of d.
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288 + 2 * 4096 + 2 * 128
    assert set(layers) == {layer}
    assert (tail, rest) == (4096, 151936 * 4096)
    block = decoder_spec.block(35)
    assert (block.query_heads, block.value_heads, block.head_width, decoder_spec.model_width) == (32, 8, 128, 4096)


def test_surveying_leaves_the_configuration_as_it_was():
    config = tiny_config("gpt_oss")
    before = config.to_dict(), config._attn_implementation, config.pad_token_id
    trace_architecture(config)
    assert (config.to_dict(), config._attn_implementation, config.pad_token_id) == before
